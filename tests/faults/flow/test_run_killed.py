"""`kill -9` of the entire process group in mid-run: nothing finished is lost, and the rerun ends where an
uninterrupted run would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _killed_when(ready: Callable[[], bool], command: list[str]) -> None:
    """Start the command in its own process group and SIGKILL the group as soon as `ready`."""
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(12000):
        if ready() or process.poll() is not None:
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _command(tiny: Path, store: Path, *settings: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "flows.cli", "run", str(tiny), "--store", str(store), *sets]


def _workers_of(store: Path) -> list[str]:
    """Processes that have a file of the store's folder open or on their command line."""
    pids = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"spin_core.runtime.worker" in cmdline.read_bytes() and any(
                str(store) in os.readlink(fd) for fd in (cmdline.parent / "fd").iterdir()
            ):
                pids.append(cmdline.parent.name)
        except OSError:
            continue
    return pids


@pytest.mark.full
def test_run_killed_during_generate_keeps_the_finished_shards(run, server, tiny, tmp_path: Path) -> None:
    """Catches shards that are published all together at the end, and a lock that outlives its killed holder."""
    store = tmp_path / "store"
    records = store / "spinloop-store-v1" / "records" / "generate"
    long = ("generate.max_new_tokens=60", "iterations=1", "dataset.limit=400", "chat.max_prompt_length=40")
    _killed_when(lambda: records.exists() and len(list(records.glob("*.json"))) >= 2, _command(tiny, store, *long))
    kept = {path.stem for path in records.glob("*.json")}
    assert len(kept) >= 2
    steps = [step for step in run(store, *long) if step["stage"] == "generate"]
    assert {step["key"] for step in steps if step["state"] == "Cached"} == kept
    assert any(step["state"] == "ran" for step in steps), "killed too late to show anything"
    assert not _workers_of(store), "a killed run leaves no process behind"


@pytest.mark.full
def test_run_killed_during_finetune_goes_on_from_its_checkpoint_to_the_same_model(
    run, server, tiny, tmp_path: Path
) -> None:
    """Catches training that begins again, and a resumed optimiser that is not the one that was saved."""
    long = ("finetune.schedule_epochs=40", "iterations=1", "runtime.micro_tokens=256")
    store, straight_store = tmp_path / "killed", tmp_path / "straight"
    scratch = store / "spinloop-store-v1" / "scratch"

    def trained() -> bool:
        return any(
            int(p.name.split("-")[1]) >= 5 for p in scratch.glob("finetune-*/checkpoint-*") if p.name[11:].isdigit()
        )

    _killed_when(trained, _command(tiny, store, *long))
    reached = max(int(p.name[11:]) for p in scratch.glob("finetune-*/checkpoint-*") if p.name[11:].isdigit())
    resumed = {(s["stage"], s["label"]): s for s in run(store, *long)}
    straight = {(s["stage"], s["label"]): s for s in run(straight_store, *long)}
    step = ("finetune", "iter 0")
    assert resumed[step]["digest"] == straight[step]["digest"]
    assert resumed["sft", "θ_0"]["state"] == "Cached"
    assert resumed[step]["summary"]["resumed_at"] >= reached > 0
    assert not list(scratch.glob("finetune-*")), "the checkpoints go when the stage has published"


@pytest.mark.full
def test_child_killed_alone_is_tried_again(tiny, server, tmp_path: Path) -> None:
    """Catches a run that hangs, or fails for good, when only the stage's process is killed (the kernel's way of
    reporting out of memory)."""
    store = tmp_path / "store"
    process = subprocess.Popen(
        [*_command(tiny, store, "iterations=0"), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed = False
    for _ in range(12000):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for pid in _descendants(process.pid):
            if b"spin_core.runtime.worker" in Path(f"/proc/{pid}/cmdline").read_bytes() and not killed:
                os.kill(pid, signal.SIGKILL)
                killed = True
        if killed or not children.exists():
            break
        time.sleep(0.01)
    out, err = process.communicate(timeout=200)
    assert killed
    assert process.returncode == 0, err
    assert json.loads(out)["ran"] == 8


def _descendants(pid: int) -> list[int]:
    pids = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return pids
