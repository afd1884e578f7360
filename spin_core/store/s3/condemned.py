"""What is to go from a store on S3 that is never idle: condemned first, removed when nobody can hold it any more.

    condemned/list.json    the objects that a gc saw no need for, and the leases of those who were at work then
    condemned/<digest>     a mark: somebody who began later relies on this output
    condemned/<digest>.json    one of who sends it: its files

As in a folder (spin_core/store/condemned.py), with leases in the place of locks. A process writes its lease, then reads
the list, once; gc writes the list, then looks for leases: who is not among those that it saw knows of the list. A
process writes a mark, then waits while a gc is at work; a gc says that it is at work, then looks for marks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from spin_core.errors import StoreError
from spin_core.store.digest import FileEntry
from spin_core.store.keys import canonical, input_digests
from spin_core.store.leases import Lease, fresh
from spin_core.store.record import Record, entries
from spin_core.store.s3.objects import Objects

FOLDER = "condemned/"
LIST = f"{FOLDER}list.json"
MOST = 200_000  # places: 32 MB, of 64 that are read as one object; the rest is condemned by a later gc


class Listed(NamedTuple):
    """A list. `places`: object key → digest of the output that it belongs to, of a file its sha256; `before`: the
    leases that were there after it was written; None where that is not known."""

    places: Mapping[str, str]
    before: frozenset[str] | None


class Condemned:
    """The list as this process met it when it began. Without a lease, of who only reads, nothing is kept."""

    def __init__(self, objects: Objects, lease: Lease | None) -> None:
        self.objects = objects
        self._lease = lease
        self._places: Mapping[str, str] | None = None
        self._marked: set[str] = set()

    def keep(self, place: str) -> None:
        """Marks the output that a condemned object belongs to, before the caller looks whether it is there."""
        if digest := self._listed().get(place):
            self._mark(digest, b"")

    def rely(self, record: Record) -> None:
        """As `keep`, for an output that is about to be sent: its files, and what it was made from, of which weights may
        be sent as differences."""
        if self._listed():
            for digest in input_digests(record.payload):
                self.keep(f"trees/{digest}.json")
            self._mark(f"{record.digest}.json", canonical(record.files))

    def _listed(self) -> Mapping[str, str]:
        if self._places is None:
            self._places = read(self.objects).places if self._lease else {}
        return self._places

    def _mark(self, name: str, data: bytes) -> None:
        if self._lease and name not in self._marked:
            self.objects.put(FOLDER + name, data)
            self._lease.wait()
            self._marked.add(name)


def read(objects: Objects) -> Listed:
    """The list in force; an empty one where there is none. Raises StoreError for a damaged one."""
    data = objects.get(LIST)
    if data is None:
        return Listed({}, frozenset())
    try:
        made = json.loads(data)
        places = {str(place): str(digest) for place, digest in made["places"].items()}
        before = made["before"]
        return Listed(places, None if before is None else frozenset(map(str, before)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise StoreError(
            f"{objects.url}/{LIST}: not what gc wrote; delete it when no run uses the store. Nothing is lost by that."
        ) from None


def condemn(objects: Objects, places: Mapping[str, str]) -> None:
    """A new list, then the same with the leases that were there after it. What is beyond MOST waits."""
    some = _some(places)
    _write(objects, Listed(some, None))
    _write(objects, Listed(some, frozenset(stat.key for stat in fresh(objects))))


def _some(places: Mapping[str, str]) -> dict[str, str]:
    """At most about MOST: no file without all records, as it may be theirs; no record without its manifest."""
    heads = {key: digest for key, digest in places.items() if key.startswith(("records/", "trees/"))}
    if len(heads) <= MOST:
        return heads | dict(islice((one for one in places.items() if one[0] not in heads), MOST - len(heads)))
    digests = dict.fromkeys(digest for key, digest in heads.items() if key.startswith("records/"))
    chosen = set(islice(digests, MOST // 2))
    return {key: digest for key, digest in heads.items() if digest in chosen}


def _write(objects: Objects, listed: Listed) -> None:
    before = None if listed.before is None else sorted(listed.before)
    objects.put(LIST, json.dumps({"before": before, "places": dict(listed.places)}).encode())


def marked(objects: Objects, known: Collection[str]) -> dict[str, list[FileEntry]]:
    """Digest of what somebody relies on → its files, of those that somebody sends, and of those that no record names
    (`known`: that records do). Raises StoreError where these cannot be read."""
    made: dict[str, list[FileEntry]] = {}
    for key in [stat.key for stat in objects.listed(FOLDER) if stat.key != LIST]:
        digest, sent = key.removeprefix(FOLDER).removesuffix(".json"), key.endswith(".json")
        place = key if sent else f"trees/{digest}.json"
        data = objects.get(place) if sent or digest not in known else None
        try:
            if sent or data is not None:
                made[digest] = entries(json.loads(data or b""))
            made.setdefault(digest, [])
        except (ValueError, TypeError, KeyError, RecursionError):
            why = "not a list of files, so it is not known what somebody relies on, and nothing is removed"
            raise StoreError(f"{objects.url}/{place}: {why}; delete it when no run uses the store.") from None
    return made


def clear(objects: Objects, there: Iterable[str]) -> None:
    """Removes the list and the marks that are `there`: first the list, as marks without one keep nothing."""
    if LIST in there:
        objects.delete(LIST)
    for key in there:
        if key.startswith(FOLDER) and key != LIST:
            objects.delete(key)
