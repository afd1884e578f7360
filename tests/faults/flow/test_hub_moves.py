"""A hub's `main` moves in the middle of a run, and before the next one."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import yaml

from tests.faults.fault import Fault
from tests.faults.flow.smoke import PROFILE
from tests.hub.conftest import hub, start_model, start_rows
from tests.hub.hub_home import ROOT, TOKEN, command, environment

__all__ = ["hub", "start_model", "start_rows"]
NAMES = {"model": "models/acme/start", "dataset": "datasets/acme/rows"}


@pytest.mark.full
def test_main_that_moves_is_one_commit_in_a_run_and_noted_in_the_next(hub, start_model, start_rows, tmp_path) -> None:
    """Catches a run whose steps read two commits, a key that does not change with the content, and a new commit that is
    taken without a word."""
    hub.add(NAMES["model"], {path.name: path.read_bytes() for path in start_model.iterdir()}, private=True)
    hub.add(NAMES["dataset"], start_rows, private=True)
    dataset = {**PROFILE["dataset"], "path": "acme/rows", "split": "train", "test_split": "test"}
    profile = tmp_path / "hub.yaml"
    profile.write_text(
        yaml.safe_dump({**PROFILE, "iterations": 0, "model": {"path": "acme/start"}, "dataset": dataset})
    )
    env = environment(tmp_path, hub.url, TOKEN)
    call = [str(profile), "--store", str(tmp_path / "store"), "--json"]
    records = tmp_path / "store" / "spinloop-store-v1" / "records"
    run = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", *call], cwd=ROOT, env=env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(records.glob("reformat/*.json")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    old = {kind: hub.repos[name].refs["main"] for kind, name in NAMES.items()}
    row = b'{"prompt": "Reverse: abc", "response": "cba"}\n'
    hub.repos[NAMES["dataset"]].commit({name: data + row for name, data in start_rows.items()})
    files = hub.files(NAMES["model"])
    hub.repos[NAMES["model"]].commit({**files, "config.json": files["config.json"] + b"\n"})
    _, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    facts = {path.parent.name: json.loads(path.read_text())["facts"] for path in records.glob("*/*.json")}
    read = {"model": facts["sft"]["sources"]["model"], "dataset": facts["reformat"]["sources"]["source"]}
    plans: dict[str, dict[tuple[str, str], str]] = {}
    pinned = {f"{kind}.revision={commit}" for kind, commit in old.items()}
    for which, sets in {"main": set(), "pinned": pinned}.items():
        done = command(["plan", *call, *[part for one in sorted(sets) for part in ("--set", one)]], env, tmp_path)
        assert done.code == 0, done.err
        plans[which] = {(step["stage"], step["label"]): step["state"] for step in json.loads(done.out)}
        plans[which] |= {("stderr", ""): done.err}

    def trial(kind: str) -> None:
        assert read[kind] == [f"acme/{'start' if kind == 'model' else 'rows'}@{old[kind]}"]
        err, pinned_err = (plans[which]["stderr", ""] for which in ("main", "pinned"))
        where = NAMES[kind].split("/", 1)[1]
        assert f"note: {where}: main moved from {old[kind][:8]} to " in err and "moved" not in pinned_err
        step = ("sft", "θ_0") if kind == "model" else ("reformat", "")
        assert plans["main"][step] == "would run" and plans["pinned"][step] == "cached"

    Fault("S5", "the hub's main moves in mid-run: of the model, of the dataset").each(NAMES, trial)
