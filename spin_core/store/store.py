"""The store: look up, publish, and the folders for work in hand. Its promises are in the package's docstring."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spin_core.errors import BadInput, StoreError
from spin_core.store import deltas, fs, locks, runs
from spin_core.store.condemned import Condemned
from spin_core.store.digest import Damaged, FileEntry, children, manifest, tree_digest
from spin_core.store.keys import DIGEST, STAGE, KeyPayload, input_digests, key_of, plain
from spin_core.store.make_immutable import check_tree, seal, share
from spin_core.store.record import Record as Record  # who uses a store has its records from here
from spin_core.store.record import encode, read
from spin_core.store.takes import FOLDER as TAKES
from spin_core.store.takes import Takes

NAME = "spinloop-store-v1"
FOLDERS = ("trees", "records", "runs", "tmp", "locks", "quarantine", "scratch", deltas.FOLDER)
# One damaged thing may be in the way, and another process may be putting it aside at the same moment.
ATTEMPTS = 8


class Store:
    """The store in `path`/spinloop-store-v1, for many threads and processes, also where nothing can be written.

    Every method raises StoreError, naming the path and a remedy, when the disk fails it.
    """

    def __init__(self, path: Path, create: bool = True) -> None:
        """Opens the store; makes it if `create`. Raises StoreError if there is none or one of an unknown format."""
        folder = Path(path).expanduser().absolute()
        self.root = folder / NAME
        self.condemned = Condemned(self.root)
        self.notes: list[str] = []
        """What was damaged and set aside, a sentence each: for the caller to show."""
        self.report: Callable[[str, dict[str, Any]], None] = lambda title, event: None
        """Is called with (title, event of `Job.progress`) of what takes long; a local store says nothing."""
        self.takes = Takes(self.root)
        """Which steps were replaced, and how often."""
        self._owners: dict[Path, int | None] = {}
        with fs.boundary(folder):
            others = sorted(p.name for p in folder.glob("spinloop-store-*") if p.name != NAME)
            if others:
                remedy = "use the spinloop that made it or name another folder"
                raise StoreError(f"{folder / others[0]}: a store of another format; {remedy}.")
            if create:
                self._make(folder)
            elif not self.root.is_dir():
                raise StoreError(f"{folder}: there is no spinloop store here; check the path or run a profile first.")
            for name in (*FOLDERS, "nodes", TAKES):
                if (self.root / name).is_symlink():
                    where = self.root / name
                    raise StoreError(f"{where}: a link where the store needs its own folder; remove the link.")

    def _make(self, folder: Path) -> None:
        for parent in reversed([folder, *folder.parents]):
            if not parent.exists() and fs.make_dir(parent, 0o755):
                fs.sync(parent.parent)
        fresh = not self.root.exists() and fs.make_dir(self.root)
        made = []
        for name in FOLDERS:
            try:
                made.append(not (self.root / name).exists() and fs.make_dir(self.root / name))
            except OSError as error:
                # A copied store may lack its empty folders, and may be for reading only.
                if fresh or error.errno not in fs.NOT_WRITABLE:
                    raise
        if any(made):
            fs.sync(self.root)
            fs.sync(folder)

    def tree(self, digest: str) -> Path:
        """Where the output with this content digest lies, if it does. Who asks relies on it: no gc takes it before
        the caller is outside `using`."""
        if not DIGEST.fullmatch(digest):
            raise BadInput(f"{digest!r}: no content digest (64 hex digits); give the artifact's.")
        tree = self.root / "trees" / digest
        with fs.boundary(tree):
            self.condemned.keep([digest])
        return tree

    def input_tree(self, digest: str) -> Path:
        """As `tree`, for a step that is about to read it: weights that were packed are put back first. What is damaged
        of them is set aside, with every record that promises it, and StoreError is raised."""
        tree = self.tree(digest)
        if (self.root / deltas.FOLDER / digest).is_dir():
            with fs.boundary(tree), self.using():
                try:
                    deltas.restore(self.root, digest, self.report)
                except Damaged as bad:
                    records = [self._record_file(one.stage, one.key) for one in self.records() if one.digest == digest]
                    with locks.locked(self.root / "locks" / "quarantine"):
                        self._set_aside([*records, tree, self.root / deltas.FOLDER / digest], bad)
                    raise StoreError(f"{str(bad).rstrip('.')}; run again, and it is computed again.") from bad
        return tree

    def files_of(self, digest: str, wanted: Callable[[list[str]], list[str]]) -> list[FileEntry]:
        """Those of a tree's files that `wanted` chooses of their names, sorted; hashed now."""
        return manifest(self.input_tree(digest), wanted)

    def lookup(self, stage: str, key: str) -> Record | None:
        """The verified output of a key, or None: the stage must run. Hashes the record and every file, each time.

        Damage is put into quarantine/, described in `notes`, and counts as a miss. A failing disk does not: StoreError.
        The output stays as long as the caller is inside `using`.
        """
        file = self._record_file(stage, key)
        with fs.boundary(file), self.using():
            self.condemned.keep((), f"records/{stage}/{file.name}")
            record, bad, where = self._judge(file)
            if bad is None:
                return record
            with locks.locked(self.root / "locks" / "quarantine"):
                # Another process may have healed it since: what is sound now must not be set aside.
                record, bad, where = self._judge(file)
                if bad is not None:
                    self._set_aside(where, bad)
        return record

    def _judge(self, file: Path) -> tuple[Record | None, Damaged | None, list[Path]]:
        """(record, None, []) if it and its tree are sound, else (None, what is wrong if anything, what is to go)."""
        if not os.path.lexists(file):
            return None, None, []
        try:
            record = read(file, self.root / "trees")
        except Damaged as bad:
            return None, bad, [file]
        try:
            check_tree(record.path, record.files, deltas.sound(self.root, record.digest, record.files))
        except Damaged as bad:
            # The record first: without its tree it would promise what is not there.
            return None, bad, [file, record.path, self.root / deltas.FOLDER / record.digest]
        return record, None, []

    def _set_aside(self, where: list[Path], bad: Damaged) -> None:
        done = "it is set aside in quarantine/"
        for path in where:
            try:
                fs.move_away(path, self.root / "quarantine" / f"{path.name}-{fs.unique()}")
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in fs.NOT_WRITABLE:
                    raise
                done = "it stays where it is, as the store cannot be written"
        self.notes.append(f"{str(bad).rstrip('.')}; {done}, and counts as not there.")

    def publish(self, payload: KeyPayload, tree: Path, facts: dict[str, Any], key: str = "") -> Record:
        """Gives the finished folder `tree` (of `new_tree`; used up) its name and its record; durable on return.
        `key`: the payload's, where it is known.

        Returns the record that stands: if another writer was first, theirs. If theirs has another output, ours is kept
        beside it as evidence (<key>.nondeterministic-<digest>.json). Raises StageFailed if the tree is empty or holds
        pickled files, StoreError if it holds links or the disk fails; then nothing of it is visible and `tree` is gone.
        """
        tree = Path(tree)
        try:
            with fs.boundary(tree), self.using():
                if tree.parent != self.root / "tmp":
                    raise StoreError(f"{tree}: not a folder of this store's new_tree(), so it cannot be published.")
                stage, key = payload["stage"], key or key_of(payload)
                file, facts = self._record_file(stage, key), plain(facts, "facts")
                share(tree, [self.tree(digest) for digest in input_digests(payload)])
                files = seal(tree)
                digest = tree_digest(files)
                self.condemned.keep([digest], f"records/{stage}/{file.name}")
                self._place(tree, self.tree(digest), files)
                return self._commit(Record(stage, key, plain(payload), digest, files, facts, self.tree(digest)), file)
        finally:
            if tree in self._owners:
                self.discard(tree)

    def _place(self, tree: Path, target: Path, files: list[FileEntry]) -> None:
        """Gives `tree` its final name, unless the same tree, undamaged, has it."""
        for _ in range(ATTEMPTS):
            try:
                fs.move(tree, target)
                fs.chmod(target, 0o555)
                break
            except OSError as error:
                if error.errno not in fs.IN_THE_WAY:
                    raise
            with suppress(Damaged):
                check_tree(target, files, deltas.sound(self.root, target.name, files))
                break
            with locks.locked(self.root / "locks" / "quarantine"):
                try:
                    check_tree(target, files, deltas.sound(self.root, target.name, files))
                except Damaged as bad:
                    self._set_aside([target], bad)
        else:
            raise StoreError(f"{target}: something damaged stays in the way; remove it and run again.")
        fs.sync(target.parent)

    def _commit(self, record: Record, file: Path) -> Record:
        fs.make_dir(file.parent)
        fs.sync(file.parent.parent)
        for _ in range(ATTEMPTS):
            if self._put(record, file):
                return record
            standing = self.lookup(record.stage, record.key)
            if standing is None:
                continue
            if standing.digest != record.digest:
                self._put(record, file.with_name(f"{record.key}.nondeterministic-{record.digest[:12]}.json"))
                self.notes.append(f"{file}: the same inputs gave another output this time; the first one stands.")
            return standing
        raise StoreError(f"{file}: something damaged stays in the way; remove it and run again.")

    def _put(self, record: Record, file: Path) -> bool:
        with fs.temporary(self.root / "tmp" / f"{fs.unique()}.record") as temp:
            fs.write_file(temp, encode(record))
            first = fs.put_once(temp, file)
        fs.sync(file.parent)
        return first

    def record(self, stage: str, key: str) -> Record | None:
        """The record of a key as it is written, its output not verified: for showing, not for using."""
        file = self._record_file(stage, key)
        with fs.boundary(file):
            try:
                return read(file, self.root / "trees") if os.path.lexists(file) else None
            except Damaged as bad:
                self.notes.append(str(bad))
                return None

    def published(self, stage: str, key: str) -> datetime | None:
        """When the record of a key was written here, UTC (in a copied store: copied); None where there is none."""
        file = self._record_file(stage, key)
        with fs.boundary(file):
            return datetime.fromtimestamp(file.stat().st_mtime, UTC) if file.exists() else None

    def recorded(self, stage: str, key: str) -> bool:
        """Whether there is a record of a key, nothing verified: only says that a lookup is worth it."""
        return os.path.lexists(self._record_file(stage, key))

    def holds(self, record: Record) -> bool:
        """Whether a record's output is there, nothing verified."""
        return record.path.is_dir()

    def note_once(self, text: str) -> None:
        """Add to `notes`, for people, what is not there yet."""
        if text not in self.notes:
            self.notes.append(text)

    def identity(self) -> str:
        """An id that this store got when it was first read: who reads the same one sees the same store (or a
        copy of it). Raises StoreError where it cannot be written."""
        file = self.root / "id"
        with fs.boundary(file), self.using():
            if not file.exists():
                with fs.temporary(self.root / "tmp" / f"{fs.unique()}.id") as temp:
                    fs.write_file(temp, uuid.uuid4().hex.encode())
                    fs.put_once(temp, file)
            return file.read_text(encoding="ascii", errors="replace")

    def records(self, stage: str = "*") -> Iterator[Record]:
        """The standing records (of one stage) by stage and key, outputs not verified; a note for each damaged one.
        Raises StoreError for a folder that cannot be read."""
        below = self.root / "records"
        with fs.boundary(below):
            stages = children(below) if stage == "*" else [below / stage]
            files = [file for folder in stages if STAGE.fullmatch(folder.name) for file in children(folder)]
        for file in files:
            if file.suffix == ".json" and DIGEST.fullmatch(file.stem):
                record = self.record(file.parent.name, file.stem)
                if record is not None:
                    yield record

    def new_tree(self) -> Path:
        """An empty private folder to write one output in; `gc` leaves it alone while this process lives."""
        tree = self.root / "tmp" / fs.unique()
        with fs.boundary(tree), self.using():
            self._owners[tree] = locks.acquire(self._owner_file(tree))
            try:
                fs.make_dir(tree)
            except OSError:
                self.discard(tree)
                raise
        return tree

    def discard(self, tree: Path) -> None:
        """Gives up a folder of `new_tree`."""
        owner = self._owners.pop(tree, None)
        try:
            with fs.boundary(tree):
                fs.remove(tree)
                fs.unlink(self._owner_file(tree))
        finally:
            if owner is not None:
                os.close(owner)

    def scratch(self, stage: str, key: str) -> Path:
        """The folder for a key's unfinished work (checkpoints): survives a kill, and the next attempt gets it again."""
        folder = self.root / "scratch" / f"{stage}-{self._record_file(stage, key).stem}"
        with fs.boundary(folder), self.using():
            if folder.is_symlink():  # a stage writes and deletes in it
                raise StoreError(f"{folder}: a link where the store needs its own folder; remove the link.")
            fs.make_dir(folder)
        return folder

    def drop_scratch(self, stage: str, key: str) -> None:
        """Removes a key's unfinished work, if there is any."""
        folder = self.root / "scratch" / f"{stage}-{self._record_file(stage, key).stem}"
        with fs.boundary(folder), self.using():
            fs.remove(folder)

    def lock(self, stage: str, key: str, wait: locks.Wait | None = None) -> AbstractContextManager[bool]:
        """Lets one process at a time compute a key. Only saves work; look the key up again once inside."""
        return locks.locked(self.root / "locks" / f"{stage}-{self._record_file(stage, key).stem}", wait)

    def using(self) -> AbstractContextManager[bool]:
        """Keeps `gc` out: hold it from a lookup on for as long as the outputs are read (a run: all through)."""
        return self.condemned.using()

    def check_writable(self) -> None:
        """Raises StoreError if nothing could be published here: check before computing."""
        probe = self.root / "tmp" / f"{fs.unique()}.probe"
        with fs.boundary(probe), self.using(), fs.temporary(probe):
            fs.write_file(probe, b"probe")
            fs.unlink(probe)

    def link_run(self, run: str, links: dict[str, str | None], latest: bool = True) -> None:
        """Shows outputs (label → digest) as links under runs/<run>/, besides those there, and points `latest` to it
        (or, not `latest`, leaves which run that is). A label without a digest goes."""
        with fs.boundary(self.root / "runs"), self.using():
            ends = [digest for label, digest in links.items() if label == runs.BEST and digest]
            checked = {label: digest and self.tree(digest).name for label, digest in links.items()}
            for digest in ends:  # a person reads it by this link
                self.input_tree(digest)
            (runs.link if latest else runs.relabel)(self.root, run, checked)

    def write_run_file(self, run: str, name: str, data: bytes) -> None:
        """Puts a file for people into runs/<run>/, in place of one of that name."""
        with fs.boundary(self.root / "runs"), self.using():
            runs.write(self.root, run, name, data)

    def remove_run_file(self, run: str, name: str) -> None:
        """Removes runs/<run>/<name>, if it is there."""
        with fs.boundary(self.root / "runs"), self.using():
            fs.unlink(self.root / "runs" / run / name)

    def forget_run(self, run: str) -> None:
        """Removes what people see of a run. Its outputs stay until a gc that keeps some runs alone."""
        with fs.boundary(self.root / "runs"), self.using():
            fs.remove(self.root / "runs" / run)
            if runs.leads_to(self.root, run):
                fs.unlink(self.root / "latest")

    def _record_file(self, stage: str, key: str) -> Path:
        if not STAGE.fullmatch(stage) or not DIGEST.fullmatch(key):
            raise BadInput(f"{stage}/{key}: a stage name and a key (64 hex digits) are needed.")
        return self.root / "records" / stage / f"{key}.json"

    def _owner_file(self, tree: Path) -> Path:
        return tree.with_name(tree.name + ".owner")
