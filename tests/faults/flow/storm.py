"""Runs of the command line that are killed at random moments, and what must be true of them afterwards.

Every process of a run carries a mark in its environment, which its descendants inherit whatever they do to their
names, parents, sessions and groups: so an orphan is seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[3]
MARK = "SPINLOOP_TEST_MARK"


class Marked:
    """A run of `spinloop run` and all processes that come of it."""

    def __init__(self, command: list[str], **env: str):
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **env, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output: list[str] = []
        # Read at once: a run whose pipe is full waits for its reader, which looks as if it hung.
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.output.extend(self.process.stdout)

    def alive(self) -> dict[int, str]:
        """Process → its role: parent, server, child, guard, or engine (what a child started)."""
        roles = {}
        for pid, group in marked(self.mark).items():
            with suppress(OSError):
                roles[pid] = self._role(pid, group, Path(f"/proc/{pid}"))
        return roles

    def _role(self, pid: int, group: int, folder: Path) -> str:
        if pid == self.process.pid:
            return "parent"
        line = (folder / "cmdline").read_bytes()
        if b"spin_core.runtime.worker" in line:
            return "child" if pid == group else "guard"
        return "server" if group == self.process.pid else "engine"

    def gone(self, seconds: float = 20) -> dict[int, str]:
        """What is still alive after waiting so long for nothing to be."""
        end = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < end:
            time.sleep(0.05)
        return left

    def finish(self, timeout: float = 280) -> tuple[int, str]:
        """Exit code and output."""
        code = self.process.wait(timeout)
        self.reader.join(timeout)
        return code, "".join(self.output)


def marked(mark: str) -> dict[int, int]:
    """Process → its group, of all living ones with the mark."""
    groups = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                state = (folder / "stat").read_text().rpartition(")")[2].split()
                if state[0] not in "ZX":
                    groups[int(folder.name)] = int(state[2])
    return groups


def command(profile: Path, store: Path, *settings: str) -> list[str]:
    """`spinloop run` of a profile as a process."""
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "flows.cli", "run", str(profile), "--store", str(store), *sets]


def records(store: Path) -> dict[str, tuple[int, int]]:
    """Key of every published shard → the record's inode and time: both stay, or it was written again."""
    folder = store / "spinloop-store-v1" / "records" / "generate"
    written = {}
    for path in folder.glob("*.json"):
        stat = path.stat()
        written[path.stem] = (stat.st_ino, stat.st_mtime_ns)
    return written


def check_exactly_once(store: Path, kept: dict[str, tuple[int, int]], cached: dict[str, tuple[int, int]]) -> int:
    """After a run that finished: every prompt has one answer, `kept` records are the same files, and the run took those
    of `cached` from the store. The number of answers."""
    latest = store / "spinloop-store-v1" / "latest"
    assert kept.items() <= records(store).items(), "a finished shard was published again"
    steps = [step for step in json.loads((latest / "steps.json").read_text()) if step["stage"] == "generate"]
    assert {step["key"] for step in steps if step["state"] == "Cached"} >= set(cached), "generated again"
    answers: Counter[str] = Counter()
    for shard in latest.glob("*-generate-*"):
        answers.update(json.loads(line)["id"] for line in (shard / "answers.jsonl").read_text().splitlines())
    prompts = [
        json.loads(line)["id"]
        for file in next(latest.glob("*-tokenize")).glob("prompts/*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert answers == Counter(prompts), "a row is missing or doubled"
    return len(prompts)


def storm(profile: Path, folder: Path, kills: int, seed: int, roles: list[str], *settings: str, **env: str) -> Counter:
    """`kills` SIGKILLs at random moments of generation, at processes of random roles, over as many runs and stores as
    it takes. After each killed parent no process may be left; each store's last run must finish, exactly once. How
    often which role was hit."""
    chance, hit = random.Random(seed), Counter[str]()
    number = 0
    while hit.total() < kills:
        number += 1
        store = folder / f"store{number}"
        call = command(profile, store, *settings)
        kept: dict[str, tuple[int, int]] = {}
        code = 1
        while code != 0:
            begun = records(store)
            run = Marked(call, **env)
            if hit.total() < kills:
                _strike(run, store, chance, roles, hit, kills)
            code, out = run.finish()
            assert not (left := run.gone()), f"left behind after exit {code}: {left}"
            assert code in (0, 1, -signal.SIGKILL), out
            assert kept.items() <= records(store).items(), "a finished shard was published again"
            kept = records(store)
        check_exactly_once(store, kept, begun)
        print(f"storm: {dict(hit)} after store {number}, {len(kept)} shards", flush=True)
    return hit


def _strike(run: Marked, store: Path, chance: random.Random, roles: list[str], hit: Counter, kills: int) -> None:
    """Kill processes of one run, until its parent is the one or it ends."""
    while run.process.poll() is None and hit.total() < kills:
        role = chance.choice(roles)
        wanted = len(records(store)) + chance.choice([0, 0, 1, 2, 5])
        pause = chance.uniform(0, 1.5)
        while run.process.poll() is None and not ("child" in run.alive().values() and len(records(store)) >= wanted):
            time.sleep(0.05)
        time.sleep(pause)
        victims = [pid for pid, of in run.alive().items() if of == role]
        if not victims or not records(store):  # before the first shard there is nothing to lose
            time.sleep(0.1)
            continue
        try:
            os.kill(chance.choice(victims), signal.SIGKILL)
        except ProcessLookupError:
            continue
        hit[role] += 1
        if role == "parent":
            return
