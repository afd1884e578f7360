"""`spinloop costs` on a store of five real runs, against plain sums over the records of their steps."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable

import pytest

from spin_core.analysis.format import bytes_text, count_text, hours_text
from spin_core.store.store import Store

OTHER = ("name=other", "seed=4", "iterations=1", "dataset.limit=32", "dataset.test_limit=4")
BEGAN = ("20261102T030000Z", "20261104T030000Z", "20261116T030000Z", "20261118T030000Z", "20261119T030000Z")
"""Of the five runs: two in one week, none in the next, three in the third."""


def figures(store: Store, step: dict) -> dict[str, float]:
    """What the record of a step of a ledger says that it took: seconds, hours, tokens."""
    record = store.record(step["stage"], step["key"])
    assert record is not None
    facts, config = record.facts, record.payload["config"]
    summary, seconds, gpus = facts["summary"], facts["seconds"], facts["device"]["gpus"]
    hours = {"gpu_hours": gpus / facts["device"]["shared"]} if gpus else {"cpu_hours": 1.0}
    made = {"seconds": seconds} | {name: seconds / 3600 * share for name, share in hours.items()}
    if kind := {"generate": "generated", "score": "scored", "sft": "trained", "finetune": "trained"}.get(step["stage"]):
        seen = 1.0
        if kind == "trained":  # its tokens are those of one pass
            rows = summary["rows"] if step["stage"] == "sft" else summary["pairs"]
            seen = summary["steps"] * config[step["stage"]]["global_batch"] / rows
        made[kind] = summary["tokens"] * seen
    return made


def plain(store: Store, ledgers: Iterable[list[dict]], stage: str = "") -> dict[str, dict[str, float]]:
    """Figures of the steps that ran (`used`) and of those that were cached (`saved`) in some runs; of one stage."""
    sums = {"used": defaultdict(float), "saved": defaultdict(float)}
    for step in (step for ledger in ledgers for step in ledger):
        if stage in ("", step["stage"]):
            for name, value in figures(store, step).items():
                sums["saved" if step["state"] == "Cached" else "used"][name] += value
    return {which: dict(made) for which, made in sums.items()}


def same(line: dict, sums: dict[str, dict[str, float]]) -> None:
    """Fails unless a line of `costs --json` has these sums, and 0 of every other figure."""
    for which in ("used", "saved"):
        assert line[which] == pytest.approx(dict.fromkeys(line[which], 0.0) | sums[which], rel=1e-9), which
        assert line[which].keys() >= sums[which].keys()


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Head of the first column → label → cells, of each Markdown table in a text."""
    found: dict[str, dict[str, list[str]]] = {}
    head = ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            head = ""
        elif not head:
            head = cells[0]
            found[head] = {}
        elif set(cells[0]) - set(":- "):
            found[head][cells[0].replace("\\", "")] = cells[1:]
    return found


def shown(line: dict, kind: str) -> list[str]:
    """The cells of the table that show a line of the JSON: executions, steps, hours of a `kind`, tokens."""
    tokens = [sum(line[which][kind] for kind in ("generated", "trained", "scored")) for which in ("used", "saved")]
    hours = [hours_text(line[which][kind]) for which in ("used", "saved")]
    return [f"{line[name]:,}" for name in ("executions", "ran", "cached")] + hours + [count_text(n) for n in tokens]


@pytest.mark.full
def test_costs_of_five_runs_are_the_sums_of_their_records(run, spinloop, finished, tmp_path) -> None:
    """Catches a step that is counted twice or not at all, one that was cached and counts as computed, a stage, profile
    or week that another one's steps are in, a rerun that is all cached and saves nothing, and a table that says other
    than the JSON."""
    place = tmp_path / "store"
    shutil.copytree(finished[0], place, symlinks=True)
    store, ledgers = Store(place), [finished[1]]
    (kept,) = store.root.glob("runs/*/costs-*.json")
    kept.rename(kept.with_name(f"costs-{BEGAN[0]}-000000.json"))
    for i, settings in enumerate([("iterations=1", "finetune.beta=0.5"), (), OTHER, (*OTHER, "finetune.lr=3e-4")], 1):
        before = {*store.root.glob("runs/*/costs-*.json")}
        ledgers.append(run(place, *settings))
        (kept,) = {*store.root.glob("runs/*/costs-*.json")} - before
        kept.rename(kept.with_name(f"costs-{BEGAN[i]}-00000{i}.json"))
    states = [{step["state"] for step in ledger} for ledger in ledgers]
    assert states == [{"ran"}, {"ran", "Cached"}, {"Cached"}, {"ran"}, {"ran", "Cached"}]

    code, out, err = spinloop("costs", "--store", place, "--json")
    assert code == 0, err
    made = json.loads(out)
    of_profiles = {"tiny": ledgers[:3], "other": ledgers[3:]}
    of_weeks = {"2026-11-02": ledgers[:2], "2026-11-09": [], "2026-11-16": ledgers[2:]}
    stages = {step["stage"] for ledger in ledgers for step in ledger}
    same(made["total"], plain(store, ledgers))
    assert made["profiles"].keys() == of_profiles.keys() and [*made["weeks"]] == [*of_weeks]
    assert made["stages"].keys() == stages and made["only_last_execution_known"] == []
    for part, groups in (("profiles", of_profiles), ("weeks", of_weeks)):
        for name, some in groups.items():
            same(made[part][name], plain(store, some))
            assert made[part][name]["executions"] == len(some)
            counts = [sum(step["state"] == state for ledger in some for step in ledger) for state in ("ran", "Cached")]
            assert [made[part][name]["ran"], made[part][name]["cached"]] == counts
    for stage in stages:
        same(made["stages"][stage], plain(store, ledgers, stage))
    cached = plain(store, [ledgers[2]])
    assert cached["used"] == {} and cached["saved"] == pytest.approx(plain(store, [ledgers[0]])["used"])

    code, out, err = spinloop("costs", "--store", place)
    assert code == 0, err
    text, kind = tables(out), "gpu_hours" if made["total"]["used"]["gpu_hours"] else "cpu_hours"
    for head, part in (("profile", made["profiles"]), ("stage", made["stages"]), ("week of", made["weeks"])):
        lines = {name: shown(line, kind) for name, line in [*part.items(), ("all", made["total"])]}
        # A share stands behind what was saved, and the disk in the last column of profiles.
        rows = {name: [cell.split(" (")[0] for cell in cells[:7]] for name, cells in text[head].items()}
        assert rows == lines, head
    assert {name: cells[7] for name, cells in text["profile"].items()} == {
        name or "all": bytes_text(size) for name, size in made["disk"].items()
    }
    later = json.loads(spinloop("costs", "--store", place, "--json", "--since", "2026-11-16")[1])
    same(later["total"], plain(store, ledgers[2:]))
