"""Checking a store on object storage, and what it takes there; changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator

from spin_core.store.digest import Damaged
from spin_core.store.keys import DIGEST, STAGE, canonical
from spin_core.store.record import Record, parse
from spin_core.store.s3 import deltas, transfer
from spin_core.store.s3 import runs as remote_runs
from spin_core.store.s3.objects import Stat
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.usage import Usage, UsageLine, table

Track = Callable[[list[Stat]], Iterable[Stat]]


def readable(store: RemoteStore, keys: list[str] | None = None) -> list[tuple[str, Record | Damaged]]:
    """(object key, record) of everything below records/ (or of `keys`, which were listed), evidence too; Damaged for
    what is none. Raises StoreError."""
    if keys is None:
        keys = [stat.key for stat in store.objects.listed("records/")]
    return list(zip(keys, transfer.in_parallel(lambda key: _read(store, key), keys), strict=True))


def _read(store: RemoteStore, key: str) -> Record | Damaged:
    name = key.rpartition("/")[2]
    bare = name.removesuffix(".json").partition(".nondeterministic-")[0]
    if key.count("/") != 2 or not STAGE.fullmatch(key.split("/")[1]) or not DIGEST.fullmatch(bare):
        return Damaged(f"{key}: not the name of a record.")
    data = store.objects.get(key)
    try:
        return parse(data or b"", store.root / key, store.root / "trees")
    except Damaged as bad:
        return bad


def verify(store: RemoteStore, deep: bool = True, track: Track = lambda files: files) -> list[str]:
    """What is wrong with the store on the service, a line each: records that are none, files of records that are
    missing or have another size; with `deep` (which downloads every file, and keeps none) another content.

    `track` is given the files and gives them back one by one, for who shows progress. Raises StoreError if the service
    fails. Files that no record names are not wrong: `gc` takes them.
    """
    there = {stat.key: stat for below in ("files/", deltas.FOLDER) for stat in store.objects.listed(below)}
    by_new = deltas.links(there.values())
    manifests = {stat.key: stat.size for stat in store.objects.listed("trees/")}
    problems, needed = store.takes.problems(), set()
    for key, record in readable(store):
        if isinstance(record, Damaged):
            problems.append(str(record).replace(f"{store.root}/", ""))
            continue
        if manifests.get(name := f"trees/{record.digest}.json") != len(canonical(record.files)):
            problems.append(f"{key}: the manifest {name} is missing or has another size.")
        for entry in record.files:
            file = f"files/{entry['sha256']}"
            needed.add(file)
            if file not in there:
                found = deltas.way(
                    entry["sha256"],
                    entry["size"],
                    lambda sha: by_new.get(sha, []),
                    lambda sha: there.get(f"files/{sha}"),
                )
                if found is None:
                    hangs = " as it is, and what its delta hangs on too" if entry["sha256"] in by_new else ""
                    problems.append(f"{key}: {entry['path']} ({file}) is missing{hangs}.")
                else:
                    needed |= {found.whole.key, *(link.stat.key for link in found.links)}
            elif there[file].size != entry["size"]:
                problems.append(f"{key}: {entry['path']} ({file}) has another size than was published.")
    if deep:
        for name, data in zip(manifests, transfer.in_parallel(store.objects.get, manifests), strict=True):
            if hashlib.sha256(data or b"").hexdigest() != name[6:-5]:
                problems.append(f"{name}: its content is not what its name says.")
        wanted = [stat for key, stat in sorted(there.items()) if key in needed]
        problems += _altered(store, wanted, track)
    return problems


def _altered(store: RemoteStore, wanted: list[Stat], track: Track) -> Iterator[str]:
    for stat in track(wanted):
        sha = hashlib.sha256()
        pieces = [(stat.key, start, count) for _, start, count in transfer.pieces(stat.size)]
        for at in range(0, len(pieces), transfer.THREADS):  # no more in memory than are on their way at once
            few = pieces[at : at + transfer.THREADS]
            for data in transfer.in_parallel(lambda piece: store.objects.read(*piece), few):
                sha.update(data or b"")
        if sha.hexdigest() != stat.key[-64:]:
            yield f"{stat.key}: its content is not what its name says."


def usage(store: RemoteStore, run: str | None = None) -> Usage:
    """What the store takes on the service, as `usage` of a local one. Raises StoreError."""
    listed = [record for _, record in readable(store) if isinstance(record, Record)]
    records = {record.digest: record for record in reversed(listed)}  # of several that made it the first
    files = _files(store)
    views, _ = remote_runs.read(store.objects, store.objects.listed(remote_runs.FOLDER))
    linked = {name: set(view.links.values()) & records.keys() for name, view in views.items()}
    seen: set[str] = set()
    bytes_of: dict[str, int] = {}
    for digest in sorted(records):
        new = {f"files/{entry['sha256']}" for entry in records[digest].files} - seen
        seen |= new
        bytes_of[digest] = sum(files.get(key, 0) for key in new)
    stages = {digest: record.stage for digest, record in records.items()}
    return table(bytes_of, stages, linked, list(_other(store, files, seen)), run)


def outputs(store: RemoteStore) -> dict[str, dict[Hashable, int]]:
    """Digest → the files of an output and the bytes that they take there, as `usage.outputs`. Raises StoreError."""
    files = _files(store)
    records = [record for _, record in readable(store) if isinstance(record, Record)]
    keys = {record.digest: [f"files/{entry['sha256']}" for entry in record.files] for record in records}
    return {digest: {key: files.get(key, 0) for key in own} for digest, own in keys.items()}


def _files(store: RemoteStore) -> dict[str, int]:
    """Key of a file → bytes that it takes, as it is or as deltas."""
    files = {stat.key: stat.size for stat in store.objects.listed("files/")}
    for sha, own in deltas.links(store.objects.listed(deltas.FOLDER)).items():
        files[f"files/{sha}"] = files.get(f"files/{sha}", 0) + sum(link.stat.size for link in own)
    return files


def _other(store: RemoteStore, files: dict[str, int], named: set[str]) -> Iterator[UsageLine]:
    unnamed = [size for key, size in files.items() if key not in named]
    aside = [stat.size for stat in store.objects.listed("quarantine/")]
    for what, sizes in (("(no record)", unnamed), ("quarantine", aside)):
        if sizes:
            yield UsageLine(what, len(sizes), sum(sizes))
