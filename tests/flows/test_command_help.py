"""The help of the command, and what a shell's TAB completes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import overview
from flows.cli.__main__ import _parser
from flows.cli.fields import choices, sections, settings
from spin_core.config.profile import Config, load_profile
from spin_core.errors import BadInput

ROOT = Path(__file__).parents[2]


def commands() -> set[str]:
    """The names that the parser knows."""
    actions = _parser()._actions
    return set(next(one.choices for one in actions if isinstance(one, argparse._SubParsersAction)))


def test_overview_is_one_screen_with_every_command(spinloop) -> None:
    """Catches a command that the overview lacks or names wrongly, and one that no longer fits 24 lines of 80."""
    code, out, _ = spinloop("--help")
    assert code == 0 and out == spinloop("-h")[1]
    assert len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 80
    assert {name for group in overview.OVERVIEW.values() for name in group} == commands()
    assert all(f" {name} " in out for name in commands())


@pytest.mark.parametrize("command", ["run", "plan"])
def test_help_lists_sections_and_prints_one(spinloop, command: str, monkeypatch) -> None:
    """Catches 300 lines, a section that is not listed, a field without default, choices or bounds, and a section in a
    section or a list that cannot be asked for."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = spinloop(command, "--help")
    assert code == 0 and len(out.splitlines()) < 50 and "--set FIELD=VALUE" in out
    assert all(f"\n  {name} " in out for name in Config.model_fields)
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = spinloop(command, "--help", "finetune")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert 'finetune.loss ("sigmoid"): sigmoid | hinge | unpaired' in out
    assert "finetune.warmup_ratio (0.1): ≥ 0, < 1\n      Part of the schedule" in out
    assert "\n  finetune.lora\n" in out and "`--help finetune.lora`" in out and "finetune.lora.rank" not in out
    assert "finetune.lora.rank (16): ≥ 1" in spinloop(command, "--help", "finetune.lora")[1]
    assert "dataset.sets.0.weight (null): > 0, or nothing" in spinloop(command, "--help", "dataset.sets")[1]
    assert "tensorboard | mlflow" in spinloop(command, "--help", "runtime.trackers")[1]


def test_every_field_is_in_the_help_of_its_section(spinloop) -> None:
    """Catches a field, or a section, that no help has."""
    text = "\n".join(spinloop("run", "--help", path)[1] for path, _ in sections())
    missing = [path for path, _ in settings() if "." in path and f"  {path} (" not in text]
    assert not missing and len(list(settings())) > 150


def test_wrong_section_is_one_sentence_with_those_there_are(spinloop) -> None:
    """Catches a traceback, an empty help, and a name that is nobody's near a section's."""
    for name in ("finetun", "finetune.nothing", "model.path.x", ".", "demo"):
        code, out, err = spinloop("run", "--help", name)
        assert code == 2 and not out and err.count("\n") == 1, name
        assert err.startswith(f"spinloop: --help {name}: ") and "finetune.lora" in err and "runtime.pools" in err
    assert "did you mean finetune?" in spinloop("run", "--help", "finetun")[2]


def test_unknown_field_names_the_help_that_exists(spinloop) -> None:
    """Catches a hint that leads to a help which does not have the fields."""
    with pytest.raises(BadInput) as refusal:
        load_profile("demo", ["finetune.qqqqqq=1"])
    hint = str(refusal.value).partition("`spinloop ")[2].partition("`")[0]
    assert hint == "run --help finetune"
    assert spinloop(*hint.split())[0] == 0


def test_values_that_help_and_completion_offer_are_accepted() -> None:
    """Catches a choice that the config does not take: each of them, alone, is one of the field's own."""
    for path, field in settings():
        for value in choices(field.annotation):
            if path.startswith(("generate.", "gather.truncated", "runtime.compute.sharding")):
                load_profile("demo-tasks", [f"{path}={value}"])
    assert choices(Config.model_fields["name"].annotation) == []


def asked(line: str) -> dict[str, str]:
    """What bash puts into the environment where TAB is pressed behind `line`."""
    return {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash", "COMP_TYPE": "9",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:", "COMP_LINE": line, "COMP_POINT": str(len(line.encode())),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("spinloop p", {"plan", "push"}, "run"),
        ("spinloop run zephyr-7b-l", {"zephyr-7b-lora"}, "demo"),
        ("spinloop run demo --set finetune.l", {"finetune.lora.rank=", "finetune.lr="}, "sft.lr="),
        ("spinloop run demo --set finetune.optimizer=", {"rmsprop", "adamw"}, "sgd"),
        ("spinloop plan --help gen", {"generate"}, "gather"),
    ],
)
def test_words_that_are_offered(line: str, wanted: set[str], unwanted: str, tmp_path) -> None:
    """Catches commands, profiles, fields and choices that are not offered, and what does not begin so; a command that
    runs what the shell only asked about."""
    words = offered(line, tmp_path)
    assert wanted <= words and not any(one.startswith(unwanted) for one in words), words


def offered(line: str, folder: Path) -> set[str]:
    """What the command answers a shell, in a process of its own: argcomplete takes the descriptors 8 and 9, which here
    are somebody's."""
    pytest.importorskip("argcomplete")
    answers = folder / "answers"
    env = os.environ | asked(line) | {
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])
    }  # fmt: skip
    code = "from flows.cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stdout
    return {one.strip() for one in answers.read_text().splitlines()}
