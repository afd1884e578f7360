"""What a running stage is given besides its inputs and its config (`Job`: where to write, how to run, where notes and
progress go); where a step stands in the DAG (`Place`), and what a run keeps of it (`Entry`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spin_core.config.runtime import Runtime

Inputs = dict[str, Path | list[Path]]
"""Input name → the directory (or file) to read, or a list of them. Content digests are in `Job.digests` under the
same names."""


Role = Literal["", "start", "iteration", "control", "import"]


@dataclass(frozen=True)
class Place:
    """Where a step stands in the DAG, for whoever counts, draws or publishes steps. In no key; a step's label says the
    same to people, and nothing reads it."""

    role: Role = ""
    """`start`: makes or measures the model that the run begins with; `control`: what SPIN is compared with; `import`:
    takes something published; empty: of the whole run."""
    iteration: int | None = None
    """The t that it is a step of; of a control the last one whose training it stands for."""
    model: int | None = None
    """The k of the θ_k that it makes or measures."""
    pairs: int | None = None
    """Of score: the iteration whose pairs it reads."""
    by: int | None = None
    """Of score: the k of the θ_k whose log-probs they are, where that is not the iteration's own opponent."""
    shard: tuple[int, int] | None = None
    """Which one, from 1, of how many."""

    def as_json(self) -> dict[str, Any]:
        """The fields that say something."""
        fields = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return fields | ({"shard": list(self.shard)} if self.shard else {})

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Place:
        """What `as_json` gave. Raises TypeError for other fields."""
        shard = fields.get("shard")
        return cls(**{**fields, "shard": None if shard is None else tuple(shard)})


NOWHERE = Place()


def title(stage: str, label: str) -> str:
    """`finetune[iter 1]`"""
    return f"{stage}[{label}]" if label else stage


@dataclass
class Entry:
    """A run's ledger has one for each step: what was done, with which result."""

    stage: str
    label: str
    """For people: `iter 1, shard 3/8`."""
    key: str
    state: str
    """`Cached` or `ran`; in a plan `cached` or `would run`."""
    seconds: float | None = None
    """What the computation took when it was computed (now or then)."""
    digest: str = ""
    why: str = ""
    """In a plan: the first setting or input that makes the step miss; of a cached step how often it was replaced."""
    summary: dict[str, Any] = field(default_factory=dict)
    place: Place = NOWHERE

    @property
    def title(self) -> str:
        return title(self.stage, self.label)

    def as_json(self) -> dict[str, Any]:
        """An object of runs/<name>/steps.json."""
        return {**vars(self), "place": self.place.as_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Entry:
        """What `as_json` gave. Raises KeyError for one without a place (of an older version), TypeError for what is no
        entry."""
        return cls(**{**fields, "place": Place.from_json(fields["place"])})


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
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when the stage is to end soon: a training heeds it."""
    _noted: set[str] = field(default_factory=set)

    def note(self, text: str) -> None:
        """One sentence that the user should see while the stage runs, once. Of several processes the first speaks."""
        if text not in self._noted and os.environ.get("RANK", "0") == "0":
            self._noted.add(text)
            self.send({"note": text})

    def metrics(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl while a training is at work, for the run's trackers. Of several processes the first
        speaks."""
        if self.runtime.trackers and os.environ.get("RANK", "0") == "0":
            self.send({"metrics": line})

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        """A bar over `total` units (`tokens`, `steps`, `pairs`, `rows`; `groups` are either of the two)."""
        bar = Bar(self.send, label, total, unit)
        bar.advance(0)
        yield bar
        self.send({"label": label, "done": bar.done, "total": total, "unit": unit, "figures": {}, "closed": True})
