"""Makes a finished output immutable and durable, before it gets its name; a file of it that an input has already takes
its space only once.

A model's tokenizer goes from iteration to iteration unchanged, and so do settings. Only inputs are looked at, under
the same name: an index of every file in the store would cost each publication more than it saves.
Not a risk: files of the store are never written again (0444), what is shared was compared byte by byte, and it is
hashed at every look-up as before: damage to a shared block is seen in each output that has it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from spin_core.errors import StageFailed
from spin_core.store import fs
from spin_core.store.digest import Damaged, FileEntry, files_in, manifest, open_regular

SMALLEST = 4096  # bytes: below a block there is nothing to save
PIECE = 1 << 20
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def seal(tree: Path) -> list[FileEntry]:
    """Flushes every file below `tree` to disk, makes files 0444 and inner folders 0555, and returns the manifest.

    Raises StageFailed for an empty tree and for pickled files, Damaged (a StoreError) for links, FIFOs and devices.
    """
    files_there = sorted(files_in(tree))
    if not files_there:
        raise StageFailed(f"{tree.name}: the stage wrote no file, so there is nothing to publish.")
    for name, path in files_there:
        _refuse_pickle(name, path)
    for _, path in files_there:
        fs.chmod(path, 0o444)
        fs.sync(path)
    files = manifest(tree)
    for folder in sorted((Path(base) for base, _, _ in os.walk(tree)), reverse=True):
        if folder != tree:
            fs.chmod(folder, 0o555)
        fs.sync(folder)
    return files


def check_tree(tree: Path, files: list[FileEntry], elsewhere: Collection[str] = ()) -> None:
    """Hashes all of `tree`. Raises Damaged, naming the first file that differs from the manifest `files`, or is missing
    and not `elsewhere`."""
    there = {entry["path"]: entry for entry in manifest(tree)}
    listed = {entry["path"]: entry for entry in files}
    for name in sorted(there.keys() | listed.keys()):
        if name not in there:
            if name in elsewhere:
                continue
            raise Damaged(f"{tree / name}: the file is missing.")
        if name not in listed:
            raise Damaged(f"{tree / name}: this file was not published.")
        if there[name] != listed[name]:
            raise Damaged(f"{tree / name}: its content is not what was published.")


def _refuse_pickle(name: str, path: Path) -> None:
    with open(open_regular(path), "rb") as stream:
        head = stream.read(16)
    # A safetensors file opens with its header's length: 640 = 0x0280 reads like a pickle's first bytes.
    weights = path.suffix == ".safetensors" and head[8:9] == b"{"
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if path.suffix.lower() in PICKLED or (not weights and (pickled or head[:4] == b"PK\x03\x04")):
        raise StageFailed(f"{name}: pickled files can run code when they are read; write safetensors, JSON or parquet.")


def share(tree: Path, inputs: Iterable[Path]) -> int:
    """Makes files of the finished, not yet sealed folder `tree` one with those of the trees `inputs` that are the same.

    Returns the bytes that it saved. What cannot be shared stays as it is. Raises Damaged as `files_in`, OSError where
    the disk fails.
    """
    places = [place for place in inputs if place.is_dir()]
    saved = 0
    for name, path in sorted(files_in(tree)) if places else ():
        size = path.lstat().st_size
        if size >= SMALLEST:
            twin = next((place / name for place in places if _same(place / name, path, size)), None)
            saved += size if twin and fs.duplicate(twin, path) else 0
    return saved


def _same(source: Path, path: Path, size: int) -> bool:
    """Whether both are regular files of the same bytes. Weights that were trained differ in the first piece."""
    try:
        with open(open_regular(source), "rb") as one, open(open_regular(path), "rb") as other:
            status = os.fstat(one.fileno())
            # One that somebody made writable may be about to change; one of another user could not be sealed again.
            if status.st_size != size or stat.S_IMODE(status.st_mode) & 0o222 or status.st_uid != os.geteuid():
                return False
            while piece := one.read(PIECE):
                if piece != other.read(PIECE):
                    return False
            return True
    except (Damaged, OSError):  # an input that cannot be read is reported where it is used
        return False
