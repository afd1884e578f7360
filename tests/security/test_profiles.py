"""Hostile profiles (S11) and names (S7): refused with the field, in bounded time, and nothing written elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spin_core.config import yaml_reader
from spin_core.config.profile import load_profile
from spin_core.errors import BadInput
from spin_core.sources import task_folder
from tests.faults.fault import Fault
from tests.faults.input.through import limited

BASE = "model: {path: m}\ndataset: {path: d}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
S11 = Fault(
    "S11", "a YAML profile: tags that build objects, alias bombs, 10 MB, depth, doubled and unknown keys, types"
)
S11_TASKS = Fault("S11", "the same YAML as a task file of lm-evaluation-harness")

# name → text, what the sentence says
YAML = {
    "python object": ("model: !!python/object:os.system {}\n", "line 1: the tag"),
    "python apply": ("model: !!python/object/apply:os.system ['touch marker']\n", "line 1: the tag"),
    "python name": ("model: !!python/name:os.system\n", "line 1: the tag"),
    "python module": ("model: !!python/module:os\n", "line 1: the tag"),
    "python tuple": ("model: !!python/tuple [1]\n", "line 1: the tag"),
    "own tag": ("model: !evil {}\n", "line 1: the tag"),
    "alias bomb": (BOMB, "line 2: not valid YAML: YAML aliases"),
    "alias of itself": ("model: &a {path: *a}\n", "aliases"),
    "merge bomb": ("a: &a {x: 1}\nb: {<<: [*a, *a]}\n", "aliases"),
    "10 MB": (BASE + "#" * (10 << 20), "too long"),
    "10 MB in one value": (BASE + "name: " + "x" * (10 << 20), "too long"),
    "depth in flow": ("model: " + "[" * 9_000, "not valid YAML"),
    "depth in blocks": ("".join(f"{' ' * i}a:\n" for i in range(480)), "not valid YAML|unknown field|a: "),
    "key twice": (BASE + "seed: 1\nseed: 2\n", "line 4: not valid YAML: the key 'seed' is given twice"),
    "key twice as numbers": (BASE + "overrides: {1: {}, 0x1: {}}\n", "the key 1 is given twice"),
    "two documents": (BASE + "---\nseed: 1\n", "not valid YAML"),
    "list": ("- a\n", "mapping of sections"),
    "text": ("hello\n", "mapping of sections"),
    "nothing": ("", "mapping of sections"),
    "key that is a list": ("? [a]\n: 1\n", "not valid YAML"),
    "key that is a number": (BASE + "7: 1\n", "7: "),
    "5,000 digits": (BASE + "seed: " + "9" * 5_000 + "\n", "not valid YAML"),
    "not UTF-8": (BASE.encode() + b"name: \xff\n", "not valid YAML"),
    "NUL": (BASE.encode() + b"name: a\0b\n", "not valid YAML"),
    "tab": ("model:\n\tpath: m\n", "line 2"),
    "unknown key": (BASE + "modell: {}\n", "modell: unknown field; did you mean model?"),
    "unknown inner key": (BASE + "finetune: {lrr: 1}\n", "finetune.lrr: unknown field; did you mean lr?"),
    "key with escapes": (BASE + '"\\e[31m\\u202e": 1\n', "unknown field"),
    "key of 100,000 characters": (BASE + f"? {'k' * 100_000}\n: 1\n", "unknown field"),
    "value of 100,000 characters": (BASE + f"iterations: {'k' * 100_000}\n", "iterations: "),
    "text for a number": (BASE + "finetune: {lr: fast}\n", "finetune.lr: "),
    "truth for a whole number": (BASE + "iterations: yes\n", "iterations: a number is needed"),
    "truth for a number or none": (BASE + "harness: {num_fewshot: yes}\n", "harness.num_fewshot: a number is needed"),
    "truth for a number": (BASE + "finetune: {lr: true}\n", "finetune.lr: a number is needed"),
    "number for a truth": (BASE + "evaluate: {sampled: 7}\n", "evaluate.sampled: "),
    "list for a section": (BASE + "finetune: [lr]\n", "finetune: "),
    "section for a text": ("model: {path: {a: b}}\ndataset: {path: d}\n", "model.path: "),
    "NaN": (BASE + "finetune: {beta: .nan}\n", "finetune.beta: "),
    "infinity": (BASE + "finetune: {lr: 1e999}\n", "finetune.lr: "),
    "negative": (BASE + "iterations: -1\n", "iterations: "),
    "too many iterations": (BASE + "iterations: 1000000000\n", "iterations: "),
    "fraction of an iteration": (BASE + "iterations: 1.5\n", "iterations: "),
    "override of a stranger": (BASE + "overrides: {99: {finetune: {lr: 1}}}\n", "overrides.99"),
    "override of a name": (BASE + "overrides: {0: {name: {a: 1}}}\n", "overrides.0.name"),
    "date": (BASE + "name: 2026-01-01\n", "name: "),
    "set": (BASE + "finetune: !!set {lr}\n", "finetune"),
}


def test_hostile_profiles_are_refused_with_the_field(tmp_path, monkeypatch):
    """Catches a loader that builds objects, expands aliases, lets the last of two keys win, reads `yes` as 1, quotes a
    megabyte, or sends a terminal what it obeys."""
    monkeypatch.chdir(tmp_path)

    def trial(name: str) -> None:
        text, message = YAML[name]
        file = tmp_path / "profile.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        began = time.monotonic()
        with limited(30), pytest.raises(BadInput) as raised:
            load_profile(str(file))
        sentence = str(raised.value)
        assert any(part in sentence for part in message.split("|")), sentence
        assert "profile.yaml" in sentence and len(sentence) < 700 and sentence.isprintable(), sentence
        assert time.monotonic() - began < 20
        assert list(tmp_path.iterdir()) == [file]

    S11.each(YAML, trial)


def test_hostile_task_files_are_refused(tmp_path):
    """Catches the walk over a task file's aliases, which takes for ever, and tags that run code."""
    hostile = [name for name in YAML if plain_yaml_refuses(name)]
    assert len(hostile) >= 18

    def trial(name: str) -> None:
        text = YAML[name][0]
        (tmp_path / "t.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        with limited(30), pytest.raises(BadInput, match=r"t\.yaml"):
            task_folder.files(tmp_path)

    S11_TASKS.each(hostile, trial)


def plain_yaml_refuses(name: str) -> bool:
    text = YAML[name][0]
    try:
        yaml_reader.read(text if isinstance(text, bytes) else text.encode(), "x")
    except BadInput:
        return True
    return False


def test_profiles_that_we_ship_and_longest_honest_one_load(tmp_path):
    """Catches limits so tight that an ordinary profile is refused."""
    profiles = Path(__file__).resolve().parents[2] / "deployments" / "profiles"
    for file in profiles.glob("*.yaml"):
        load_profile(str(file))
    (tmp_path / "p.yaml").write_text(
        BASE + "overrides:\n" + "".join(f"  {t}: {{finetune: {{lr: {t + 1}e-7}}}}\n" for t in range(3))
    )
    assert load_profile(str(tmp_path / "p.yaml"))[0].at(2).finetune.lr == 3e-7
