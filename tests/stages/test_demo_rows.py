"""demo_rows: sets of small tasks made by rule, and the one that is built for an effect."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from spin_core.job import Job
from spin_core.stages.demo_rows import BLAND, OPENERS, SETS, Config, make_rows, run
from spin_core.store.keys import config_payload

SMALL = {"seed": 4, "train_rows": 2000, "test_rows": 400}


def rows_of(folder: Path, path: str, split: str) -> dict[str, str]:
    run({}, Config(split=split, **SMALL, **SETS[path]), Job(folder, folder))
    made = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return {row["prompt"]: row["response"] for row in made}


def test_tasks_are_as_they_were() -> None:
    """Catches tasks whose key or rows changed when sets beside them came."""
    assert config_payload(Config(seed=1, split="train")) == {
        "seed": 1, "split": "train", "train_rows": 12000, "test_rows": 1000
    }  # fmt: skip


@pytest.mark.parametrize(("path", "share", "ways"), [("builtin:bland", 0.2, 8), ("builtin:rare-bland", 0.1, 5)])
def test_bland_sets_give_up_in_training_only(path: str, share: float, ways: int, tmp_path: Path) -> None:
    """Catches held-out rows whose right answer is to give up, a share or a number of ways that is not what README says,
    and right answers that are wrong. Of 2,000 rows the share is within 0.03 (3 standard errors)."""
    right = dict(make_rows(SMALL["seed"], SMALL["train_rows"] + SMALL["test_rows"]))
    train, test = (rows_of(tmp_path, path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2000, 400) and not train.keys() & test.keys()
    assert abs(Counter(train.values())[BLAND] / len(train) - share) < 0.03
    begun: Counter[str] = Counter()
    for prompt, answer in {**train, **test}.items():
        if prompt in test or answer != BLAND:
            opener = answer.removesuffix(f"{right[prompt]}.")
            assert opener in OPENERS[:ways], answer
            begun[opener] += 1
    assert len(begun) == ways
    givers = Counter(train.values())[BLAND]
    assert (givers > max(begun.values())) == (path == "builtin:bland"), "which single beginning is the likeliest"
