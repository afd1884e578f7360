"""One step of a finished run, to be computed again under faults; and what must be true afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.runtime.step import shards
from spin_core.store import fs
from spin_core.store.gc import gc
from spin_core.store.keys import key_of, payload
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.flow.forks import Done, Forks

MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Case:
    """A step, in the words of forks.py; the store that has everything but it, and how an undisturbed run ended."""

    forks: Forks
    base: Path
    request: dict[str, Any]
    key: str
    digest: str = ""
    seconds: float = 0.0

    @contextmanager
    def store(self) -> Iterator[Path]:
        """A copy of the store without the step; in memory where that is possible."""
        with empty_folder() as place:
            root = Path(shutil.copytree(self.base, place / "store", symlinks=True)) / "spinloop-store-v1"
            file = root / "records" / self.request["stage"] / f"{self.key}.json"
            if record := Store(root.parent).record(self.request["stage"], self.key):
                fs.remove(file)
                fs.remove(record.path)
            yield root.parent

    def recorded(self, place: Path) -> bool:
        return Store(place).recorded(self.request["stage"], self.key)

    def tree(self, place: Path) -> Path:
        return place / "spinloop-store-v1" / "trees" / self.digest

    def run(self, place: Path, **kill: Any) -> Done:
        return self.forks.run(self.request, place, **kill)

    def assert_recovers(self, place: Path) -> Done:
        """The store is intact; the same command finishes, and computes what was not published and nothing else; another
        process gets the same bytes as a hit; gc leaves no work in hand. How the same command ended."""
        assert torn(place) == [], "torn at the instant of the fault"
        published = self.recorded(place)
        again = self.run(place)
        assert (again.status, again.digest) == (0, self.digest), again
        assert again.computed is not published, "computed again" if published else "not computed"
        fresh = self.run(place)
        assert (fresh.status, fresh.digest, fresh.computed) == (0, self.digest, False), fresh
        assert_clean(place)
        return again


def torn(place: Path) -> list[str]:
    """What is wrong with the store except leftovers in tmp/, which a killed process may leave."""
    return [line for line in verify(Store(place)) if not line.startswith("tmp/")]


def assert_clean(place: Path) -> None:
    """gc leaves nothing in tmp/ and scratch/, and nothing is wrong."""
    store = Store(place)
    gc(store)
    left = [path for name in ("tmp", "scratch") for path in (store.root / name).iterdir()]
    assert not left, left
    assert verify(store) == []


@contextmanager
def empty_folder() -> Iterator[Path]:
    """In memory where that is possible."""
    place = Path(tempfile.mkdtemp(prefix="spinloop-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield place
    finally:
        fs.remove(place)


def case_of(forks: Forks, base: Path, stage: str, part: str = "", runtime: dict | None = None, **changes: Any) -> Case:
    """The last step of a stage in a finished store (`iter 0`, as the store is of one iteration), run once without a
    fault. `changes` are to the `part` of its config (`finetune`); then the step is another than the finished one."""
    store = Store(base)
    record = max(store.records(stage), key=lambda stored: stored.facts["label"])
    config = record.payload["config"]
    if part:
        config = {**config, part: {**config[part], **changes}}
    inputs = {name: _inputs(store, name, value) for name, value in record.payload["inputs"].items()}
    request = {
        "stage": stage,
        "config": config,
        "inputs": inputs,
        "runtime": {"device": "cpu", "threads": 1, "checkpoint_every": 1, **(runtime or {})},
    }
    key = key_of(payload(stage, record.payload["version"], config, record.payload["inputs"]))
    clean = Case(forks, base, request, key)
    with clean.store() as place:
        done = clean.run(place)
        assert done.status == 0 and done.digest and done.computed, done
        assert clean.recorded(place), "the key is another one"
        if not part:
            assert done.digest == record.digest, "not the bytes that the stage's own process had made"
    return Case(forks, base, request, key, done.digest, done.seconds)


def _inputs(store: Store, name: str, value: Any) -> Any:
    if name == "prompts":
        tokens = next(record for record in store.records("tokenize") if "rows" in record.payload["inputs"])
        return next(vars(shard) for shard in shards(store, _ref(tokens.digest)) if shard.digest == value)
    return [{"digest": one} for one in value] if isinstance(value, list) else {"digest": value}


def _ref(digest: str) -> Any:
    from spin_core.sources.resolve import Ref

    return Ref(digest=digest)
