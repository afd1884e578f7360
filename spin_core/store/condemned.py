"""What is to go from a folder that is never idle: condemned first, removed when nobody can hold it any more.

    condemned/list.json    the epoch, and the places that a gc saw no need for
    condemned/<digest>     a mark: somebody who began in that epoch relies on this output
    locks/gc               held by everybody who uses the store, in any epoch
    locks/gc-<epoch>       held by everybody who began in it

Who begins after a list was written knows of it, and marks what they look up of it. When all who began before have
ended, nobody relies on what is in the list and not marked; a later gc removes it (gc_in_use.py).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store import fs, locks
from spin_core.store.digest import children
from spin_core.store.keys import DIGEST

FOLDER, LIST = "condemned", "list.json"
FIRST = "first"
"""The epoch of a store where nothing was ever condemned."""


@dataclass(frozen=True)
class Listed:
    """A list. `places`: place in the store (records/…, trees/…, deltas/…) → digest of the output that it belongs to."""

    epoch: str = FIRST
    places: Mapping[str, str] = field(default_factory=dict)


class Condemned:
    """The list of one store, read again whenever another one took its place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / FOLDER
        self._seen: tuple[int, int] | None = None
        self._listed = Listed()

    def listed(self) -> Listed:
        """The list in force; an empty one of the first epoch where there is none. Raises StoreError for a damaged one:
        who does not know the epoch cannot be waited for."""
        file = self.folder / LIST
        try:
            status = file.stat()
            if self._seen != (status.st_ino, status.st_mtime_ns):
                self._listed = _parsed(file, file.read_bytes())
                self._seen = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            self._seen, self._listed = None, Listed()
        return self._listed

    @contextmanager
    def using(self) -> Iterator[bool]:
        """Holds the lock that says that somebody uses the store, and the one of the epoch; whether there are locks."""
        with locks.locked(self.root / "locks" / "gc", shared=True) as held:
            while True:
                epoch = self.listed().epoch
                with locks.locked(self._lock(epoch), shared=True):
                    if self.listed().epoch == epoch:  # else a list came before the lock, and a gc may have looked
                        yield held
                        return

    def keep(self, digests: Iterable[str], place: str = "") -> None:
        """Marks what is condemned of these outputs and of the record at `place`, before the caller looks whether it is
        there: it is either gone by then or stays. Waits while a gc removes. Does nothing where the store cannot be
        written: who may only read it keeps nothing."""
        places = self.listed().places
        wanted = {*digests, *([places[place]] if place in places else [])}.intersection(places.values())
        if not wanted:
            return
        with self.removing():
            for digest in wanted.intersection(self.listed().places.values()) - self.marked():
                try:
                    fs.write_file(self.folder / digest, b"")
                except OSError as error:
                    if error.errno not in fs.NOT_WRITABLE:
                        raise

    def removing(self) -> AbstractContextManager[bool]:
        """Held by a gc that removes, and by who marks: one at a time."""
        return locks.locked(self.root / "locks" / FOLDER)

    def marked(self) -> set[str]:
        """Digests that somebody relies on."""
        return {path.name for path in children(self.folder) if DIGEST.fullmatch(path.name)}

    def others(self) -> list[str]:
        """Epochs before the one in force in which somebody who lives began; locks of the rest are removed."""
        own, living = self._lock(self.listed().epoch), []
        for path in children(self.root / "locks"):
            if path.name.startswith("gc-") and path != own:
                try:
                    with locks.locked(path, block=False):
                        fs.unlink(path)  # who opens it now looks again which epoch it is, and takes that one's
                except locks.Busy:
                    living.append(path.name.removeprefix("gc-"))
        return living

    def condemn(self, places: Mapping[str, str]) -> None:
        """A new list, and with it a new epoch."""
        self._write(Listed(secrets.token_hex(8), places))

    def clear(self) -> None:
        """What was condemned is removed or kept: an empty list of the same epoch, and no marks."""
        if self.listed() != Listed():
            self._write(Listed(self.listed().epoch))
            for digest in self.marked():
                fs.unlink(self.folder / digest)

    def _write(self, listed: Listed) -> None:
        if fs.make_dir(self.folder):
            fs.sync(self.root)
        data = {"epoch": listed.epoch, "places": dict(sorted(listed.places.items()))}
        with fs.temporary(self.root / "tmp" / f"{fs.unique()}.condemned") as temp:
            fs.write_file(temp, (json.dumps(data, indent=1) + "\n").encode())
            fs.replace(temp, self.folder / LIST)
        fs.sync(self.folder)

    def _lock(self, epoch: str) -> Path:
        return self.root / "locks" / f"gc-{epoch}"


def _parsed(file: Path, data: bytes) -> Listed:
    try:
        made = json.loads(data)
        places = {str(place): str(digest) for place, digest in made["places"].items()}
        if not (isinstance(made["epoch"], str) and made["epoch"].isalnum()):
            raise ValueError
        return Listed(made["epoch"], places)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise StoreError(
            f"{file}: not what gc wrote; delete it when no run uses the store. Nothing is lost by that."
        ) from None
