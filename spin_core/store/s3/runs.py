"""What people see of runs, on object storage: a small pointer for each run, and its files.

    runs/<run>/run.json       {"links": {label: digest}, "order": how many runs began before it}
    runs/<run>/files/<name>   report.html, steps.json, …
    latest                    the name of the run that ended last

Views, as in runs.py: they may be rewritten, of two writers the last one counts, and no look-up reads them.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from spin_core.store import runs
from spin_core.store.keys import DIGEST
from spin_core.store.record import MAX_BYTES
from spin_core.store.s3 import transfer
from spin_core.store.s3.objects import Objects, Stat, md5

FOLDER, FILES, POINTER, LATEST = "runs/", "files/", "run.json", "latest"


def send_links(objects: Objects, root: Path, run: str) -> None:
    """Writes a run's pointer as its folder in the cache is, and `latest`. Raises StoreError."""
    objects.put(f"{FOLDER}{run}/{POINTER}", _pointer(root / "runs" / run))
    objects.put(LATEST, run.encode())


def refresh(objects: Objects, root: Path) -> None:
    """Makes runs/ of the cache what the service has: links, files, `latest`. Fetches what differs; runs that only the
    cache has stay, and what has no name of a run or of its file is passed over. Raises StoreError, OSError."""
    named = [
        (stat, *place) for stat in objects.listed(FOLDER) if stat.size <= MAX_BYTES and (place := _place(stat.key))
    ]
    changed = [(stat, run, name) for stat, run, name in named if _changed(root / "runs" / run, name, stat)]
    contents = transfer.in_parallel(lambda one: objects.get(one[0].key), changed)
    for (_, run, name), data in zip(changed, contents, strict=True):
        if data is not None and name == POINTER:
            _link(root, run, data)
        elif data is not None:
            runs.write(root, run, name.removeprefix(FILES), data)
    latest = (objects.get(LATEST) or b"").decode("ascii", errors="replace")
    if runs.RUN.fullmatch(latest) and (root / "runs" / latest).is_dir():
        runs.point_latest(root, latest)


def _place(key: str) -> tuple[str, str] | None:
    """(run, run.json or files/<name>) of an object; None if that is not what its key says."""
    run, _, name = key.removeprefix(FOLDER).partition("/")
    inside = name.startswith(FILES) and runs.LABEL.fullmatch(name.removeprefix(FILES))
    return (run, name) if runs.RUN.fullmatch(run) and (name == POINTER or inside) else None


def read_pointer(data: bytes) -> runs.Pointer:
    """(label → digest, order) of a pointer, without the entries that are none. Raises ValueError if it is no JSON of
    such a form."""
    try:
        pointer = json.loads(data)
        links, order = dict(pointer["links"].items()), int(pointer["order"])
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("not a pointer of a run") from error
    return {label: digest for label, digest in links.items() if _is_link(label, digest)}, order


def links_of(data: bytes | None) -> runs.Pointer:
    """As `read_pointer`; nothing of what is no pointer: these are views."""
    with suppress(ValueError):
        return read_pointer(data or b"")
    return {}, 0


def _is_link(label: object, digest: object) -> bool:
    return (
        isinstance(label, str)
        and isinstance(digest, str)
        and bool(runs.LABEL.fullmatch(label) and DIGEST.fullmatch(digest))
    )


def _link(root: Path, run: str, data: bytes) -> None:
    links, order = links_of(data)
    if links:
        gone = {path.name: None for path in (root / "runs" / run).glob("*") if path.is_symlink()}
        runs.relabel(root, run, {**gone, **links})
        runs.write_order(root, run, order)


def _changed(folder: Path, name: str, stat: Stat) -> bool:
    """Whether an object is another than the cache has; an etag that is no MD5 (encryption) says yes."""
    file = folder / name.removeprefix(FILES)
    try:
        if name == POINTER:
            data = _pointer(folder)
        elif not file.is_file() or file.is_symlink() or file.stat().st_size != stat.size:
            return True
        else:
            data = file.read_bytes()
    except OSError:
        return True
    return md5(data) != stat.etag


def _pointer(folder: Path) -> bytes:
    links, order = runs.pointer(folder)
    return encoded({label: digest for label, digest in links.items() if _is_link(label, digest)}, order)


def encoded(links: dict[str, str], order: int) -> bytes:
    """A run's pointer as the service has it."""
    return json.dumps({"links": links, "order": order}, indent=1).encode()
