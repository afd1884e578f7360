"""The local folder of a store on object storage: where it is, how much it may hold, what goes first.

Not a store of its own: everything in it can be fetched or computed again. It is laid out as one, so that what is read
from it is verified as ever. The clock orders evictions and decides nothing else.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from spin_core.errors import BadInput
from spin_core.store import fs, locks
from spin_core.store.digest import children, files_in
from spin_core.store.keys import DIGEST
from spin_core.store.store import Store
from spin_core.store.verify import is_free, stray

LIMIT_GB = 100.0  # five iterations of a 7B model in bfloat16 and their pairs take 75


def place(url: str, endpoint: str) -> Path:
    """The cache folder of a store: below $SPINLOOP_CACHE, else below the user's cache folder; one for each URL at each
    endpoint (the service's address)."""
    named = os.environ.get("SPINLOOP_CACHE")
    above = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spinloop"
    words = "-".join(part for part in url.partition("://")[2].split("/") if part)[:40]
    return above.expanduser().absolute() / f"{words}-{hashlib.sha256(f'{endpoint} {url}'.encode()).hexdigest()[:12]}"


def limit() -> int:
    """Bytes that the trees of a cache may take: $SPINLOOP_CACHE_GB, else 100 GB. Raises BadInput."""
    text = os.environ.get("SPINLOOP_CACHE_GB") or str(LIMIT_GB)
    with suppress(ValueError, OverflowError):
        if float(text) >= 0:
            return int(float(text) * 1e9)
    raise BadInput(f"SPINLOOP_CACHE_GB={text}: not a number of gigabytes; give e.g. 100.")


class Cache:
    """Which trees of a cache folder this process uses, and room for more."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of `place`; the store in it is made by whoever opens that."""
        self.folder, self.limit = folder, limit()
        self._uses = folder / "uses"
        self._evicting = folder / "evict"
        self._file: Path | None = None
        self._fd: int | None = None
        self._known: set[str] = set()
        self._end = 0
        self._lock = threading.Lock()

    def use(self, digest: str) -> None:
        """Keeps a tree, there or to come, until this process ends; to be called before it is looked for."""
        with self._lock:
            if digest in self._known:
                return
            if self._file is None:
                fs.make_dir(self._uses)
                self._file = self._uses / fs.unique()
                self._fd = locks.acquire(self._file)
            # Shared: many may write at once, and none while somebody evicts who has not read it.
            with self.steady():
                if self._fd is not None:
                    line = f"{digest}\n".encode()
                    fs.write_at(self._fd, self._file, line, self._end)
                    self._end += len(line)
            self._known.add(digest)

    def steady(self) -> AbstractContextManager[bool]:
        """Keeps eviction out: between the making of a tree and its `use`."""
        return locks.locked(self._evicting, shared=True)

    def used(self, tree: Path) -> None:
        """Notes that a tree is the one that was used last."""
        with suppress(OSError):  # only the order of eviction hangs on it
            fs.touch(tree)

    def make_room(self, root: Path, need: int, report: Callable[[str], None]) -> int:
        """Evicts the least recently used trees that no living process uses, and damaged ones first, until `need` bytes
        more fit; the bytes freed. `report` gets a sentence where they do not. Raises OSError."""
        with locks.locked(self._evicting) as working:
            trees = {path: _bytes(path) for path in [*children(root / "quarantine"), *children(root / "trees")]}
            over = sum(trees.values()) + need - self.limit
            if over <= 0:
                return 0
            used = self._in_use() if working else {path.name for path in trees}
            going, freed = [], 0
            for path in sorted(trees, key=lambda path: (path.parent.name == "trees", _used_last(path))):
                if freed < over and path.name not in used:
                    going.append((path, root / "tmp" / fs.unique()))
                    fs.move_away(*going[-1])
                    freed += trees[path]
        for _, gone in going:
            fs.remove(gone)
        if freed < over:
            report(
                f"{self.folder}: the cache holds {(over - freed) / 1e9:.1f} GB more than its limit of "
                f"{self.limit / 1e9:g} GB, because this run uses all of it; raise SPINLOOP_CACHE_GB if the disk allows."
            )
        return freed

    def _in_use(self) -> set[str]:
        """What living processes, this one too, have noted that they use; files of dead ones go. Raises OSError where
        one cannot be read: what its process uses would be evicted."""
        digests = set(self._known)
        for file in children(self._uses):
            if file != self._file and is_free(file):
                fs.unlink(file)
                continue
            with suppress(FileNotFoundError):  # of a process that has just ended
                digests |= {line for line in file.read_text(encoding="ascii").split() if DIGEST.fullmatch(line)}
        return digests


def clear_leftovers(store: Store, scratch: bool = False, dry_run: bool = False) -> tuple[int, int]:
    """Removes what killed processes left in tmp/ of a cache (half of a download may be many GB), and with `scratch`
    the unfinished work that nobody holds; how many of each. Nothing while a process uses the cache. Raises OSError."""
    with suppress(locks.Busy), locks.locked(store.root / "locks" / "gc", block=False) as alone:
        if alone:
            left = stray(store)
            folders = children(store.root / "scratch") if scratch else []
            folders = [folder for folder in folders if is_free(store.root / "locks" / folder.name)]
            for path in [] if dry_run else [*left, *folders]:
                fs.remove(path)
            return sum(path.suffix != ".owner" for path in left), len(folders)
    return 0, 0


def _bytes(path: Path) -> int:
    """Bytes on the disk that go with a tree; of a file that trees share its part."""
    total = 0
    for _, file in files_in(path) if path.is_dir() else [("", path)]:
        with suppress(FileNotFoundError):
            status = file.lstat()
            total += status.st_size // max(1, status.st_nlink)
    return total


def _used_last(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.lstat().st_mtime_ns
    return 0
