"""What a running stage is given besides its inputs and its config: where to write, how to run, whom to tell."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from spin_core.config.runtime import Runtime

Inputs = dict[str, Path | list[Path]]
"""Input name → the directory (or file) to read, or a list of them. Content digests are in `Job.digests` under the
same names."""


@dataclass
class Bar:
    """One progress bar: `advance` moves it, keyword figures (tokens/s, loss) are shown beside it."""

    send: Callable[[dict], None]
    label: str
    total: int
    unit: str
    done: int = 0
    _sent: float = 0.0

    def advance(self, n: int = 1, **figures: float) -> None:
        self.done += n
        now = time.monotonic()
        if now - self._sent < 0.2 and self.done < self.total:
            return
        self._sent = now
        self.send({"label": self.label, "done": self.done, "total": self.total, "unit": self.unit, "figures": figures})


@dataclass
class Job:
    """One stage's run. `out` is published when `run` returns; `scratch` survives a kill and is given to the rerun of
    the same key."""

    out: Path
    scratch: Path
    runtime: Runtime = field(default_factory=Runtime)
    digests: dict[str, str | list[str]] = field(default_factory=dict)
    send: Callable[[dict], None] = lambda event: None
    figures: dict[str, float] = field(default_factory=dict)
    """What an engine measured of itself (tokens per second, …), for the record."""
    engine: str = ""
    """What computed, with versions: an engine may run under another interpreter than the one that keeps the record."""
    _noted: set[str] = field(default_factory=set)

    def note(self, text: str) -> None:
        """One sentence that the user should see while the stage runs, once. Of several processes the first speaks."""
        if text not in self._noted and os.environ.get("RANK", "0") == "0":
            self._noted.add(text)
            self.send({"note": text})

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        """A bar over `total` units (`tokens`, `steps`, `pairs`, `rows`; `groups` are either of the two)."""
        bar = Bar(self.send, label, total, unit)
        bar.advance(0)
        yield bar
        self.send({"label": label, "done": bar.done, "total": total, "unit": unit, "figures": {}, "closed": True})
