"""What people see of runs, on object storage: a small pointer for each run, and its files.

    runs/<run>/run.json       {"links": {label: digest}, "order": n, "files": {name: sha256}}; n runs began before it
    runs/<run>/files/<name>   report.html, steps.json, …

Views, as in runs.py: they may be rewritten, of two writers the last one counts, and no look-up reads them. A file that
is not what its run's pointer says, or that it does not name, is not brought here: people open these. Which run is the
latest one follows from the pointers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from spin_core.errors import StoreError
from spin_core.store import fs, runs
from spin_core.store.digest import Damaged, children, file_digest
from spin_core.store.keys import DIGEST
from spin_core.store.record import MAX_BYTES
from spin_core.store.s3 import transfer
from spin_core.store.s3.objects import Objects, Stat, md5

FOLDER, FILES, POINTER = "runs/", "files/", "run.json"


class View(NamedTuple):
    """A run's pointer. `files`: the sha256 of each file; empty in what older versions wrote."""

    links: dict[str, str]
    order: int
    files: dict[str, str]

    def encoded(self) -> bytes:
        """As the service has it."""
        return json.dumps(self._asdict(), indent=1).encode()


def send(objects: Objects, root: Path, run: str, files: Mapping[str, bytes | None] = MappingProxyType({})) -> None:
    """Writes `files` of a run (name → bytes; None: removes it), and its pointer as its folder in the cache is. Raises
    StoreError, OSError."""
    for name, data in files.items():
        if data is not None:
            objects.put(f"{FOLDER}{run}/{FILES}{name}", data)
    objects.put(f"{FOLDER}{run}/{POINTER}", _view(root / "runs" / run).encoded())
    for name in [name for name, data in files.items() if data is None]:  # after the pointer that named it
        objects.delete(f"{FOLDER}{run}/{FILES}{name}")


def forget(objects: Objects, run: str) -> None:
    """Removes a run: its pointer first, as its files are nothing without it. Raises StoreError."""
    objects.delete(f"{FOLDER}{run}/{POINTER}")
    for stat in list(objects.listed(f"{FOLDER}{run}/")):
        objects.delete(stat.key)


def refresh(objects: Objects, root: Path, note: Callable[[str], None]) -> dict[str, bytes]:
    """Makes runs/ of the cache what the service has: links, files, `latest`. Fetches what differs; runs that only the
    cache has stay, and what has no name of a run is passed over. `note` gets a sentence for each file that is not what
    it should be. Returns the pointers that are none: object key → bytes. Raises StoreError, OSError."""
    listed = list(objects.listed(FOLDER))
    views, junk = read(objects, listed, root)
    having = {stat.key.split("/")[1] for stat in listed if f"/{FILES}" in stat.key}
    if old := [run for run in sorted(views) if run in having and not views[run].files]:
        what = f"{len(old)} of {len(views)} runs, such as {old[0]}, do not say what is in their files"
        note(f"{objects.url}: {what} (an older spinloop's); these are not shown until their profiles run again.")
    wanted = []
    for run, view in views.items():
        here = _view(root / "runs" / run)
        if (here.links, here.order) != (view.links, view.order):
            runs.relabel(root, run, {**dict.fromkeys(here.links), **view.links})
            runs.write_order(root, run, view.order)
        wanted += [(run, name, digest) for name, digest in view.files.items() if here.files.get(name) != digest]
    contents = transfer.in_parallel(lambda one: objects.get(f"{FOLDER}{one[0]}/{FILES}{one[1]}"), wanted)
    for (run, name, digest), data in zip(wanted, contents, strict=True):
        if data is not None and hashlib.sha256(data).hexdigest() == digest:
            runs.write(root, run, name, data)
        else:
            fs.remove(root / "runs" / run / name)
            what = "is missing, of more than 64 MiB, or not what its run wrote"
            note(f"{objects.url}/{FOLDER}{run}/{FILES}{name}: {what}; it is not shown (run the profile again).")
    latest = max(views, key=lambda run: (views[run].order, run), default="")
    if latest and (root / "runs" / latest).is_dir():
        runs.point_latest(root, latest)
    return junk


def read(
    objects: Objects, listed: Iterable[Stat], root: Path | None = None
) -> tuple[dict[str, View], dict[str, bytes]]:
    """(run → view, object key → bytes of what is no pointer) of the pointers among `listed`; those that are as in the
    cache `root` are not fetched. Raises StoreError, also where what was read is not what was listed."""
    there = {stat: run for stat in listed if (run := _run_of(stat.key))}
    views, junk = {}, {}
    known = {run: _view(root / "runs" / run) for run in there.values()} if root else {}
    asked = []
    for stat, run in there.items():
        if run in known and md5(known[run].encoded()) == stat.etag:
            views[run] = known[run]
        else:
            asked.append(stat)
    for stat, data in zip(asked, transfer.in_parallel(lambda stat: objects.get(stat.key), asked), strict=True):
        try:
            views[there[stat]] = parse(data or b"")
        except ValueError:
            if data is None or (stat.size <= MAX_BYTES and len(data) != stat.size):
                raise StoreError(f"{objects.url}/{stat.key}: is not what was listed; run again.") from None
            junk[stat.key] = data
    return views, junk


def parse(data: bytes) -> View:
    """The view in a pointer, without the entries that are none. Raises ValueError if it is no JSON of such a form."""
    try:
        body = json.loads(data)
        links, order, files = body["links"].items(), body["order"], body.get("files", {}).items()
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("not a pointer of a run") from error
    if type(order) is not int or order < 0:
        raise ValueError("a place among the runs that is none")
    return View({k: v for k, v in links if _is_named(k, v)}, order, {k: v for k, v in files if _is_named(k, v)})


def _run_of(key: str) -> str:
    """The run whose pointer an object is by its key; empty if it is none's."""
    run, _, name = key.removeprefix(FOLDER).partition("/")
    return run if key.startswith(FOLDER) and name == POINTER and runs.RUN.fullmatch(run) else ""


def _is_named(label: object, digest: object) -> bool:
    return (
        isinstance(label, str)
        and isinstance(digest, str)
        and bool(runs.LABEL.fullmatch(label) and DIGEST.fullmatch(digest))
    )


def _view(folder: Path) -> View:
    """What a run's folder in the cache shows. Raises OSError."""
    links, order = runs.pointer(folder)
    files = {}
    for path in children(folder):
        if path.name not in links and runs.LABEL.fullmatch(path.name):
            try:
                files[path.name] = file_digest(path)[1]
            except Damaged:  # a folder that somebody made there
                continue
    return View({label: digest for label, digest in links.items() if _is_named(label, digest)}, order, files)
