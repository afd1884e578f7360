"""The end of a run whose Prefect server does not take it: it is gone, silent, or its database is locked.

Prefect's client would retry for minutes (62 s for each of several requests, more where the server is silent). By then
all is in the store and laid out for people, so the command waits for SECONDS, reports what came of the run and ends.
The server may show the run as Running for ever.

And the end of a run that somebody asks for with SIGTERM, as Slurm does before the time of a job is up.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows.live import put_away
from spin_core.errors import Stopped, one_line
from spin_core.runtime.child import Children

SECONDS = 20.0

Outcome = dict | Exception
Report = Callable[[Outcome, str], int]
"""Reports what came of a run, and what its server did; gives the exit code."""


class _Watch:
    """Ends this process `SECONDS` after `outcome_known`, unless `over` comes first."""

    def __init__(self, report: Report):
        self.report = report
        self.outcome: Outcome | None = None
        self._leaving, self._over = threading.Lock(), False
        self._timer: threading.Timer | None = None

    def outcome_known(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            if isinstance(outcome, Exception):  # what went wrong behind a run's end is what came of it
                self.outcome = outcome
            return
        self.outcome = outcome
        self._timer = threading.Timer(SECONDS, self._leave)
        self._timer.daemon = True
        self._timer.start()

    def over(self) -> None:
        """From here on the process goes its own way. Does not return while it is being left."""
        if self._timer:
            self._timer.cancel()
        if not self._over:
            self._leaving.acquire()
        self._over = True

    def _leave(self) -> None:
        if self.outcome is None or not self._leaving.acquire(blocking=False):
            return
        code = 1
        try:
            put_away()
            code = self.report(self.outcome, f"did not take the end of this run in {SECONDS:.0f} s")
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # No other way leads out: the main thread is in Prefect's client, which takes an exception for a crash and
            # reports it to the server. What must not be lost is durable; child processes end with their standard input.
            os._exit(code)


_watches: list[_Watch] = []


@contextmanager
def watched(report: Report) -> Iterator[None]:
    """Inside, a run of which only the server does not know ends this process, with the exit code of `report`: after
    SECONDS, or as soon as Prefect gives up. What a run failed with is raised as it was."""
    # The client's thread for events prints each one that a lost server did not get, 2 kB of it, at any level set.
    logging.getLogger("prefect._internal.concurrency").addFilter(lambda record: False)
    _watches.append(watch := _Watch(report))
    try:
        yield
    except Exception as error:
        watch.over()
        if watch.outcome is None:
            raise
        if isinstance(watch.outcome, Exception):
            raise watch.outcome from None
        sys.exit(report(watch.outcome, f"did not take the end of this run ({one_line(error, kind=True)})"))
    finally:
        _watches.remove(watch)
        watch.over()


@contextmanager
def heeding_sigterm(children: Children) -> Iterator[None]:
    """Inside, SIGTERM ends the run in order, with exit code 75: a training writes a checkpoint, what else computes is
    ended, nothing new begins. What does not end by itself then (it waits for a work pool) is left after SECONDS. To be
    entered in the flow, since Prefect's engine has its own answer to SIGTERM, and by the main thread; else it does
    nothing."""

    def end() -> None:
        said = "SIGTERM: a training writes its checkpoint, then the run ends; nothing new begins."
        sys.stderr.write(f"spinloop: {said}\n")
        sys.stderr.flush()
        children.stop()
        if _watches and _watches[-1].outcome is None:
            outcome_known(Stopped("ended by SIGTERM; finished steps are in the store, so start it again."))

    def asked(*_: object) -> None:
        threading.Thread(target=end, daemon=True).start()  # not here, in the midst of whatever holds locks

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def outcome_known(outcome: Outcome) -> None:
    """What came of the run is known; only its server does not know yet. Nothing happens where nobody watches."""
    if _watches:
        _watches[-1].outcome_known(outcome)
