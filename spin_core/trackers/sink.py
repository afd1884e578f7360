"""The process of one tracker: `python -m spin_core.trackers.sink`.

On standard input come JSON lines: whose board it is, then `{"step": title, "key": …, "at": …, "values": {…}}`. On what
was standard output go `{"place": …}` once the board is open and `{"warning": …}` when it first fails; prints of
libraries go to standard error. When standard input ends (the run is over, or was killed), what came is still sent.

A board that fails is opened again every RETRY_SECONDS; all that came is kept, and what it then lacks is sent. One
process at a time has a board: a run that is started again waits for the sink of the one that was killed. Where a step
has another key than the board's (the data changed, or the code), its curves would lie over the old ones: the run gets
another board, `name-2`, with all of its curves.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spin_core.errors import one_line
from spin_core.trackers.boards import BOARDS, QUIET, Board, Identity, Point

RETRY_SECONDS = 30.0
Say = Callable[[dict[str, str]], None]
PACKAGES = {"mlflow": "mlflow-skinny"}  # where it has another name than the tracker
IN_A_CHECKOUT = "(in a checkout `.venv/bin/pip install -c constraints.txt -e '.[trackers]'`)"


class Items:
    """What came so far. A thread adds, another reads."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []
        self._ended = False
        self._changed = threading.Condition()

    def add(self, item: dict[str, Any] | None) -> None:
        """None: nothing comes any more."""
        with self._changed:
            if item is None:
                self._ended = True
            else:
                self._items.append(item)
            self._changed.notify_all()

    def get(self, place: int) -> dict[str, Any] | None:
        """The item of this number, waited for; None where none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or place < len(self._items))
            return self._items[place] if place < len(self._items) else None

    def ended(self, seconds: float) -> bool:
        """Whether nothing comes any more, within so long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, seconds)


class Keys:
    """Which steps the run's newest board has, by their keys: a small file, replaced at once."""

    def __init__(self, file: Path) -> None:
        self._file, self.number, self._keys, self._begun = file, 1, dict[str, str](), False
        with suppress(OSError, ValueError, TypeError, KeyError):
            held = json.loads(file.read_text(encoding="utf-8"))
            self.number, self._keys = int(held["board"]), dict(held["keys"])

    def other(self, step: str, key: str) -> bool:
        """Whether the board has this step of another key; then the next board is begun, once: what comes in one run
        is of one board."""
        if self._begun or self._keys.get(step, key) == key:
            return False
        self.number, self._keys, self._begun = self.number + 1, {}, True
        return True

    def add(self, step: str, key: str) -> None:
        """Before the first figure of a step is sent."""
        if step not in self._keys:
            self._keys[step] = key
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(".tmp")
            draft.write_text(json.dumps({"board": self.number, "keys": self._keys}), encoding="utf-8")
            os.replace(draft, self._file)


class Sink:
    """Sends what comes to one run's board in one tracker."""

    def __init__(self, head: dict[str, Any], items: Items, say: Say) -> None:
        self._tracker, self._head, self._items, self._say = head["tracker"], head, items, say
        self._folder = Path(head["folder"])
        self._name = f"{head['run']}.{self._tracker}"

    def run(self) -> None:
        """Until nothing comes any more and all is sent, or it cannot be."""
        warned = False
        while True:
            try:
                with locked(self._folder / "locks" / self._name):
                    return self._send()
            except ImportError as error:
                return self._warn(missing(self._tracker) or one_line(error, 300, kind=True))
            except Exception as error:
                if not warned:
                    self._warn(one_line(error, 300, kind=True))
                warned = True
                if self._items.ended(RETRY_SECONDS):
                    return None

    def _send(self) -> None:
        keys = Keys(self._folder / "keys" / f"{self._name}.json")
        while not self._fill(keys):
            pass

    def _fill(self, keys: Keys) -> bool:
        """Send what the newest board lacks of all that came and comes; False where a step is of another board."""
        board: Board | None = None
        place, there = 0, set[Point]()
        try:
            while (item := self._items.get(place)) is not None:
                if keys.other(item["step"], item["key"]):
                    return False
                if board is None:
                    board = self._open(keys.number)
                    there = board.there()
                    self._say({"place": board.place})
                keys.add(item["step"], item["key"])
                new = {name: value for name, value in item["values"].items() if (name, item["at"]) not in there}
                if new:
                    board.log(new, item["at"])
                    there |= {(name, item["at"]) for name in new}
                place += 1
            return True
        finally:
            if board:
                board.close()

    def _open(self, number: int) -> Board:
        from accelerate import PartialState

        PartialState(cpu=True)  # accelerate's trackers ask it whether they may log
        run = self._head["run"] if number == 1 else f"{self._head['run']}-{number}"
        return BOARDS[self._tracker](Identity(self._head["project"], run, self._folder, self._head["config"]))

    def _warn(self, why: str) -> None:
        self._say({"warning": why})


def missing(tracker: str) -> str:
    """That its package is not installed, and how it is; empty where it is there."""
    if importlib.util.find_spec(tracker):
        return ""
    package = PACKAGES.get(tracker, tracker)
    checkout = "" if tracker == "trackio" else f" {IN_A_CHECKOUT}"
    return f"the package {tracker} is not installed; `pip install {package}`{checkout}, or leave {tracker} out"


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """As the only process that has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Serve one board until standard input ends."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    items = Items()
    head = json.loads(sys.stdin.readline())

    def read() -> None:
        for line in sys.stdin:
            with suppress(ValueError):  # half a line of a run that was killed
                items.add(json.loads(line))
        items.add(None)

    def say(event: dict[str, str]) -> None:
        with suppress(OSError):  # nobody listens any more
            events.write(json.dumps(event) + "\n")

    threading.Thread(target=read, daemon=True).start()
    Sink(head, items, say).run()


if __name__ == "__main__":
    main()
