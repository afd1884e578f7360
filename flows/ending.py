"""The end of a run whose Prefect server does not take it: it is gone, silent, or its database is locked.

Prefect's client would retry for minutes (62 s for each of several requests, more where the server is silent). By then
all is in the store and laid out for people, so the command waits for SECONDS, reports what came of the run and ends.
The server may show the run as Running for ever.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spin_core.errors import one_line

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


def outcome_known(outcome: Outcome) -> None:
    """What came of the run is known; only its server does not know yet. Nothing happens where nobody watches."""
    if _watches:
        _watches[-1].outcome_known(outcome)
