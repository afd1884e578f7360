"""Kept processes: an engine's process lives from one model to the next, rests meanwhile, and outlives nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from spin_core.errors import NotReloaded, StageFailed
from spin_core.runtime import proc
from spin_core.runtime.child import LIBRARY_BYTES, ROOM, Children

STAGE = '''
"""An engine and its stage, for the tests of kept processes."""
import os, signal, time
from spin_core.config.base import Section
from spin_core.errors import NotReloaded

served, rests = [], []

class Config(Section):
    model: str
    do: str = ""

def rest():
    rests.append(served[-1])
    if served[-1] == "cannot rest":
        raise RuntimeError("no memory was given back")
    return None if served[-1] == "too big" else 1000

def run(inputs, config, job):
    if config.do == "meet":
        (job.out / str(len([*job.out.glob("here*")]))).touch()
        (job.out / f"here{config.model}{time.monotonic_ns()}").touch()
        while len([*job.out.glob("here*")]) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
    if served and config.do in ("stale", "meet") and served[-1] != config.model:
        time.sleep(0.3)
        raise NotReloaded(f"{config.model}: still answers as {served[-1]}.")
    if config.do == "always stale":
        raise NotReloaded("never good")
    served.append(config.model)
    if config.do == "cache":
        globals()["cache"] = b"x" * (700 << 20)
    return {"pid": os.getpid(), "served": list(served), "rests": list(rests)}
'''
OTHER = '''
"""Another stage, which needs the machine."""
import os
from spin_core.config.base import Section

class Config(Section):
    pass

def run(inputs, config, job):
    return {"pid": os.getpid()}
'''


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "an_engine.py").write_text(STAGE)
    (tmp_path / "another_stage.py").write_text(OTHER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "out").mkdir()

    def make(model: str = "", do: str = "", kind: str = "vllm 8", keep: bool = True) -> dict:
        config = {"model": model, "do": do} if model else {}
        module = "an_engine" if model else "another_stage"
        engine = {"process": f"{kind} {model}", "python": sys.executable, "share": 2} if model else {}
        engine |= {"keep": "an_engine"} if model and keep else {}
        place = {"out": str(tmp_path / "out"), "scratch": str(tmp_path), "inputs": {}, "digests": {}, "runtime": {}}
        return {"stage": module, "module": module, "config": config, **place, **engine}

    return make


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _quiet(event: dict) -> None:
    """Nobody looks."""


def test_one_engine_lives_through_models_and_other_stages_and_ends_with_the_run(spec) -> None:
    """Catches an engine that is started for each model, one that does not rest before another stage has the machine, a
    second one beside it, and one that outlives the run."""
    with Children(1) as children:
        first, _ = children.run(spec("a"), _quiet)
        other, _ = children.run(spec(), _quiet)
        assert _alive(first["pid"]) and other["pid"] != first["pid"]
        second, _ = children.run(spec("b"), _quiet)
        longer, _ = children.run(spec("b", kind="vllm 16"), _quiet)
        assert not _alive(other["pid"]), "it gives its memory back before the engine takes some"
        assert second["pid"] == longer["pid"] == first["pid"]
        assert longer["served"] == ["a", "b", "b"] and longer["rests"] == ["a"]
        children.run(spec(), _quiet)
    assert not _alive(first["pid"])


@pytest.mark.parametrize("why", ["off", "cannot rest", "too big", "short of memory"])
def test_engine_that_is_not_to_stay_is_ended(why: str, spec, monkeypatch) -> None:
    """Catches the setting that is not heeded, and an engine that holds the memory which a training is about to take."""
    if why == "short of memory":
        monkeypatch.setattr(proc, "available", lambda: 1 << 20)
    with Children(1) as children:
        first, _ = children.run(spec(why, keep=why != "off"), _quiet)
        children.run(spec(), _quiet)
        assert not _alive(first["pid"])
        assert children.run(spec("b"), _quiet)[0]["served"] == ["b"]


def test_engine_with_a_large_cache_and_a_small_model_is_kept(spec, monkeypatch) -> None:
    """Catches an engine that is started anew for each model because of its keys and values (4 GiB by default), though
    what the other stages need goes by the model's weights: on 24 GB none was ever kept."""
    monkeypatch.setattr(proc, "available", lambda: LIBRARY_BYTES + 4 * ROOM * 1000)
    with Children(1) as children:
        first, _ = children.run(spec("a", do="cache"), _quiet)
        children.run(spec(), _quiet)
        assert children.run(spec("b"), _quiet)[0]["pid"] == first["pid"]


def test_dead_engine_is_replaced_without_a_word(spec) -> None:
    """Catches a job that is given to a process which died while it rested."""
    with Children(1) as children:
        first, _ = children.run(spec("a"), _quiet)
        children.run(spec(), _quiet)
        os.kill(first["pid"], signal.SIGKILL)
        while _alive(first["pid"]):
            time.sleep(0.01)
        second, _ = children.run(spec("b"), _quiet)
        assert second["pid"] != first["pid"] and second["served"] == ["b"]


def test_stale_engine_is_ended_and_the_work_goes_on_counted_and_said(spec) -> None:
    """Catches a job that fails for its engine's sake, one that is lost because another job of its process found out
    first, and a restart that nobody hears of."""
    events: list[dict] = []
    done: list[dict] = []
    with Children(1) as children:
        first, _ = children.run(spec("a"), events.append)

        def run() -> None:
            done.append(children.run(spec("b", "meet"), events.append)[0])

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not _alive(first["pid"])
    assert {one["pid"] for one in done} - {first["pid"]} == {one["pid"] for one in done} and len(done) == 2
    assert [one["engine_restarts"] for one in done] == [1, 1] and "engine_restarts" not in first
    assert {event["note"] for event in events} == {"b: still answers as a."}


def test_engine_that_never_serves_is_an_error(spec) -> None:
    """Catches a restart without an end."""
    with Children(1) as children, pytest.raises(NotReloaded, match="never good"):
        children.run(spec("a", "always stale"), _quiet)
    assert issubclass(NotReloaded, StageFailed)


def test_kept_engine_dies_with_a_parent_that_is_killed(spec, tmp_path) -> None:
    """Catches a resting engine that keeps its memory when the run was ended by `kill -9`."""
    script = textwrap.dedent(
        f"""
        import sys, time
        from spin_core.runtime.child import Children
        with Children(1) as children:
            print(children.run({spec("a")!r}, lambda event: None)[0]["pid"], flush=True)
            print(children.run({spec()!r}, lambda event: None)[0]["pid"], flush=True)
            time.sleep(600)
        """
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(_alive, pids))
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while any(map(_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_alive, pids))
