"""Child processes: what they raise, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from spin_core.child import Child, Children
from spin_core.errors import BadInput, ChildDied, StageFailed

STAGE = '''
"""Stages that misbehave, for the tests of the child processes."""
import os, signal, subprocess, sys, time
from spin_core.errors import BadInput
from spin_core.section import Section

class Config(Section):
    do: str
    text: str = ""

def run(inputs, config, job):
    if config.do == "bad input":
        raise BadInput(config.text)
    if config.do == "print":
        print("a library's print on standard output")
        return {"pid": os.getpid()}
    if config.do == "bug":
        return {}["missing"]
    if config.do == "die":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if config.do == "hang":
        (job.out / "pid").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        time.sleep(600)
    with job.progress("work", 2, "units") as bar:
        bar.advance(2, speed=1.5)
    return {"done": True}
'''


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "bad_stage.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(do: str, text: str = "") -> dict:
        config = {"do": do, "text": text}
        places = {"out": str(tmp_path), "scratch": str(tmp_path)}
        return {"module": "bad_stage", "config": config, "inputs": {}, "digests": {}, "runtime": {}, **places}

    return make


def _ended(pid: int) -> bool:
    """Whether the process is gone (or a zombie that nobody has waited for)."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_child_serves_several_jobs_and_keeps_prints_off_the_protocol(spec):
    """Catches a child per job (a model would be loaded for each shard), and a print that breaks the JSON lines."""
    events: list[dict] = []
    with Children(1) as children:
        pids = {children.run(spec("print"), events.append)[0]["pid"] for _ in range(2)}
        summary, _ = children.run(spec("work"), events.append)
    assert len(pids) == 1
    assert summary == {"done": True}
    assert events[-1]["done"] == 2


def test_errors_keep_their_kind_and_the_child_goes_on(spec):
    """Catches bad input that turns into a failure (exit code 1 for 2), and an exception that ends the child."""
    with Children(1) as children:
        with pytest.raises(BadInput, match="line 7"):
            children.run(spec("bad input", "rows.jsonl line 7: mend it."), print)
        with pytest.raises(StageFailed, match="bad_stage: KeyError") as failed:
            children.run(spec("bug"), print)
        assert not isinstance(failed.value, ChildDied), "a bug is the same bug the second time"
        assert children.run(spec("work"), print)[0] == {"done": True}


def test_dead_child_says_how_and_its_last_words(spec):
    """Catches an end without an answer that is taken for an empty one, and a dead child that is used again."""
    with Children(1) as children:
        with pytest.raises(ChildDied, match=r"SIGKILL[^$]*the last words"):
            children.run(spec("die"), print)
        assert children.run(spec("work"), print)[0] == {"done": True}


def test_timeout_ends_the_child_and_what_it_started(spec, tmp_path):
    """Catches a time-out that kills the child and leaves its own child on the GPU."""
    with Children(1) as children, pytest.raises(StageFailed, match="stage_timeout = 5 s"):
        children.run(spec("hang"), print, timeout=5)
    assert _ended(int((tmp_path / "pid").read_text()))


def test_child_of_a_killed_parent_ends_with_what_it_started(spec, tmp_path):
    """Catches an orphan: the parent is SIGKILLed, so nothing of it can clean up."""
    script = textwrap.dedent(f"""
        from spin_core.child import Child
        child = Child()
        print(child.process.pid, flush=True)
        child.run({spec("hang")!r}, print)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert parent.stdout
    child = int(parent.stdout.readline())
    pid_file = tmp_path / "pid"
    for _ in range(3000):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.01)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert _ended(child)
    assert _ended(int(pid_file.read_text()))


def test_closed_children_take_no_job(spec):
    """Catches a child that is started while the run is being ended, and then outlives it."""
    children = Children(1)
    with children:
        pass
    with pytest.raises(StageFailed, match="being ended"):
        children.run(spec("work"), print)
    assert all(slot.child is None for slot in children._slots)


def test_child_is_its_own_process_group():
    """Catches a child that shares its parent's group: ending it by group would end the parent."""
    child = Child()
    assert os.getpgid(child.process.pid) == child.process.pid != os.getpgid(0)
    child.kill()


def test_callback_that_raises_leaves_no_answer_for_the_next_job(spec):
    """Catches a child that goes back to the pool while still at work: the next job would get this one's answer."""

    def broken(event: dict) -> None:
        raise OSError("the terminal is gone")

    with Children(1) as children:
        with pytest.raises(OSError, match="terminal"):
            children.run(spec("work"), broken)
        assert "pid" in children.run(spec("print"), print)[0]


def test_module_in_the_current_folder_is_not_imported(spec, tmp_path, monkeypatch):
    """Catches `python -m`, which puts the user's data folder first on the path: its queue.py would run."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("queue", "tqdm", "json"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w'); raise SystemExit")
    monkeypatch.chdir(folder)
    with Children(1) as children:
        assert children.run(spec("work"), print)[0] == {"done": True}
    assert not (tmp_path / "marker").exists()
