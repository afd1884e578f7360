"""A full run with `--store s3://…`, on one machine; what other machines then have of it, by every command."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from spin_core.config.runtime import Runtime
from spin_core.stages import evaluate as evaluate_stage
from tests.faults.fault import LEVEL
from tests.faults.s3.server import KEYS

# One iteration of few rows: what is stored is the same in kind.
SMALL = () if LEVEL != "pr" else ("iterations=1", "dataset.limit=24", "dataset.test_limit=6", "dataset.shard_rows=24")
SETS = [part for one in SMALL for part in ("--set", one)]


@pytest.fixture
def on(monkeypatch, tmp_path, spinloop, url):
    """A command on the machine of a name; what it prints on standard output."""

    def call(name: str, *args: object) -> str:
        monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path / name))
        code, out, err = spinloop(*args, "--store", url)
        assert code == 0, err
        assert "Traceback" not in err and KEYS["AWS_SECRET_ACCESS_KEY"] not in out + err
        return out

    return call


def cached(tmp_path: Path, name: str) -> list[Path]:
    """The model files in the cache of a machine."""
    return list((tmp_path / name).rglob("*.safetensors"))


@pytest.mark.full
def test_run_on_s3_is_cached_on_another_machine_and_seen_by_every_command(
    server, tiny, url, proxy, on, spinloop, tmp_path
):
    """Catches a command that knows folders only, a second machine that computes again, and one that sees no report,
    best model or key of what the first one made."""
    first = json.loads(on("a", "run", tiny, "--json", *SETS))
    assert first["cached"] == 0 and first["ran"] > 8 and first["notes"] == []
    second = json.loads(on("b", "run", tiny, "--json", *SETS))
    assert (second["ran"], second["cached"], second["notes"]) == (0, first["ran"], [])
    steps = [json.loads(Path(run["folder"], "steps.json").read_text()) for run in (first, second)]
    assert [s["key"] for s in steps[0]] == [s["key"] for s in steps[1]]
    report = [Path(run["folder"], "report.md").read_bytes() for run in (first, second)]
    assert report[0] == report[1]

    proxy.forget()
    assert f"{first['ran']} cached, 0 would run." in on("c", "plan", tiny, *SETS)
    assert cached(tmp_path, "c") == [], "a plan fetched models"
    assert not [one for one in proxy.requests if one.method in ("PUT", "POST", "DELETE")], "a plan wrote"
    assert report[0].decode() in on("d", "report")
    head, *listed = on("e", "store", "ls").splitlines()
    assert head.split() == ["key", "stage", "step", "size", "time", "output"]
    assert len(listed) == first["ran"]
    key = next(line.split()[0] for line in listed if " finetune " in line)
    assert json.loads(on("e", "store", "show", key))["stage"] == "finetune"
    assert "the only one of its stage" in on("e", "store", "explain", key) or LEVEL != "pr"
    assert "are whole" in on("e", "store", "verify", "--deep")
    assert re.search(rf"{first['run']}\s+\d+", on("e", "store", "du"))
    assert cached(tmp_path, "e") == []
    folder = Path(on("e", "store", "fetch", f"{first['run']}/best").strip())
    assert (folder / "model.safetensors").is_file()
    assert (tmp_path / "e") in folder.parents
    assert "model.safetensors" in on("f", "push", "--to", "org/name", "--dry-run")
    assert spinloop("store", "gc", "--store", url)[0] == 1, "the runs of this very process still hold their leases"
    gone = "removed 0 records, 0 trees, 0 temporary and 0 scratch folders"
    assert gone in on("f", "store", "gc", "--while-used", "--keep-runs", "1"), "a store of real runs is no damaged one"
    stage_on_another_machine(url, on, tmp_path)


def stage_on_another_machine(url: str, on, tmp_path: Path) -> None:
    """What a work pool does: the stage's flow on a machine with its own cache, whose inputs are digests."""
    from flows.stages import Work, evaluate
    from spin_core.store.opening import open_store

    os.environ["SPINLOOP_CACHE"] = str(tmp_path / "leader")  # `on` has it put back
    leader = open_store(url)
    record = next(leader.records("evaluate"))
    config = dict(record.payload["config"])
    config["evaluate"] = {**config["evaluate"], "max_new_tokens": 5}
    changed = evaluate_stage.Config(**config)
    inputs = {name: record.payload["inputs"][name] for name in ("model", "rows", "tokens")}
    before = os.environ["SPINLOOP_STORE"]
    os.environ["SPINLOOP_STORE"] = url
    os.environ["SPINLOOP_CACHE"] = str(tmp_path / "worker")
    try:
        state = evaluate(
            changed,
            [Work(inputs=inputs)],
            Runtime(threads=1),
            leader.identity(),
            return_state=True,
        )
        other = evaluate(changed, [Work(inputs=inputs)], store="another", return_state=True)
    finally:
        os.environ["SPINLOOP_STORE"] = before
    assert state.is_completed(), state.message
    assert "1 step ran" in state.message
    assert cached(tmp_path, "worker"), "it did not fetch its model"
    assert other.is_failed() and "another than that of the run" in other.message
    made = [one for one in leader.records("evaluate") if one.payload["config"]["evaluate"]["max_new_tokens"] == 5]
    assert len(made) == 1 and leader.lookup("evaluate", made[0].key) is not None


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_pools_are_given_the_url(kind):
    """Catches a pool whose workers compute into a folder of their own while the run waits on S3."""
    from flows.server.deploy import GPU_POOL, job_template

    properties = job_template(kind, GPU_POOL, "s3://bucket/prefix")["variables"]["properties"]
    assert properties["env"]["default"]["SPINLOOP_STORE"] == "s3://bucket/prefix"
    assert not any("s3:" in volume for volume in properties.get("volumes", {}).get("default", ()))
