"""Data sets at the edge of nothing (R24): none, one row, fewer than a batch, all rejected, no iterations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from spin_core.stages import reformat
from tests.faults.fault import LEVEL, Fault
from tests.faults.input.text_corpus import row
from tests.faults.input.through import prepare

R24 = Fault("R24", "no rows, 1 row, all rejected: the reformat stage's message")


def test_almost_no_rows_are_reported_with_their_counts(tmp_path):
    """Catches an empty rows tree that is published, and a sentence without the numbers."""
    bad = {"prompt": "a", "response": ""}
    cases = {
        "none": ([], {}, "no rows"),
        "one, none held out": ([row(0)], {"test_fraction": 0}, "holds out none of the 1 rows"),
        "one, held out": ([row(0)], {"test_fraction": 0.999}, "holds out all 1 rows"),
        "two": ([row(0), row(1)], {"test_fraction": 0}, "none of the 2 rows"),
        "all rejected": ([bad] * 3, {}, "not one of its 3 rows can be used (no answer: 3)"),
        "rejected in two ways": ([bad, {"x": 1}], {}, "(no answer: 1, wrong columns: 1)"),
        "half rejected, and one": (
            [bad] * 5 + [row(i) for i in range(4)],
            {},
            "5 of its 9 rows are rejected (no answer: 5",
        ),
        "more rejected than set": (
            [bad] + [row(i) for i in range(4)],
            {"max_rejected": 0.1},
            "larger part than dataset.max_rejected (0.1) allows",
        ),
        "all the same": ([row(0)] * 5, {"test_fraction": 0}, "holds out none of the 1 rows"),
    }

    def trial(name: str) -> None:
        rows, settings, message = cases[name]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        assert message in prepare(file, reformat.Dataset(path="x", **settings)).refused

    R24.each(cases, trial)


def test_rejects_up_to_the_limit_are_left_out(tmp_path):
    """Catches a limit that refuses its own value, one that takes a row that is there twice for a bad one, and one that
    cannot be switched off (R25)."""
    bad, file = {"prompt": "a", "response": ""}, tmp_path / "a.jsonl"
    for rows, settings, rejects in (
        ([bad] * 4 + [row(i) for i in range(4)], {}, {"no answer": 4}),
        ([row(0)] * 50 + [row(1)], {}, {"duplicate": 49}),
        ([bad] * 90 + [row(i) for i in range(4)], {"max_rejected": 1}, {"no answer": 90}),
    ):
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        outcome = prepare(file, reformat.Dataset(path="x", test_fraction=0.4, **settings))
        assert not outcome.refused or "holds out" in outcome.refused, outcome
        assert outcome.refused or outcome.rejects == rejects


# rows, settings, exit code (None: not 0), message
RUNS = {
    "0 iterations": (9, ["iterations=0"], 0, ""),
    "1 iteration, 2 rows, batch of 16": (4, ["iterations=1", "finetune.warmup_ratio=0"], 0, ""),
    "1 iteration, one step of warm-up": (4, ["iterations=1"], None, "warm-up's learning rate 0"),
    "1 row to train on": (2, ["iterations=1", "dataset.limit=1", "finetune.warmup_ratio=0"], 0, ""),
    "no rows": (0, [], 2, "no rows"),
}
QUICK = ("no rows",)  # S2 makes a full run at every level
NAMES = [name for name in RUNS if LEVEL != "pr" or name in QUICK]
R24_RUN = Fault("R24", f"full runs: {'; '.join(NAMES)}")


@pytest.mark.usefixtures("server")
def test_smallest_runs_end_right(spinloop, tiny, model, tmp_path: Path):
    """Catches a loss that is NaN, a step of no rows, a division by nothing, and a success where nothing was done."""

    def trial(name: str) -> None:
        count, settings, code, message = RUNS[name]
        folder = tmp_path / name.replace(" ", "-").replace(",", "")
        folder.mkdir()
        for split, first in (("train", 0), ("test", 50)):
            made = [json.dumps(row(first + i)) + "\n" for i in range(count)]
            (folder / f"{split}.jsonl").write_text("".join(made))
        sets = [f"dataset.path={folder / 'train.jsonl'}", f"dataset.test_path={folder / 'test.jsonl'}"]
        sets += [f"model.path={model}", "sft=", *settings]
        sets = [part for one in sets for part in ("--set", one)]
        ended, out, err = spinloop("run", tiny, "--store", folder / "store", "--json", *sets)
        assert (ended != 0 if code is None else ended == code) and message in err and "Traceback" not in err, err[-700:]
        if code is None:
            return
        if code:
            assert not list(folder.glob("store/*/records/*/*.json"))
            return
        report = json.loads(next(Path(json.loads(out)["folder"]).glob("*/report.json")).read_text())
        rows = report["rows"]
        assert len(rows) == (1 if "0 iter" in name else 2)
        figures = [value for one in rows for value in one.values() if isinstance(value, float)]
        assert all(map(math.isfinite, figures))

    R24_RUN.each(NAMES, trial)
