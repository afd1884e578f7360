"""Runs from Python: the example of docs/first-run.md in a notebook's event loop, and what a run returns."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import api
from spin_core.errors import BadInput, StoreError
from tests.flows import migrated
from tests.flows.fixtures import TINY

ROOT = Path(__file__).parents[2]
CELL = """
import asyncio, json, sys

async def cell():
    asyncio.get_running_loop()
{code}
    print(json.dumps([made.name, list(table["model"]), [one.name for one in api.runs()]]))

asyncio.run(cell())
"""


@pytest.fixture
def store(finished, tmp_path) -> Path:
    """A store with the tiny run, to be changed."""
    shutil.copytree(finished[0], tmp_path / "store", symlinks=True)
    return tmp_path / "store"


def example() -> str:
    """The Python of the page's section."""
    text = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(from flows import api.*?)```", text, re.DOTALL)[1]  # type: ignore[index]


def test_readme_example_runs_in_an_event_loop(store, tmp_path) -> None:
    """Catches an example that is not so, a run that wants the only event loop (a notebook has one running), a cell that
    ends its kernel, and a run that needs somebody's server. Its profile is the tiny one, of which only the report of
    one iteration is new."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TINY))
    code = example()
    assert code.count("\n") <= 7 and 'api.run("mine.yaml"' in code
    body = "".join(f"    {line}\n" for line in code.splitlines())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ours = {
        "PREFECT_HOME": str(migrated.home(tmp_path / "prefect")),
        "PYTHONPATH": str(ROOT),
        "SPINLOOP_STORE": "store",
    }
    done = subprocess.run(
        [sys.executable, "-c", CELL.format(code=body)], cwd=tmp_path, env=kept | ours, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, models, runs = json.loads(done.stdout.splitlines()[-1])
    assert runs[-1] == name and len(runs) == 2 and runs[0] != name
    assert models == ["θ_0", "θ_1"]
    assert "Cached  sft[θ_0]" in done.stderr and "ran     report" in done.stderr


def test_what_a_run_left(finished) -> None:
    """Catches a model under another's label, figures of another model, a training that is missing, and a report that is
    not there."""
    store, ledger = finished
    made = api.made(store=store)
    assert [one.name for one in api.runs(store)] == [made.name] and made.report.is_file()
    assert list(made.models) == ["θ_0", "θ_1", "θ_2", "best"]
    by = {(one["stage"], one["label"]): one for one in ledger}
    assert made.models["θ_2"].name == by["finetune", "iter 1"]["digest"]
    assert made.models["best"] in (made.models[f"θ_{k}"] for k in range(3))
    assert (made.models["θ_1"] / "model.safetensors").is_file()
    rows = made.metrics
    assert [(row["model"], row["role"], row["iteration"]) for row in rows] == [
        ("θ_0", "start", None), ("θ_1", "iteration", 0), ("θ_2", "iteration", 1),
    ]  # fmt: skip
    assert [row["nll/real"] for row in rows] == [by["evaluate", f"θ_{k}"]["summary"]["nll/real"] for k in range(3)]
    assert [row.get("outcome") for row in rows[1:]] == [by["gate", f"iter {t}"]["summary"]["outcome"] for t in (0, 1)]
    steps = {model: sum(row["model"] == model for row in made.training) for model in ("θ_0", "θ_1", "θ_2")}
    assert steps["θ_2"] == by["finetune", "iter 1"]["summary"]["steps"] and min(steps.values()) > 0


def test_what_cannot_be_used_is_raised(finished, tmp_path) -> None:
    """Catches an exit instead of an error, a setting that is passed over, and a store that a look makes."""
    for profile, settings, sentence in (
        ("nobody", {}, "there is no such profile"),
        (TINY, {"finetune": {"betta": 1}}, "did you mean beta"),
        (TINY, {"finetune.beta": 1}, "give sections as dicts, finetune={'beta': …}"),
        (TINY, {"rounds": 2}, "rounds: unknown field"),
    ):
        with pytest.raises(BadInput, match=re.escape(sentence)):
            api.run(profile, tmp_path / "none", **settings)
    with pytest.raises(StoreError, match="there is no spinloop store here"):
        api.runs(tmp_path / "none")
    with pytest.raises(BadInput, match="there is no such run"):
        api.made("nobody", finished[0])
    assert not (tmp_path / "none").exists() and "betta" not in str(TINY)
