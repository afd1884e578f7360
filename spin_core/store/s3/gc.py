"""Clearing a store on object storage: what gc.py does for a local one, with leases in the place of locks. Of one that
is never idle in two steps too (condemned.py).

gc writes its mark, then looks for leases; a process writes its lease, then looks for the mark: one of them sees the
other. Fresh is what the service's own clock calls younger than two hours, so a process that was killed keeps gc out for
so long. The rest is order: records go before manifests before files, so that what dies between leaves no record
without its files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import nullcontext
from typing import NamedTuple

from spin_core.errors import StoreError
from spin_core.store import fs, roots
from spin_core.store.cache import clear_leftovers
from spin_core.store.digest import Damaged, FileEntry
from spin_core.store.gc import GcResult, Report
from spin_core.store.keep import PINNED
from spin_core.store.leases import FOLDER, FRESH, MARK, MARKS, Mark, fresh
from spin_core.store.record import Record
from spin_core.store.s3 import condemned, deltas, transfer
from spin_core.store.s3 import runs as remote_runs
from spin_core.store.s3.objects import Stat
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.s3.verify import readable

ATTEMPTS = 3
FOLDERS = ("records/", "trees/", "files/", deltas.FOLDER, remote_runs.FOLDER, "quarantine/")


class Look(NamedTuple):
    """What a store has: objects and leases of those who use it by key, records by key, pointers of runs, what is no
    pointer, and what a gc that died was about to remove."""

    there: dict[str, Stat]
    living: set[str]
    records: dict[str, Record]
    views: dict[str, remote_runs.View]
    junk: dict[str, bytes]
    begun: set[str]


def gc(
    store: RemoteStore,
    keep_runs: int | None = None,
    keep: Collection[str] = (),
    quarantine: bool = False,
    dry_run: bool = False,
    report: Report = lambda what, size: None,
    forget: Collection[str] | None = None,
    while_used: bool = False,
) -> GcResult:
    """Removes files and manifests that no record names, uploads that nobody goes on with, and leases of dead processes;
    with `keep_runs`, `keep` or `forget` records too, as gc.gc does. Of this machine's cache leftovers and unfinished
    work go, the rest of it clears itself. A pointer of a run that is none is set aside, and no record goes in this
    time. `while_used`: where a process uses the store, outputs alone, in two steps, and links to them stay in the runs'
    pointers, which somebody may be writing; nothing that anybody relies on goes.

    Raises BadInput as gc.gc; StoreError, having done nothing, while a process somewhere uses the store, or while it is
    not known whether one does (a lease younger than two hours; unless `while_used`), where a record cannot be read,
    where two listings differ, and where what was listed cannot be all (`roots`).
    """
    with nullcontext() if dry_run else Mark(store.objects) as mark:
        for attempt in range(ATTEMPTS if while_used else 1):
            try:
                look = _look(store, mark, while_used)
                break
            except StoreError:  # what others do meanwhile can make a look fail
                if not while_used or attempt + 1 == ATTEMPTS:
                    raise
        there, living, records, views, junk, begun = look
        runs = {run: (view.links, view.order) for run, view in views.items()}
        if junk:
            _set_aside(store, junk, dry_run)
            keep_runs, keep, forget = None, (), None
        pinned = [run for run, view in views.items() if PINNED in view.files]
        kept = roots.needed(store.url, list(records.values()), runs, keep_runs, keep, forget, pinned)
        if living:
            return _in_use(store, look, kept, mark, report)
        going = {key: record for key, record in records.items() if record.digest not in kept}
        # What a gc that died had removed is in this list too, and its links go now.
        gone = begun - there.keys()
        result = _collect(store, there, records, going, views, gone, quarantine, mark, report)
        if mark is not None:
            condemned.clear(store.objects, there)
        return result


def _look(store: RemoteStore, mark: Mark | None, while_used: bool) -> Look:
    """What is there. Raises StoreError as `gc`."""
    there, living = _listed(store, mark, while_used)
    records = _records(store, there)
    views, junk = remote_runs.read(store.objects, [there[key] for key in sorted(there)])
    runs = {run: (view.links, view.order) for run, view in views.items()}
    begun = roots.begun(store.objects.get(roots.LIST))
    roots.demand_all(store.url, list(records.values()), runs, roots.digests(there), begun)
    return Look(there, living, records, views, junk, begun)


def _in_use(store: RemoteStore, look: Look, kept: set[str], mark: Mark | None, report: Report) -> GcResult:
    """Removes of what is condemned what is still unneeded and not marked, once everybody has ended who began before it
    was; then condemns what else nobody needs."""
    objects, there, records, living = store.objects, look.there, look.records, look.living
    listed = condemned.read(objects)
    marked = condemned.marked(objects, {record.digest for record in records.values()})
    loose = {key for key, record in records.items() if record.digest not in kept and record.digest not in marked}
    unneeded = _unneeded(there, records, loose, marked)
    waiting = listed.before is None or bool(listed.before & living) or not _all_mark(store, living)
    going: dict[str, str] = {}
    if not waiting:  # a record that came after the list stays, and so do its files, whoever else has them
        found = _unneeded(there, records, loose & listed.places.keys(), marked)
        going = {key: digest for key, digest in found.items() if key in listed.places}
    gone = [there[key] for key in going]
    for stat in gone:
        record = records.get(stat.key)
        report(record.stage if record else "files", 0 if record else stat.size)
    if mark is not None and going:
        waves: list[list[str]] = [[], [], []]
        for key in going:
            waves[0 if key.startswith("records/") else 1 if key.startswith("trees/") else 2].append(key)
        mark.check()
        objects.put(roots.LIST, roots.removal({*going, *look.begun}))
        _remove(store, mark, waves)
        # What a gc that died has left of something else, one that is alone goes on with.
        done = not look.begun & there.keys() - going.keys()
        objects.put(roots.LIST, roots.removal({*going, *look.begun}, finished=done))
    left = {key: digest for key, digest in unneeded.items() if key not in going}
    if mark is not None and not (waiting and listed.places and listed.before is not None):
        mark.check()
        condemned.clear(objects, there)
        if left:
            condemned.condemn(objects, left)
    return GcResult(
        bytes=sum(stat.size for stat in gone if stat.key.startswith(("files/", deltas.FOLDER))),
        trees=sum(stat.key.startswith("trees/") for stat in gone),
        records=sum(stat.key.startswith("records/") for stat in gone),
        temp=0,
        scratch=0,
        in_use=True,
        waiting=sum(key.startswith("trees/") for key in left),
        waiting_bytes=sum(there[key].size for key in left if key.startswith(("files/", deltas.FOLDER))),
    )


def _all_mark(store: RemoteStore, living: set[str]) -> bool:
    """Whether all who use the store mark what they rely on. An older spinloop does not, and says so by its lease."""
    contents = transfer.in_parallel(store.objects.get, sorted(living))
    older = sum(data is not None and MARKS.encode() not in data for data in contents)
    if older:
        what = f"{older} of {len(living)} processes that use the store are of an older spinloop"
        store.notes.append(f"{store.url}: {what}; nothing is removed beside these.")
    return not older


def _unneeded(
    there: dict[str, Stat], records: dict[str, Record], loose: set[str], marked: dict[str, list[FileEntry]]
) -> dict[str, str]:
    """What goes if these records go: their keys and those of objects that neither another record nor a file of `marked`
    needs → digest of the output that it belongs to; of a file its sha256. Records and manifests come first."""
    stay = [record for key, record in records.items() if key not in loose]
    named = {f"trees/{digest}.json" for digest in (*marked, *(record.digest for record in stay))}
    named |= _needed_files(there, stay, [entry for files in marked.values() for entry in files])
    going = {key: records[key].digest for key in sorted(loose)}
    for below in ("trees/", "files/", deltas.FOLDER):
        for key in there:
            if key.startswith(below) and key not in named:
                going[key] = key.rpartition("/")[2].partition(".")[0]
    return going


def _listed(store: RemoteStore, mark: Mark | None, while_used: bool) -> tuple[dict[str, Stat], set[str]]:
    """Everything that is there, listed in one go and again folder by folder: what a cache in between answers to one
    question it does not answer to the other. And the leases of those who use the store, if that is allowed."""
    objects = store.objects
    whole = {stat.key: stat for stat in objects.listed("")}
    if mark is not None and ((own := objects.head(MARK)) is None or MARK not in whole or whole[MARK].etag != own.etag):
        raise StoreError(f"{store.url}: what was just written is not in the listing, so it is old; run gc again later.")
    now = objects.now()
    held = {stat.key for stat in whole.values() if stat.key.startswith(FOLDER) and now - stat.modified < FRESH}
    living = held | {stat.key for stat in fresh(objects)}
    if living and not while_used:
        raise StoreError(
            f"{store.url}: a run is using the store ({len(living)} processes; one that was killed counts for two "
            "hours); run gc again when it has finished."
        )
    for below in FOLDERS:
        again = {stat.key: stat for stat in objects.listed(below)}
        first = {key: stat for key, stat in whole.items() if key.startswith(below)}
        if living:  # whoever writes meanwhile: what both have is there
            whole = {key: stat for key, stat in whole.items() if not key.startswith(below) or again.get(key) == stat}
        elif again != first:
            what = f"two listings of {below} in a row differ ({len(first)} objects, then {len(again)})"
            raise StoreError(f"{store.url}: {what}; something else writes there, or the service is behind; run again.")
    return whole, living


def _records(store: RemoteStore, there: dict[str, Stat]) -> dict[str, Record]:
    keys = [key for key in there if key.startswith("records/")]
    records = {}
    for key, record in readable(store, keys):
        if isinstance(record, Damaged):
            why = f"{key}: this is not a whole record, so it is not known what it needs, and gc removes nothing"
            remedy = "run its profile again, which sets it aside, or delete it there"
            raise StoreError(f"{store.url}/{why}; {remedy}.")
        records[key] = record
    return records


def _set_aside(store: RemoteStore, junk: dict[str, bytes], dry_run: bool) -> None:
    for key in junk:
        if not dry_run:
            store.move_aside(key)
        done = "would be" if dry_run else "is"
        store.note_once(
            f"{store.url}/{key}: this is not the pointer of a run; it {done} set aside in quarantine/, and this time "
            "every record is kept; run that profile again before the next gc if its outputs are wanted."
        )


def _collect(
    store: RemoteStore,
    there: dict[str, Stat],
    records: dict[str, Record],
    going: dict[str, Record],
    views: dict[str, remote_runs.View],
    gone: set[str],
    quarantine: bool,
    mark: Mark | None,
    report: Report,
) -> GcResult:
    kept = [record for key, record in records.items() if key not in going]
    named = {f"trees/{record.digest}.json" for record in kept}
    named |= _needed_files(there, kept)
    stages = {f"files/{entry['sha256']}": record.stage for record in records.values() for entry in record.files}
    manifests = [key for key in there if key.startswith("trees/") and key not in named]
    unnamed = [there[key] for key in there if key.startswith(("files/", deltas.FOLDER)) and key not in named]
    aside = [there[key] for key in there if quarantine and key.startswith("quarantine/")]
    # None of these is fresh. A process that began after the mark has a lease that is not among them, and waits.
    leases = [key for key in there if key.startswith(FOLDER)]
    uploads = _given_up(store)
    given = {link.stat.key: f"files/{link.new}" for own in deltas.links(there.values()).values() for link in own}
    for stage, size in [
        *((record.stage, 0) for record in going.values()),
        *((stages.get(given.get(stat.key, stat.key), "no record"), stat.size) for stat in unnamed),
        *(("quarantine", stat.size) for stat in aside),
        *(("temporary", 0) for _ in uploads),
    ]:
        report(stage, size)
    if mark is not None:
        rest = [stat.key for stat in (*unnamed, *aside)]
        waves = [list(going), manifests, [*rest, *leases]]
        gone = gone.union(*waves)
        mark.check()
        if gone:
            store.objects.put(roots.LIST, roots.removal(gone))
        _remove(store, mark, waves)
        _unlink(store, views, roots.digests(gone))
        if gone:
            store.objects.put(roots.LIST, roots.removal(gone, finished=True))
        for key, upload in uploads:
            store.objects.abort(key, upload)
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


def _needed_files(there: dict[str, Stat], kept: list[Record], files: Iterable[FileEntry] = ()) -> set[str]:
    """Keys of the files of these records, and of `files`, as they are there: whole, or else every delta that gives them
    and what it hangs on."""
    by_new, needed = deltas.links(there.values()), set[str]()
    waiting = [entry["sha256"] for entry in files]
    waiting += [entry["sha256"] for record in kept for entry in record.files]
    while waiting:
        sha = waiting.pop()
        if (key := f"files/{sha}") in needed:
            continue
        needed.add(key)
        for link in by_new.get(sha, []) if key not in there else []:
            needed.add(link.stat.key)
            waiting.append(link.base)
    return needed


def _remove(store: RemoteStore, mark: Mark, waves: list[list[str]]) -> None:
    """One wave after the other: records, manifests, the rest."""
    for wave in waves:
        mark.check()
        list(transfer.in_parallel(store.objects.delete, wave))


def _given_up(store: RemoteStore) -> list[tuple[str, str]]:
    """(key, upload id) of the uploads in parts that are to be aborted; none where they may not be listed."""
    now = store.objects.now()
    try:
        begun = [one for below in ("files/", deltas.FOLDER) for one in store.objects.uploads(below)]
        return [(key, one) for key, one, at in begun if now - at >= FRESH]
    except StoreError as error:
        why = str(error).rstrip(".")
        store.notes.append(
            f"{why}; uploads in parts that were given up stay (s3:ListBucketMultipartUploads shows them)."
        )
        return []


def _unlink(store: RemoteStore, views: dict[str, remote_runs.View], gone: set[str]) -> None:
    """Takes links to outputs that were removed out of the runs' pointers."""
    for run, view in views.items():
        links = {label: digest for label, digest in view.links.items() if digest not in gone}
        if links != view.links:
            store.objects.put(f"{remote_runs.FOLDER}{run}/{remote_runs.POINTER}", view._replace(links=links).encoded())
