"""Bad input through the command line: one sentence that names the place, exit code 2, nothing computed, no
traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = [
    ("finetune.beta=0", "finetune.beta"),
    ("finetune.beta=-1", "finetune.beta"),
    ("finetune.beta=.nan", "finetune.beta"),
    ("finetune.lr=fast", "finetune.lr"),
    ("finetune.betta=1", "did you mean beta"),
    ("chat.max_prompt_length=80", "chat.max_prompt_length (80) must be below finetune.max_length (80)"),
    ("finetune.stop_epoch=9", "finetune.stop_epoch"),
    ("overrides={7: {finetune: {beta: 1}}}", "overrides.7"),
    ("overrides={1: {finetune: {bata: 1}}}", "did you mean beta"),
    ("evaluate.exact_match='#### ('", "evaluate.exact_match"),
    ("evaluate.exact_match='####'", "needs a group"),
    ("gate.metric=harness", "gate.metric: harness needs a harness section"),
    ("gate.metric=exact_match/greedy evaluate.exact_match=", "gate.metric: exact_match/greedy needs"),
    ("gate.metric=exact_match/sampled evaluate.sampled=false", "needs evaluate.sampled: true"),
    ("gate.metric=luck", "gate.metric: 'luck' is none; take auto, harness, nll/real, or exact_match/ or repetition/"),
    ("gate.metric=repetition/t0.7", "gate.metric: repetition/t0.7 needs 0.7 among evaluate.temperatures"),
    ("gate.metric=repetition/t1.0", "gate.metric: repetition/t1 is measured as repetition/sampled"),
    ("gate.metric=repetition/deployed evaluate.deployed=false", "needs evaluate.deployed: true"),
    ("beta", "field.path=value"),
    ("model.path=nowhere/at/all", "nowhere/at/all"),
    ("dataset.path=nowhere.jsonl", "nowhere.jsonl"),
    ("name=../evil", "name"),
]


@pytest.mark.parametrize(("setting", "place"), SETTINGS)
def test_bad_setting_is_one_sentence_with_its_place(spinloop, tiny, tmp_path, setting: str, place: str) -> None:
    """Catches a traceback, a value that is quietly accepted, and a message that does not say where."""
    several = setting.split(" ") if setting.startswith("gate.") else [setting]
    sets = [part for one in several for part in ("--set", one)]
    code, out, err = spinloop("plan", tiny, "--store", tmp_path / "store", *sets)
    assert code == 2, err
    assert place in err
    assert len(err.strip().splitlines()) == 1, err
    assert not out


PROFILES = [
    ("", "mapping of sections"),
    ("model: [", "line 1"),
    ("a: 1\na: 2\n", "given twice"),
    ("x: &a [1]\ny: *a\n", "aliases"),
    ("model: {path: x}\n", "dataset: is required"),
    ("model: !!python/object:os.system {}\n", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "place"), PROFILES)
def test_bad_profile_is_one_sentence_with_its_file(spinloop, tmp_path: Path, text: str, place: str) -> None:
    """Catches a YAML loader that builds objects, expands aliases, or lets the last of two equal keys win."""
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    code, _, err = spinloop("plan", path, "--store", tmp_path / "store")
    assert code == 2
    assert place in err
    assert "profile.yaml" in err
    assert len(err.strip().splitlines()) == 1, err


DATA = [
    (b"", "no rows"),
    (b'{"prompt": "a", "response": "b"}\n{"prompt": \n', "line 2"),
    (b'{"prompt": "a", "response": "b"}\n\xff\xfe\n', "line 2"),
    (b'{"text": "a"}\n', "columns"),
    (b'{"prompt": "a", "response": ""}\n', "no answer"),
]


@pytest.mark.parametrize(("content", "place"), DATA)
def test_bad_dataset_fails_the_run_with_one_sentence(
    spinloop, server, tiny, model, tmp_path, content: bytes, place: str
) -> None:
    """Catches an error of a child process that reaches the user as a traceback, or a stage that publishes half its
    work."""
    data, store = tmp_path / "data.jsonl", tmp_path / "store"
    data.write_bytes(content)
    sets = ["--set", f"dataset.path={data}", "--set", f"model.path={model}", "--set", "sft="]
    code, out, err = spinloop("run", tiny, "--store", store, *sets)
    assert code == 2, err
    sentence = [line for line in err.splitlines() if line.startswith("spinloop:")]
    assert len(sentence) == 1, err
    assert place in sentence[0]
    assert "data.jsonl" in sentence[0]
    assert "Traceback" not in err
    assert not out
    root = store / "spinloop-store-v1"
    assert not list(root.glob("records/*/*.json"))
    assert not list((root / "tmp").iterdir())


def _pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _own_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (model / "evil.py").write_text(f"open({str(model / 'marker')!r}, 'w')")


def _no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "place"), [(_pickled, "pickled"), (_own_code, "auto_map"), (_no_weights, "safetensors")]
)
def test_unusable_model_is_refused_and_runs_nothing(spinloop, tiny, model, tmp_path, spoil, place: str) -> None:
    """Catches a loader that unpickles weights or runs a model's own code."""
    bad = Path(shutil.copytree(model, tmp_path / "model"))
    spoil(bad)
    code, _, err = spinloop("plan", tiny, "--store", tmp_path / "store", "--set", f"model.path={bad}")
    assert code == 2
    assert place in err
    assert len(err.strip().splitlines()) == 1, err
    assert not (bad / "marker").exists()


def test_model_without_chat_template_fails_before_anything_is_trained(spinloop, server, tiny, model, tmp_path) -> None:
    """Catches a preflight that comes after the expensive step."""
    bad, store = Path(shutil.copytree(model, tmp_path / "model")), tmp_path / "store"
    (bad / "chat_template.jinja").unlink()
    code, _, err = spinloop("run", tiny, "--store", store, "--set", f"model.path={bad}")
    assert code == 2
    assert "chat template" in err
    assert not (store / "spinloop-store-v1" / "records" / "sft").exists()


def test_unknown_profile_lists_the_known_ones(spinloop, tmp_path) -> None:
    """Catches a message that leaves the user without a next step."""
    code, _, err = spinloop("plan", "demmo", "--store", tmp_path)
    assert code == 2
    assert "demo" in err
    assert "zephyr-7b" in err


def test_server_that_does_not_answer_is_named(tiny, tmp_path) -> None:
    """Catches an HTTP client's traceback, and a server of our own that hides the run from the one requested."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(tiny), "--store", str(tmp_path / "store")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("spinloop: PREFECT_API_URL http://127.0.0.1:9/api")
    assert len(done.stderr.splitlines()) == 1
