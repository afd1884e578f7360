"""Child processes: what they raise, and that none is left behind."""

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

from spin_core.errors import BadInput, ChildDied, StageFailed, Stopped
from spin_core.runtime.child import Child, Children
from spin_core.runtime.worker import HIDDEN

STAGE = '''
"""Stages that misbehave, for the tests of the child processes."""
import os, signal, subprocess, sys, time
from spin_core.errors import BadInput, ChildDied, Stopped
from spin_core.config.base import Section

class Config(Section):
    do: str
    text: str = ""

def run(inputs, config, job):
    if config.do == "bad input":
        raise BadInput(config.text)
    if config.do == "print":
        print("a library's print on standard output")
        return {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "python": sys.executable}
    if config.do == "import":
        try:
            __import__(config.text)
        except ImportError:
            return {"imported": False}
        return {"imported": True}
    if config.do == "engine died":
        ballast = b"x" * (400 << 20)  # so that the kernel needs a moment to end it
        print("the engine's last words", file=sys.stderr, flush=True)
        raise ChildDied("engine: its worker was killed")
    if config.do == "meet":
        mine, theirs = config.text.split()
        (job.out / mine).touch()
        while not (job.out / theirs).exists():
            time.sleep(0.01)
        return {"pid": os.getpid(), "met": theirs}
    if config.do == "bug":
        return {}["missing"]
    if config.do == "die":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if config.do == "hang":
        (job.out / "new").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        (job.out / "new").rename(job.out / "pid")  # who waits for it finds the number in it
        time.sleep(600)
    if config.do == "train":
        (job.out / "begun").touch()
        while not job.ending.wait(0.01):
            pass
        raise Stopped("trained so far")
    with job.progress("work", 2, "units") as bar:
        bar.advance(2, speed=1.5)
    return {"done": True}
'''


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "bad_stage.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(do: str, text: str = "", **more: object) -> dict:
        config = {"do": do, "text": text}
        places = {"out": str(tmp_path), "scratch": str(tmp_path)}
        return {
            "stage": "bad_stage",
            "module": "bad_stage",
            "config": config,
            "inputs": {},
            "digests": {},
            "runtime": {},
            **places,
            **more,
        }

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
            children.run(spec("bad input", "rows.jsonl line 7: correct it."), print)
        with pytest.raises(StageFailed, match="bad_stage: KeyError") as failed:
            children.run(spec("bug"), print)
        assert not isinstance(failed.value, ChildDied), "a bug is the same bug the second time"
        assert children.run(spec("work"), print)[0] == {"done": True}


def test_slow_libraries_are_hidden_but_from_the_harness(spec, tmp_path):
    """Catches a start that loads scikit-learn or scipy with transformers, and lm_eval's tasks that cannot load them in
    a process which had another stage before."""
    for name in HIDDEN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    with Children(1) as children:
        for stage in ("bad_stage", "harness"):
            seen = [children.run(spec("import", name, stage=stage), print)[0]["imported"] for name in HIDDEN]
            assert seen == [stage == "harness"] * len(HIDDEN)


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
        from spin_core.runtime.child import Child
        child = Child()
        print(child.process.pid, flush=True)
        child.run({spec("hang")!r}, print)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert parent.stdout
    child = int(parent.stdout.readline())
    started = _started(tmp_path)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert _ended(child)
    assert _ended(started)


def _started(folder: Path) -> int:
    """The process that the hanging stage has started."""
    for _ in range(3000):
        if (folder / "pid").exists() and (folder / "pid").read_text():
            return int((folder / "pid").read_text())
        time.sleep(0.01)
    raise AssertionError("the stage has not begun in 30 s")


def test_child_killed_with_its_parent_leaves_nothing_that_it_started(spec, tmp_path):
    """Catches an engine's worker that keeps its GPU when parent and child are killed at once, so that neither can end
    it: only the guard is left."""
    script = "from spin_core.runtime.child import Child; c = Child(); print(c.process.pid, flush=True); "
    script += f"c.run({spec('hang')!r}, print)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert parent.stdout
    child, started = int(parent.stdout.readline()), _started(tmp_path)
    os.kill(child, signal.SIGSTOP)  # so that it cannot act on the parent's end before its own
    os.kill(parent.pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    parent.wait()
    assert _ended(started)


def test_child_killed_alone_is_reported_at_once_with_what_it_started_gone(spec, tmp_path):
    """Catches a parent that waits forever because a process which the dead child started holds the pipe open."""
    child = Child()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            child.run(spec("hang"), print)
        except ChildDied as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    started = _started(tmp_path)
    os.kill(child.process.pid, signal.SIGKILL)
    waiter.join(timeout=10)
    assert errors and "SIGKILL" in str(errors[0])
    assert _ended(started)


def test_jobs_that_share_an_engine_run_side_by_side_in_one_process(spec):
    """Catches jobs of one engine that wait for each other (they would meet never), and events given to the wrong
    job."""
    answers: list[dict] = []
    with Children(1) as children:

        def run(mine: str, theirs: str) -> None:
            met = spec("meet", f"{mine} {theirs}", process="engine m", share=2)
            answers.append(children.run(met, print, timeout=60)[0])

        threads = [threading.Thread(target=run, args=pair) for pair in (("a", "b"), ("b", "a"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=90)
    assert {one["met"] for one in answers} == {"a", "b"}
    assert len({one["pid"] for one in answers}) == 1


def test_other_kind_of_job_gets_another_process_and_the_first_is_ended(spec):
    """Catches a model's engine that serves another model's job, and one that keeps its memory beside the next."""
    with Children(1) as children:
        first = children.run(spec("print", process="engine a"), print)[0]["pid"]
        assert children.run(spec("print", process="engine a"), print)[0]["pid"] == first
        second = children.run(spec("print", process="engine b"), print)[0]["pid"]
        assert _ended(first)
        assert children.run(spec("print"), print)[0]["pid"] not in (first, second)
        assert _ended(second)


def test_second_job_of_a_kind_takes_a_free_place_before_a_busy_one(spec):
    """Catches two workers of which one has both shards and the other none."""
    answers: list[int] = []
    with Children(2) as children:

        def run(mine: str, theirs: str) -> None:
            met = spec("meet", f"{mine} {theirs}", process="engine m", share=2)
            answers.append(children.run(met, print, timeout=60)[0]["pid"])

        threads = [threading.Thread(target=run, args=pair) for pair in (("c", "d"), ("d", "c"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=90)
    assert len(set(answers)) == 2


def test_engine_that_died_ends_its_process_with_the_last_words(spec):
    """Catches a child with a dead engine in it that is given the next shard."""
    with Children(1) as children:
        first = children.run(spec("print"), print)[0]["pid"]
        with pytest.raises(ChildDied, match=r"worker was killed\n[^$]*last words"):
            children.run(spec("engine died"), print)
        assert _ended(first)
        assert children.run(spec("work"), print)[0] == {"done": True}


def test_both_jobs_of_a_dead_engine_raise_child_died(spec):
    """Catches the second job of a shared engine that ends with a bug of ours instead of a death worth another try: its
    process is still being ended when it looks up how it ended."""
    errors: list[BaseException] = []
    with Children(1) as children:

        def run(do: str, text: str) -> None:
            try:
                children.run(spec(do, text, process="engine m", share=2), print, timeout=60)
            except BaseException as error:
                errors.append(error)

        waiter = threading.Thread(target=run, args=("meet", "e f"))
        waiter.start()
        run("engine died", "")
        waiter.join(timeout=90)
    assert [type(error) for error in errors] == [ChildDied, ChildDied]


def test_place_shows_its_gpus_and_the_job_its_interpreter(spec, tmp_path):
    """Catches two workers on one GPU while another is idle, and a job that runs under this interpreter instead of the
    engine's."""
    # Beside ours: a link elsewhere finds the environment's packages only under some builds of Python.
    own = Path(sys.executable)
    other = next(one for name in ("python", "python3") if (one := own.with_name(name)) != own and one.exists())
    with Children(2, ["0,1", "2,3"]) as children:
        assert children.run(spec("print"), print)[0]["gpus"] == "0,1"
        job = spec("print", process="engine m", python=str(other))
        assert children.run(job, print)[0]["gpus"] == "2,3"
        assert children.run(job, print)[0]["python"] == str(other)


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


@pytest.mark.parametrize(
    ("stage", "do", "begun", "says"),
    [("finetune", "train", "begun", "trained so far"), ("generate", "hang", "pid", "generate: ended by SIGTERM")],
)
def test_work_that_is_stopped_ends_in_order_and_nothing_begins(spec, tmp_path, stage, do, begun, says):
    """Catches a training that is killed before it has written its checkpoint, other work that the end waits for, a
    process that died of it and is tried again, and a job that begins behind it."""
    ends: list[BaseException] = []

    def work() -> None:
        try:
            children.run(spec(do, stage=stage), print)
        except BaseException as error:
            ends.append(error)

    with Children(1) as children:
        thread = threading.Thread(target=work)
        thread.start()
        while not (tmp_path / begun).exists():
            time.sleep(0.01)
        children.stop()
        thread.join(timeout=10)
        assert [type(end) for end in ends] == [Stopped] and says in str(ends[0]) and ends[0].exit_code == 75
        with pytest.raises(Stopped, match="not begun"):
            children.run(spec("work"), print)
    if do == "hang":
        assert _ended(int((tmp_path / "pid").read_text()))
