"""`spinloop init`: the profile that it writes is one that `spinloop plan` takes, with lengths that the data has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from spin_core.config.profile import load_profile


@pytest.fixture(autouse=True)
def standing(tmp_path: Path, monkeypatch):
    """In an empty folder, and no server is configured."""
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_API_URL: None}):
        yield


def rows(file: str, prompt: str, answer: str, count: int = 40, long: int = 0) -> None:
    """JSON lines; the last one's answer has `long` more characters."""
    made = [{prompt: f"what is {i:02d}?", answer: "it is " + "no " * (i % 8), "id": i} for i in range(count)]
    made[-1][answer] = str(made[-1][answer]) + "x" * long
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in made))


def test_without_arguments_the_profile_can_be_run_at_once(spinloop) -> None:
    """Catches a profile with a field that is none, or that plan refuses; a second call that overwrites the first."""
    code, out, err = spinloop("init")
    assert code == 0 and "Written: spinloop.yaml" in out, err
    code, out, err = spinloop("plan", "spinloop.yaml", "--store", "store")
    assert code == 0 and "would run" in out, err
    config, _ = load_profile("spinloop.yaml")
    assert config.sft and config.name == "spinloop" and config.generate.max_new_tokens < 128
    Path("spinloop.yaml").write_text("mine")
    code, _, err = spinloop("init")
    assert code == 2 and err.startswith("spinloop: spinloop.yaml: it is there already"), err
    assert Path("spinloop.yaml").read_text() == "mine" and not Path("store").exists()


def test_plan_counts_the_rows_before_the_model_is_there(spinloop) -> None:
    """Catches a cost sheet of 45,000 rows for a file of 50 that the plan has just read, as its model is still to be
    made."""
    rows("mine.jsonl", "prompt", "response", 50)
    code, _, err = spinloop("init", "builtin:tiny-llama", "mine.jsonl")
    assert code == 0, err
    code, out, err = spinloop("plan", "spinloop.yaml", "--store", "store")
    assert code == 0, err
    ((train, test),) = re.findall(r"Rows: (\d+) to train, (\d+) held out", out)
    assert int(train) + int(test) == 50 and "(assumed, as the tokenizer is not there yet)" in out


def test_lengths_and_columns_are_the_data_s(spinloop, model: Path) -> None:
    """Catches lengths that are not the data's, or that one row of 40 decides; a model's context that is not looked at;
    a guess that is not said, and paths that the profile's folder does not have."""
    rows("mine.jsonl", "the_query", "gold_reply", 200)
    Path("profiles").mkdir()
    code, out, err = spinloop("init", model, "mine.jsonl", "--out", "profiles/first.yaml")
    assert code == 0, err
    assert "Columns: the_query is taken for the prompt and gold_reply for the answer." in out
    assert "200 rows read as prompt: the_query, answer: gold_reply" in out
    assert "held-out rows: too few for the gate to say which model is better" in out
    config, base_dir = load_profile("profiles/first.yaml")
    assert config.dataset.columns == {"prompt": "the_query", "answer": "gold_reply"}
    assert (base_dir / config.dataset.path).samefile("mine.jsonl") and config.sft is None
    # One token a character: 11 and the template's, at most 6 + 7 · 3 − 1 and an end.
    assert config.chat.max_prompt_length == 32 and config.generate.max_new_tokens == 32
    assert config.finetune.max_length == 64 and config.evaluate.max_new_tokens == 32
    code, out, err = spinloop("plan", "profiles/first.yaml", "--store", "store")
    assert code == 0 and "cut" not in err, err

    rows("long.jsonl", "question", "answer", 40, long=150)
    code, out, err = spinloop("init", model, "long.jsonl", "--out", "long.yaml")
    assert code == 0, err
    config, _ = load_profile("long.yaml")
    assert config.finetune.max_length == 128 and config.dataset.columns == {}  # the model takes 128 tokens
    assert config.chat.max_prompt_length + config.generate.max_new_tokens <= 128 and "context of 128 tokens" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["mine.jsonl"], "mine.jsonl: that is data; the model comes first: spinloop init MODEL mine.jsonl."),
        (["builtin:tiny-llama", "odd.jsonl"], "Its columns: colour, shape"),
        (["builtin:tiny-llama", "absent.jsonl"], "absent.jsonl"),
        (["builtin:tiny-llama", "mine.jsonl", "--out", "x.json"], "--out x.json: a profile's name ends in .yaml."),
        (["builtin:tiny-llama", "mine.jsonl", "--out", "no/x.yaml"], "no/x.yaml: cannot be written"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_and_writes_nothing(spinloop, words: list[str], sentence: str) -> None:
    """Catches a profile of data that no run could read, and a traceback."""
    rows("mine.jsonl", "question", "answer")
    rows("odd.jsonl", "colour", "shape")
    code, _, err = spinloop("init", *words)
    assert code != 0 and sentence in err and len(err.strip().splitlines()) == 1, err
    assert not list(Path().rglob("*.yaml"))


def test_every_written_field_is_explained_or_the_paper_s(spinloop) -> None:
    """Catches a template whose comment says another thing than its value: `name` and paths are YAML that loads."""
    assert spinloop("init", "--out", "My Profile (2).yaml")[0] == 0
    written = yaml.safe_load(Path("My Profile (2).yaml").read_text())
    assert written["name"] == "my-profile--2" and written["model"] == {"path": "builtin:tiny-llama"}
