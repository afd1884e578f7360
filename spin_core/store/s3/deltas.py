"""Weights on the service as differences to those that they were trained from (spin_core/store/delta.py).

    deltas/<sha256 of the file>.<sha256 of its base>.<sha256 of this object>

Beside files/, of which such an object takes the place: a name says what it hangs on, so gc and verify read no object,
and parts that another writer sent are as good as one's own. `SPINLOOP_DELTAS=off` sends every file as it is.
Not here: the cache, which has files as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from spin_core.errors import BadInput
from spin_core.store import delta, fs
from spin_core.store.digest import Damaged, FileEntry, file_digest
from spin_core.store.keys import input_digests
from spin_core.store.progress import Report, bar
from spin_core.store.record import Record
from spin_core.store.s3 import transfer
from spin_core.store.s3.objects import Objects, Stat

FOLDER = "deltas/"
NAME = re.compile(rf"{FOLDER}([0-9a-f]{{64}})\.([0-9a-f]{{64}})\.([0-9a-f]{{64}})")


class Link(NamedTuple):
    """A delta on the service. `new`, `base`, `own`: sha256 of the file, of its base, of the object."""

    new: str
    base: str
    own: str
    stat: Stat


Deltas = Callable[[str], list[Link]]
"""sha256 of a file → the deltas that give it."""
Whole = Callable[[str], Stat | None]
"""sha256 of a file → its object, where there is one."""


class Way(NamedTuple):
    """How a file is had: `links`, the oldest first, from the object `whole`."""

    whole: Stat
    links: list[Link]


def links(stats: Iterable[Stat]) -> dict[str, list[Link]]:
    """By the file that they give, in the order of names. Names that are none count as not there."""
    made: dict[str, list[Link]] = {}
    for stat in stats:
        if parts := NAME.fullmatch(stat.key):
            made.setdefault(parts[1], []).append(Link(parts[1], parts[2], parts[3], stat))
    return made


def way(sha: str, size: int, deltas: Deltas, whole: Whole, deepest: int = 2 * delta.DEEPEST) -> Way | None:
    """The shortest list of deltas to a file of this size from one that is there as it is; None where there is none."""
    stat = whole(sha)
    if stat is not None and stat.size == size:
        return Way(stat, [])
    for link in deltas(sha) if deepest else []:
        if found := way(link.base, size, deltas, whole, deepest - 1):
            return Way(found.whole, [*found.links, link])
    return None


def way_there(objects: Objects, entry: FileEntry) -> Way | None:
    """`way`, by requests. None for a file for which no delta is made, without one."""
    if not may_be_delta(entry):
        return None
    return way(entry["sha256"], entry["size"], *asked(objects))


def asked(objects: Objects) -> tuple[Deltas, Whole]:
    """What is there, by a request each."""
    return (
        lambda sha: links(objects.listed(f"{FOLDER}{sha}.")).get(sha, []),
        lambda sha: objects.head(f"files/{sha}"),
    )


def may_be_delta(entry: FileEntry) -> bool:
    """Whether a file is weights, and large enough."""
    return entry["path"].endswith(delta.SUFFIX) and entry["size"] >= delta.SMALLEST


def made(
    objects: Objects,
    record: Record,
    manifest: Callable[[str], list[FileEntry] | None],
    tree: Callable[[str], Path],
    folder: Path,
    report: Report,
) -> dict[str, transfer.File | None]:
    """sha256 → what is to be sent in place of a file of `record`: its delta, written to `folder`, to the file of that
    name in one of its inputs; None where one is there already. Files that stay as they are have no entry.

    `manifest`: the files of an input on the service; `tree`: where the cache has an output. Raises BadInput for a
    setting, StoreError, OSError.
    """
    setting = os.environ.get("SPINLOOP_DELTAS") or "on"
    if setting not in ("on", "off"):
        raise BadInput(f"SPINLOOP_DELTAS={setting}: neither on nor off; give one of them.")
    instead: dict[str, transfer.File | None] = {}
    large = {entry["sha256"]: entry for entry in record.files if may_be_delta(entry)}
    for sha, entry in large.items():
        if found := way_there(objects, entry):
            instead |= {sha: None} if found.links else {}
        elif setting == "on":
            for digest in dict.fromkeys(input_digests(record.payload)):
                source = tree(digest) / entry["path"]
                here = source.is_file() and source.lstat().st_size == entry["size"]
                base = _base(objects, entry, manifest(digest) or []) if here else None
                if base is None:
                    continue
                target = folder / f"{sha}.delta"
                with bar(report, f"store {record.stage} {record.key[:12]}", "delta", entry["size"]) as advance:
                    head = delta.write(source, record.path / entry["path"], digest, target, advance)
                if head is not None and (head.base, head.new) == (base["sha256"], sha):
                    size, own = file_digest(target)
                    instead[sha] = transfer.File(f"{FOLDER}{head.new}.{head.base}.{own}", target, size)
                    break
                fs.unlink(target)  # of files of which one is damaged here: what is sent whole has its own name
    return instead


def _base(objects: Objects, entry: FileEntry, files: list[FileEntry]) -> FileEntry | None:
    """The file of that name and size among an input's, if the service has it and one more delta may hang on it."""
    base = next((one for one in files if one["path"] == entry["path"] and one["size"] == entry["size"]), None)
    found = way_there(objects, base) if base else None
    return base if found and len(found.links) < delta.DEEPEST else None


def missing(objects: Objects, files: list[FileEntry]) -> str:
    """Key of the first of these files that the service does not have, by size; empty where it has all."""
    for entry in files:
        key = f"files/{entry['sha256']}"
        stat = objects.head(key) if entry["size"] else None
        if entry["size"] and not (stat.size == entry["size"] if stat else way_there(objects, entry)):
            return key
    return ""


def ways(objects: Objects, files: list[FileEntry], named: dict[str, Stat | None]) -> dict[str, Way]:
    """sha256 → how a file is had that is there as a delta. `named`: the objects of the whole files by their keys, to
    which those of the ways are added. Raises transfer.Missing."""
    found: dict[str, Way] = {}
    for entry in files:
        key = f"files/{entry['sha256']}"
        if (stat := named[key]) is not None and stat.size == entry["size"]:
            continue
        by = None if stat else way_there(objects, entry)
        if by is None:
            raise transfer.Missing(key)
        found[entry["sha256"]] = by
        named |= {one.key: one for one in (by.whole, *(link.stat for link in by.links))}
    return found


def here(records: Iterable[Record], ways: dict[str, Way], use: Callable[[str], None]) -> dict[str, Path]:
    """sha256 → file of those that the deltas of `ways` hang on and that the cache has, by its records; not hashed.
    `use` gets the digest of each output with one: it has to stay."""
    wanted = {link.base for found in ways.values() for link in found.links}
    files: dict[str, Path] = {}
    for record in records:
        if own := {one["sha256"]: record.path / one["path"] for one in record.files if one["sha256"] in wanted}:
            use(record.digest)
            files |= {sha: file for sha, file in own.items() if file.is_file()}
    return files


def download(
    objects: Objects,
    files: list[FileEntry],
    tree: Path,
    ways: dict[str, Way],
    here: dict[str, Path],
    report: Report,
    title: str,
) -> None:
    """Writes the files of an output into the folder `tree`. Raises as `restore`."""
    inside = {folder for entry in files for folder in PurePosixPath(entry["path"]).parents if folder.name}
    for folder in sorted(inside):
        fs.make_dir(tree / folder, 0o755)
    places = {entry["path"]: tree / entry["path"] for entry in files}
    whole = [entry for entry in files if entry["sha256"] not in ways]
    wanted = [transfer.File(f"files/{one['sha256']}", places[one["path"]], one["size"]) for one in whole]
    transfer.download(objects, wanted, report, title)
    for entry in files:
        if found := ways.get(entry["sha256"]):
            restore(objects, found, places[entry["path"]], here, report, title)


class Wrong(Exception):
    """An object of a way is not what its name says."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def restore(objects: Objects, found: Way, target: Path, here: dict[str, Path], report: Report, title: str) -> None:
    """Writes the file that `found` leads to as the new file `target`; what comes from the service lies beside it
    meanwhile. `here`: files of the cache by their sha256, which are hashed where they are used.

    Raises Wrong, transfer.Missing, StoreError, OSError.
    """
    start, base = 0, None
    for number, link in reversed(list(enumerate(found.links))):  # the nearest of them that is here
        if (path := here.get(link.base)) and file_digest(path)[1] == link.base:
            start, base = number, path
            break
    links = found.links[start:]
    beside = [target.with_name(f"{target.name}.{link.own}") for link in links]
    wanted = [transfer.File(link.stat.key, path, link.stat.size) for link, path in zip(links, beside, strict=True)]
    if base is None:
        base = target.with_name(f"{target.name}.whole")
        wanted.append(transfer.File(found.whole.key, base, found.whole.size))
    transfer.download(objects, wanted, report, title)
    for file in wanted:
        if file_digest(file.path)[1] != file.key[-64:]:
            raise Wrong(file.key)
    last = links[-1]
    try:
        with bar(report, title, "restore", found.whole.size) as advance:
            if delta.restore(base, beside, target, advance) != last.new:
                raise Wrong(last.stat.key)
    except Damaged:
        raise Wrong(last.stat.key) from None
    for file in wanted:
        fs.unlink(file.path)
