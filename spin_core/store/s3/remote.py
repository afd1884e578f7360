"""A store on object storage (`s3://bucket/prefix`), read and written through a local store as its cache.

    <prefix>/spinloop-store-v1/
        files/<sha256>                one object for each file content, however many outputs have it
        deltas/<sha256>.<sha256>.…    or the difference of weights to those that they were trained from (deltas.py)
        trees/<digest>.json           an output's manifest, whose sha256 is its name
        records/<stage>/<key>.json    as in a local store; written last
        takes/<key>.<n>.json          which steps were replaced (takes.py)
        runs/…  id                    what people find (runs.py); the store's identity
        quarantine/  leases/          what was damaged; who uses the store
        gc…  condemned/               whether gc is at work, what it removed and is going to (condemned.py)

Keys and records are those of a local store. Its promises, as far as the service allows:
1. A record is written once its files and manifest are there. 2. What a look-up returns was hashed since it came from
the service or was read from the cache. 3. Records are created only where there is none, files and manifests too; a
service without conditional create (a note says so) keeps whichever of two records came last. 5. There is no lock
between machines: both may compute a step, one record stands. 6.–10. as there. The service says of itself what is there:
a cache folder can be deleted, or shared by processes of one machine, at any time.

Not here: requests (objects.py), parts and resuming (transfer.py), what the cache may hold (cache.py), gc and verify
(gc.py, verify.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from spin_core.errors import StoreError
from spin_core.store import fs, locks
from spin_core.store.cache import Cache, clear_leftovers, place
from spin_core.store.digest import Damaged, FileEntry, damage, tree_digest
from spin_core.store.keys import DIGEST, STAGE, KeyPayload, canonical
from spin_core.store.leases import Lease
from spin_core.store.make_immutable import seal
from spin_core.store.record import Record, encode, entries, parse, place_of
from spin_core.store.s3 import deltas, transfer
from spin_core.store.s3 import runs as remote_runs
from spin_core.store.s3.condemned import Condemned
from spin_core.store.s3.objects import Objects, Stat, is_same, md5
from spin_core.store.s3.takes import RemoteTakes
from spin_core.store.store import ATTEMPTS, NAME, Store

MOST_COPIED = 5_000_000_000  # bytes that S3 copies in one request; what is larger is not kept in quarantine/
RECORD = re.compile(rf"records/(?:{STAGE.pattern})/(?:{DIGEST.pattern})\.json")
LOOK_EVERY = 4.0  # seconds: forty steps that wait a day for their pool are 900,000 requests, and not nine million


class RemoteStore(Store):
    """The store at an S3 URL; `root` is its cache. As `Store`, for many threads and processes of many machines."""

    def __init__(
        self, url: str, create: bool = True, read_only: bool = False, late: bool = False, runs: bool = True
    ) -> None:
        """`read_only`: nothing is written to the service, not even what is damaged is set aside. `late` (and
        `read_only`): look-ups see that an output is there, and `tree` fetches it when it is read. `runs`: bring what
        people see of runs up to date. Raises StoreError if there is no store (and not `create`) or one of another
        format, BadInput for a URL, setting or installation that will not do."""
        self.objects = Objects(url, NAME)
        self.url, self.read_only, self.late = self.objects.url, read_only, late or read_only
        if others := [name for name in self.objects.beside() if name != NAME]:
            remedy = "use the spinloop that made it or name another prefix"
            raise StoreError(f"{self.url}/{others[0]}: a store of another format; {remedy}.")
        if not create and self.objects.head("id") is None:
            raise StoreError(f"{self.url}: there is no spinloop store here; check the URL or run a profile first.")
        if create and not read_only:
            self.identity()
        folder = place(self.url, self.objects.endpoint())
        super().__init__(folder)
        self.takes = RemoteTakes(self.objects)
        self.cache = Cache(folder)
        with fs.boundary(folder):
            clear_leftovers(self)
        self._local = Store(folder)
        self._local.notes, self._local._owners = self.notes, self._owners
        self._lease = Lease(self.objects)
        self._condemned = Condemned(self.objects, None if read_only else self._lease)
        self._hashed: set[str] = set()
        self._looked: dict[str, float] = {}
        if runs:
            with fs.boundary(self.root), super().using():  # another process that opens it clears tmp/
                for key, data in remote_runs.refresh(self.objects, self.root, self.note_once).items():
                    self._set_aside_there(key, "this is not the pointer of a run", data)

    def using(self) -> AbstractContextManager[bool]:
        """As in `Store`; `gc` on other machines is kept out until this process ends."""
        if not self.read_only:
            self._lease.hold()
        return super().using()

    def tree(self, digest: str) -> Path:
        """Where the output with this content digest lies, fetched and hashed; where it does not, if there is none."""
        target = super().tree(digest)
        with fs.boundary(target), self.using():
            self._condemned.keep(f"trees/{digest}.json")
            self.cache.use(digest)
            if not self._is_cached(digest):
                self._fetch(digest)
        return target

    def input_tree(self, digest: str) -> Path:
        """As `tree`. Raises StoreError where the service does not have it, or not as it should be."""
        tree = self.tree(digest)
        if not tree.is_dir():
            raise StoreError(
                f"{self.url}: output {digest[:12]} is not whole there; run again, and it is computed again."
            )
        return tree

    def files_of(self, digest: str, wanted: Callable[[list[str]], list[str]]) -> list[FileEntry]:
        """As in `Store`, of the tree's manifest: a key that hangs on a model's tokenizer fetches no weights."""
        if (files := self._manifest(digest)) is None:
            return super().files_of(digest, wanted)
        chosen = set(wanted([entry["path"] for entry in files]))
        return sorted((entry for entry in files if entry["path"] in chosen), key=lambda entry: entry["path"])

    def _is_cached(self, digest: str) -> bool:
        """Whether this tree is fully cached and sound; hashed once by each process."""
        target = super().tree(digest)
        if digest in self._hashed or not target.is_dir():
            return target.is_dir()
        if damage(target, digest):
            with locks.locked(self.root / "locks" / "quarantine"):
                # Another process may have fetched it again since: what is sound now must not be set aside.
                if bad := damage(target, digest):
                    if target.is_dir():
                        self._set_aside([target], bad)
                    return False
        self._hashed.add(digest)
        self.cache.used(target)
        return True

    def lookup(self, stage: str, key: str) -> Record | None:
        """As in `Store`: the verified output of a key, in the cache on return, or None: the stage must run."""
        file = self._record_file(stage, key)
        with fs.boundary(file), self.using():
            self._condemned.keep(f"records/{stage}/{key}.json")
            for _ in range(ATTEMPTS):
                record = self.record(stage, key)
                if record is None:
                    return None if self.read_only else self._unsent(stage, key)
                self.cache.use(record.digest)
                if super().tree(record.digest).is_dir():
                    if cached := self._local.lookup(stage, key):  # else what was damaged in the cache is gone from it
                        self._hashed.add(cached.digest)
                        self.cache.used(cached.path)
                        return cached
                elif self.late:
                    return record if self._is_there(record) else None
                elif not self._fetch(record.digest, record):
                    return None
            raise StoreError(f"{file}: damaged again and again; check the disk of the cache.")

    def _unsent(self, stage: str, key: str) -> Record | None:
        """What this machine computed and did not get to the service, or what the service lost: sent (again)."""
        if not self._record_file(stage, key).exists():
            return None
        if (record := Store.record(self, stage, key)) is None:
            return None
        self.cache.use(record.digest)
        if not record.path.is_dir() or (record := self._local.lookup(stage, key)) is None:
            return None
        return self._send(record)

    def _is_there(self, record: Record) -> bool:
        """Whether the service has every file of a record, by size; if not, the record is set aside."""
        if missing := deltas.missing(self.objects, record.files):
            why = f"{missing} is missing or has another size"
            self._set_aside_there(place_of(record), why, encode(record))
        return not missing

    def record(self, stage: str, key: str) -> Record | None:
        """The service's record of a key, its output not verified; kept in the cache. Damaged ones are set aside."""
        file = self._record_file(stage, key)
        with fs.boundary(file):
            data = self.objects.get(f"records/{stage}/{key}.json")
            try:
                return None if data is None else self._adopted(parse(data, file, self.root / "trees"), data, file)
            except Damaged as bad:
                self._set_aside_there(f"records/{stage}/{key}.json", str(bad), data)
                return None

    def _adopted(self, record: Record, data: bytes, file: Path) -> Record:
        """Puts the service's record into the cache, in place of another one there: the service's is the one that
        stands."""
        if not file.exists() or file.read_bytes() != data:
            fs.make_dir(file.parent)
            with super().using(), fs.temporary(self.root / "tmp" / f"{fs.unique()}.record") as temp:
                fs.write_file(temp, data)
                fs.replace(temp, file)
        return record

    def published(self, stage: str, key: str) -> datetime | None:
        """As in `Store`, by the service's clock."""
        stat = self.objects.head(f"records/{stage}/{self._record_file(stage, key).stem}.json")
        return stat.modified if stat else None

    def recorded(self, stage: str, key: str) -> bool:
        """Whether there is a record of a key, nothing verified. Who waits for one looks several times a second, and the
        service gets a request every LOOK_EVERY seconds."""
        name, now = f"records/{stage}/{self._record_file(stage, key).stem}.json", time.monotonic()
        if now - self._looked.get(name, now - LOOK_EVERY) < LOOK_EVERY:
            return False
        self._looked[name] = now
        return self.objects.head(name) is not None

    def records(self, stage: str = "*") -> Iterator[Record]:
        """The standing records by stage and key, as in `Store`; those that the cache has not are fetched."""
        below = "records/" if stage == "*" else f"records/{stage}/"
        listed = [stat for stat in self.objects.listed(below) if RECORD.fullmatch(stat.key)]
        for record in transfer.in_parallel(self._read, listed):
            if record is not None:
                yield record

    def _read(self, stat: Stat) -> Record | None:
        """A listed record: from the cache where that has the same bytes (its etag is their MD5), else fetched."""
        _, stage, name = stat.key.split("/", 2)
        file = self.root / stat.key
        if file.is_file() and md5(file.read_bytes()) == stat.etag:
            return Store.record(self, stage, name.removesuffix(".json"))
        return self.record(stage, name.removesuffix(".json"))

    def holds(self, record: Record) -> bool:
        """Whether the service has a record's output, by its manifest."""
        return self.objects.head(f"trees/{record.digest}.json") is not None

    def _fetch(self, digest: str, record: Record | None = None) -> bool:
        """Brings a tree into the cache, hashed; False if the service has not all of it as it should be. What is damaged
        there is set aside, and with it `record` (or every record) that promises it: else a machine that has the tree
        in its cache would never send it again."""
        with locks.locked(self.root / "locks" / f"fetch-{digest}"):
            if self._is_cached(digest):
                return True
            files = record.files if record else self._manifest(digest)
            if files is None:
                return False
            named = dict(zip(_files(files), transfer.in_parallel(self.objects.head, _files(files)), strict=True))
            tree = self.new_tree()
            try:
                ways = deltas.ways(self.objects, files, named)
                self.cache.make_room(self.root, sum(entry["size"] for entry in files), self.note_once)
                here = deltas.here(self._local.records() if ways else (), ways, self.cache.use)
                deltas.download(self.objects, files, tree, ways, here, self.report, f"store {digest[:12]}")
                fetched = seal(tree)
                wrong = [entry for entry in files if entry not in fetched]
                if not wrong and tree_digest(fetched) == digest:
                    self._place(tree, super().tree(digest), fetched)
                    self._hashed.add(digest)
                    return True
                bad = {f"files/{entry['sha256']}": f"{entry['path']} is not what was published" for entry in wrong}
            except transfer.Missing as missing:
                bad = {missing.key: "it is missing, or has another size than was published"}
            except deltas.Wrong as altered:
                bad = {altered.key: "it is not what was published"}
            finally:
                self.discard(tree)
        if not bad or any(is_same(self.objects.head(key), named[key]) for key in bad):  # else healed meanwhile
            named_by = [record] if record else [] if self.read_only else self.records()
            for one in [one for one in named_by if one.digest == digest]:
                self._set_aside_there(place_of(one), "", encode(one))
        for key, why in bad.items():
            self._set_aside_there(key, why, named[key])
        return False

    def _manifest(self, digest: str) -> list[FileEntry] | None:
        """The files of a tree: of its manifest, and where that is damaged or gone of a record, which restores it."""
        name = f"trees/{digest}.json"
        if (data := self.objects.get(name)) is not None:
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                if hashlib.sha256(data).hexdigest() == digest:
                    return entries(json.loads(data))
            self._set_aside_there(name, "it is not what its name says, or no manifest", data)
        files = next((record.files for record in self.records() if record.digest == digest), None)
        if files is not None and not self.read_only:
            self.objects.put_once(name, canonical(files))
        return files

    def _set_aside_there(self, key: str, why: str, seen: Stat | bytes | None) -> None:
        """Moves an object of the service to its quarantine/, unless it is another than was `seen` (None: there was
        none): healed meanwhile."""
        done = "it is set aside in quarantine/, and"
        if seen is None:
            done = "it"
        elif self.read_only:
            done = "it stays there, as nothing is written now, and"
        elif (stat := self.objects.head(key)) and (
            self.objects.get(key) == seen if isinstance(seen, bytes) else is_same(stat, seen)
        ):
            self.move_aside(key, copied=stat.size < MOST_COPIED)
        if why:
            self.notes.append(f"{self.url}/{key}: {why.rstrip('.')}; {done} counts as not there.")

    def move_aside(self, key: str, copied: bool = True) -> None:
        """Moves an object of the service to its quarantine/ (or, not `copied`, away)."""
        if copied:
            self.objects.copy(key, f"quarantine/{key.replace('/', '-')}-{fs.unique()}")
        self.objects.delete(key)

    def publish(self, payload: KeyPayload, tree: Path, facts: dict[str, Any], key: str = "") -> Record:
        """As in `Store`: published in the cache, then on the service. Where that fails the step fails, and the next
        look-up goes on with sending it."""
        with fs.boundary(tree), self.using():
            with self.cache.steady():
                record = self._local.publish(payload, tree, facts, key)
                self.cache.use(record.digest)
            self.cache.make_room(self.root, 0, self.note_once)
            self._hashed.add(record.digest)
            return self._send(record)

    def _send(self, record: Record) -> Record:
        """Files, then manifest, then record; the record that stands, with its output in the cache."""
        files = {
            entry["sha256"]: transfer.File(f"files/{entry['sha256']}", record.path / entry["path"], entry["size"])
            for entry in record.files
        }
        self._condemned.rely(record)
        work = self.new_tree()
        try:
            instead = deltas.made(self.objects, record, self._manifest, super().tree, work, self.report)
            sent = [file for file in {**files, **instead}.values() if file]
            why, title = "it has another size than its content", f"store {record.stage} {record.key[:12]}"
            aside = self._set_aside_there
            transfer.upload(self.objects, sent, lambda stat: aside(stat.key, why, stat), self.report, title)
        finally:
            self.discard(work)
        self.objects.put_once(f"trees/{record.digest}.json", canonical(record.files))
        for _ in range(ATTEMPTS):
            if self.objects.put_once(place_of(record), encode(record)) and self.objects.conditional:
                return record
            standing = self.record(record.stage, record.key)
            if standing is None:
                continue
            if standing.digest == record.digest:
                return standing
            evidence = f"records/{record.stage}/{record.key}.nondeterministic-{record.digest[:12]}.json"
            self.objects.put_once(evidence, encode(record))
            where = f"{self.url}/{place_of(record)}"
            self.note_once(f"{where}: the same inputs gave another output this time; the first one stands.")
            if cached := self.lookup(record.stage, record.key):
                return cached
        raise StoreError(f"{self.url}/{place_of(record)}: something damaged stays in the way; remove it.")

    def identity(self) -> str:
        """As in `Store`: the id that the store on the service got when it was first written to."""
        own = self.objects.get("id")
        if own is None:
            self.objects.put_once("id", uuid.uuid4().hex.encode())
            own = self.objects.get("id") or b""
        return own.decode("ascii", errors="replace")

    def check_writable(self) -> None:
        """Raises StoreError if nothing could be published, in the cache or on the service. Notes, once, a service that
        does not create conditionally."""
        super().check_writable()
        if self.objects.conditional is None:
            self.objects.probe(f"leases/probe-{fs.unique()}")
            self.identity()
        if self.objects.conditional is False:  # of the probe, or of an earlier write
            self.note_once(
                f"{self.url}: this service has no conditional create; of two machines that compute a step at once the "
                "later record stands."
            )

    def link_run(self, run: str, links: dict[str, str | None], latest: bool = True) -> None:
        """As in `Store`, and on the service, for other machines."""
        with fs.boundary(self.root / "runs"), super().using():
            self._local.link_run(run, links, latest)
            remote_runs.send(self.objects, self.root, run)

    def remove_run_file(self, run: str, name: str) -> None:
        """As in `Store`, and on the service."""
        self._local.remove_run_file(run, name)
        with fs.boundary(self.root / "runs"):
            remote_runs.send(self.objects, self.root, run, {name: None})

    def forget_run(self, run: str) -> None:
        """As in `Store`, and on the service: first its pointer."""
        remote_runs.forget(self.objects, run)
        self._local.forget_run(run)

    def write_run_file(self, run: str, name: str, data: bytes) -> None:
        """As in `Store`, and on the service, for other machines."""
        self._local.write_run_file(run, name, data)
        with fs.boundary(self.root / "runs"):
            remote_runs.send(self.objects, self.root, run, {name: data})


def _files(files: list[FileEntry]) -> dict[str, FileEntry]:
    """Object key → the file of an output."""
    return {f"files/{entry['sha256']}": entry for entry in files}
