"""Clearing a store on object storage: what gc.py does for a local one, with leases in the place of locks.

gc writes its mark, then looks for leases; a process writes its lease, then looks for the mark: one of them sees the
other. Fresh is what the service's own clock calls younger than two hours, so a process that was killed keeps gc out for
so long. The rest is order: records go before manifests before files, so that what dies between leaves no record
without its files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import nullcontext

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.cache import clear_leftovers
from spin_core.store.gc import GcResult, Report, needed
from spin_core.store.leases import FOLDER, FRESH, Mark, fresh
from spin_core.store.record import Record
from spin_core.store.s3 import transfer
from spin_core.store.s3.objects import Stat
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.s3.runs import POINTER, encoded
from spin_core.store.s3.verify import pointers, readable


def gc(
    store: RemoteStore,
    keep_runs: int | None = None,
    keep: Collection[str] = (),
    quarantine: bool = False,
    dry_run: bool = False,
    report: Report = lambda what, size: None,
) -> GcResult:
    """Removes files and manifests that no record names, uploads that nobody goes on with, and leases of dead processes;
    with `keep_runs` or `keep` records too, as gc.gc does. Of this machine's cache leftovers and unfinished work go, the
    rest of it clears itself.

    Raises BadInput as gc.gc; StoreError, having done nothing, while a process somewhere uses the store, or while it is
    not known whether one does: a lease younger than two hours.
    """
    with nullcontext() if dry_run else Mark(store.objects) as mark:
        if living := fresh(store.objects):
            raise StoreError(
                f"{store.url}: a run is using the store ({len(living)} processes; one that was killed counts for two "
                "hours); run gc again when it has finished."
            )
        records = {key: record for key, record in readable(store) if isinstance(record, Record)}
        there = {} if keep_runs is None and not keep else pointers(store, strict=True)
        kept = needed(list(records.values()), there, keep_runs, keep)
        return _collect(store, records, kept, quarantine, mark, report)


def _collect(
    store: RemoteStore,
    records: dict[str, Record],
    kept: set[str],
    quarantine: bool,
    mark: Mark | None,
    report: Report,
) -> GcResult:
    objects = store.objects
    going = {key: (record.stage, 0) for key, record in records.items() if record.digest not in kept}
    named = {record.digest for key, record in records.items() if key not in going}
    files = {
        f"files/{entry['sha256']}" for key, record in records.items() if key not in going for entry in record.files
    }
    stages = {f"files/{e['sha256']}": record.stage for record in records.values() for e in record.files}
    manifests = [stat for stat in objects.listed("trees/") if stat.key[6:-5] not in named]
    unnamed = [stat for stat in objects.listed("files/") if stat.key not in files]
    aside = list(objects.listed("quarantine/")) if quarantine else []
    now = objects.now()
    # A process that began after the mark has a lease, and waits: that one stays.
    leases = [stat for stat in objects.listed(FOLDER) if now - stat.modified >= FRESH]
    uploads = _given_up(store)
    for stage, size in [
        *going.values(),
        *((stages.get(stat.key, "no record"), stat.size) for stat in unnamed),
        *(("quarantine", stat.size) for stat in aside),
        *(("temporary", 0) for _ in uploads),
    ]:
        report(stage, size)
    if mark is not None:
        _remove(store, mark, going, manifests, [*unnamed, *aside, *leases], uploads)
    with fs.boundary(store.root):
        temp, scratch = clear_leftovers(store, scratch=True, dry_run=mark is None)
    return GcResult(
        bytes=sum(stat.size for stat in [*unnamed, *aside]),
        trees=len(manifests),
        records=len(going),
        temp=len(uploads) + temp,
        scratch=scratch,
        quarantine=len(aside),
    )


def _remove(
    store: RemoteStore,
    mark: Mark,
    records: Iterable[str],
    manifests: list[Stat],
    rest: list[Stat],
    uploads: list[tuple[str, str]],
) -> None:
    for keys in (records, [stat.key for stat in manifests], [stat.key for stat in rest]):
        mark.check()
        list(transfer.in_parallel(store.objects.delete, keys))
    _unlink(store)
    for key, upload in uploads:
        store.objects.abort(key, upload)


def _given_up(store: RemoteStore) -> list[tuple[str, str]]:
    """(key, upload id) of the uploads in parts that are to be aborted; none where they may not be listed."""
    now = store.objects.now()
    try:
        return [(key, one) for key, one, begun in store.objects.uploads("files/") if now - begun >= FRESH]
    except StoreError as error:
        why = str(error).rstrip(".")
        store.notes.append(
            f"{why}; uploads in parts that were given up stay (s3:ListBucketMultipartUploads shows them)."
        )
        return []


def _unlink(store: RemoteStore) -> None:
    """Takes links to outputs that are gone out of the runs' pointers."""
    named = {stat.key[6:-5] for stat in store.objects.listed("trees/")}
    for run, (links, order) in pointers(store).items():
        left = {label: digest for label, digest in links.items() if digest in named}
        if left != links:
            store.objects.put(f"runs/{run}/{POINTER}", encoded(left, order))
