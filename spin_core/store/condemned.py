"""What is to go from a folder that is never idle: condemned first, removed when nobody can hold it any more.

    condemned/list.json    the epoch, and the places that a gc saw no need for
    condemned/<digest>     a mark: somebody who began in that epoch relies on this output
    locks/gc               held by everybody who uses the store, in any epoch
    locks/gc-<epoch>       held by everybody who began in it
    locks/gc-readers       held by those who may not write here, in any epoch but the first

Who begins after a list was written knows of it, and marks what they look up of it. When all who began before have
ended, nobody relies on what is in the list and not marked; a later gc removes it (gc.py). Who may only read cannot
mark, and is waited for.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store import fs, locks
from spin_core.store.digest import children
from spin_core.store.keys import DIGEST

FOLDER, LIST = "condemned", "list.json"
FIRST, READERS = "first", "readers"
"""The epoch of a store where nothing was ever condemned; what those hold who cannot mark."""


@dataclass(frozen=True)
class Listed:
    """A list. `places`: place in the store (records/…, trees/…, deltas/…) → digest of the output that it belongs to."""

    epoch: str = FIRST
    places: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digests(self) -> frozenset[str]:
        """The outputs that are in it: every look-up asks, and a list may have 100,000 places."""
        return frozenset(self.places.values())


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
                reads = epoch != FIRST and not os.access(self.root / "locks", os.W_OK)
                with locks.locked(self._lock(READERS if reads else epoch), shared=True):
                    if self.listed().epoch == epoch:  # else a list came before the lock, and a gc may have looked
                        yield held
                        return

    def keep(self, digests: Iterable[str], place: str = "") -> None:
        """Marks what is condemned of these outputs and of the record at `place`, before the caller looks whether it is
        there: it is either gone by then or stays. Waits while a gc removes. Writes nothing where the store cannot be
        written."""
        listed = self.listed()
        wanted = {*digests, listed.places.get(place, "")} & listed.digests
        if not wanted:
            return
        with self.removing():
            for digest in (wanted & self.listed().digests) - self.marked():
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
        """Epochs before the one in force in which somebody who lives began, or may have: whose lock is held or cannot
        be had; and READERS likewise. Locks of epochs that are over are removed."""
        own, living = self._lock(self.listed().epoch), []
        for path in children(self.root / "locks"):
            if path.name.startswith("gc-") and path != own:
                try:
                    with locks.locked(path, block=False) as over:
                        if not over:
                            raise locks.Busy
                        if path != self._lock(READERS):  # these cannot make it again
                            fs.unlink(path)  # who opens another now looks again which epoch it is, and takes that one's
                except locks.Busy:
                    living.append(path.name.removeprefix("gc-"))
        return living

    def condemn(self, places: Mapping[str, str]) -> None:
        """A new list, and with it a new epoch."""
        with locks.locked(self._lock(READERS), shared=True):
            fs.chmod(self._lock(READERS), 0o644)
        self._write(Listed(secrets.token_hex(8), places))

    def clear(self) -> None:
        """What was condemned is removed or kept: an empty list of the same epoch, and no marks."""
        if self.listed() != Listed():
            self._write(Listed(self.listed().epoch))
            for digest in self.marked():
                fs.unlink(self.folder / digest)

    def _write(self, listed: Listed) -> None:
        if fs.make_dir(self.folder, 0o755):  # who may enter the store may read the list
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
