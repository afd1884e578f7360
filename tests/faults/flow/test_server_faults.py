"""The flow's process is killed, or Prefect's server is killed, falls silent, fails or locks up, in mid-run.

What was finished is in the store, the same command finishes the rest, and nothing hangs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.fault import LEVEL, Fault
from tests.faults.flow.cases import assert_clean, torn
from tests.faults.flow.servers import Server
from tests.faults.flow.smoke import Smoke
from tests.faults.flow.storm import Marked, command

HANGS = 30.0  # seconds from the last published step (or the fault, if that is later) to the end of the command
KINDS = {"pr": ("killed", "failing", "locked"), "night": ("killed", "failing", "locked", "silent")}
FAST = "iterations=0"

Inodes = dict[str, int]


def published(store: Path) -> Inodes:
    """`stage/key` of every record → its inode: it stays, or it was written again."""
    root = store / "spinloop-store-v1" / "records"
    return {str(path.relative_to(root)): path.stat().st_ino for path in root.glob("*/*.json")}


class Trial:
    """A run of the smoke profile to which something happens, and the same command once more."""

    def __init__(self, profile: Path, store: Path, *settings: str, **env: str):
        self.command, self.store, self.env = [*command(profile, store, *settings), "--json"], store, env
        self.run = Marked(self.command, **env)
        self.seen: Inodes = {}
        self.last = 0.0

    def until(self, count: int) -> None:
        """Wait until so many steps are published."""
        while len(published(self.store)) < count:
            assert self.run.process.poll() is None, self.run.finish()
            time.sleep(0.005)

    def end(self, seconds: float) -> tuple[int, str, float]:
        """Exit code and output, and the seconds from the last published step, or from now if that is later, to the
        end."""
        last, known = time.monotonic(), len(published(self.store))
        stop = last + 200
        while self.run.process.poll() is None and time.monotonic() < stop:
            if len(published(self.store)) > known:
                last, known = time.monotonic(), len(published(self.store))
            assert time.monotonic() - last < 60 + seconds, f"nothing new for so long: {self.run.alive()}"
            time.sleep(0.05)
        hung = time.monotonic() - last
        code, out = self.run.finish(10)
        assert not (left := self.run.gone()), f"left behind: {left}"
        return code, out, hung

    def assert_recovers(self, smoke: Smoke | None = None) -> None:
        """The store is intact, the same command finishes, what was published is Cached and was not written again, the
        digests are those of the undisturbed run."""
        assert torn(self.store) == []
        before = published(self.store)
        again = Marked(self.command, **self.env)
        code, out = again.finish()
        assert code == 0, out
        assert not again.gone()
        after = published(self.store)
        assert before.items() <= after.items(), "a finished step was published again"
        steps = json.loads((self.store / "spinloop-store-v1" / "latest" / "steps.json").read_text())
        for step in steps:
            was = f"{step['stage']}/{step['key']}.json" in before
            assert step["state"] == ("Cached" if was else "ran"), step
            if smoke:
                assert step["digest"] == smoke.digests[step["stage"], step["label"]], step
        assert_clean(self.store)


@pytest.mark.timeout(3600)
def test_flow_killed_at_a_random_step_resumes(profile, smoke, server, tmp_path: Path) -> None:
    """Catches steps that are published in the end only, a lock or a flow run that outlives its process and is waited
    for, and a finished step that is computed again."""
    places = iter(range(1000))

    def trial(rng: random.Random) -> None:
        trial = Trial(profile, tmp_path / f"flow{next(places)}")
        trial.until(rng.randint(1, len(smoke.steps) - 1))
        os.kill(trial.run.process.pid, signal.SIGKILL)
        trial.run.finish(30)
        assert not (left := trial.run.gone()), f"left behind: {left}"
        trial.assert_recovers(smoke)

    Fault("R3", "kill -9 of the flow's process at a random step", pr=1, night=10, release=50).run(trial)


@pytest.mark.timeout(3600)
@pytest.mark.full
def test_server_killed_at_a_random_step_and_started_again_the_run_goes_on(profile, smoke, tmp_path: Path) -> None:
    """Catches a run that fails because its server was restarted, one that hangs, and a rerun that begins anew."""
    places = iter(range(1000))

    def trial(rng: random.Random) -> None:
        place = tmp_path / f"server{next(places)}"
        with Server(place / "prefect") as own:
            trial = Trial(profile, place / "store", **own.settings(), PREFECT_API_URL=own.url)
            trial.until(rng.randint(1, len(smoke.steps) - 1))
            own.killed()
            own.start()
            code, out, hung = trial.end(HANGS)
            assert code == 0, out
            assert hung < HANGS, f"hung for {hung:.0f} s"
            trial.assert_recovers(smoke)

    Fault("R3", "kill -9 of Prefect's server at a random step, and its restart", pr=1, night=10, release=50).run(trial)


@pytest.mark.timeout(1200)
@pytest.mark.full
def test_server_that_is_lost_for_good_costs_no_finished_step(profile, tmp_path: Path) -> None:
    """Catches a computation that is thrown away, or not published, because the server cannot be notified; minutes of
    retries after the last step; a traceback; and a rerun that computes again."""

    def trial(kind: str) -> None:
        with Server(tmp_path / kind / "prefect") as own:
            settings = (FAST, "sft.epochs=4")
            trial = Trial(profile, tmp_path / kind / "store", *settings, **own.settings(), PREFECT_API_URL=own.url)
            scratch = trial.store / "spinloop-store-v1" / "scratch"
            while not list(scratch.glob("sft-*/checkpoint-*")):
                assert trial.run.process.poll() is None, trial.run.finish()
                time.sleep(0.005)
            getattr(own, kind)()
            code, out, hung = trial.end(HANGS)
            assert hung < HANGS, f"hung for {hung:.0f} s"
            assert code == 0 and "did not take the end of this run" in out, out
            assert "Traceback" not in out
            assert [json.loads(line)["ran"] for line in out.splitlines() if line.startswith("{")] == [8], out
            finished = published(trial.store)
            own.healed()
            trial.assert_recovers()
            assert published(trial.store) == finished, "something was computed again"

    kinds = KINDS.get(LEVEL, KINDS["night"])
    with ThreadPoolExecutor(len(kinds)) as pool:  # they wait more than they compute
        trials = {kind: pool.submit(trial, kind) for kind in kinds}
        fault = Fault("R29", f"Prefect's server is {', '.join(kinds)} while a stage computes, for good")
        fault.each(kinds, lambda kind: trials[kind].result())
