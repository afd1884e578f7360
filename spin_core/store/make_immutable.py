"""Makes a finished output immutable and durable, before it gets its name."""

from __future__ import annotations

import os
from pathlib import Path

from spin_core.errors import StageFailed
from spin_core.store import fs
from spin_core.store.digest import Damaged, FileEntry, files_in, manifest, open_regular

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


def check_tree(tree: Path, files: list[FileEntry]) -> None:
    """Hashes all of `tree`. Raises Damaged, naming the first file that differs from the manifest `files`."""
    there = {entry["path"]: entry for entry in manifest(tree)}
    listed = {entry["path"]: entry for entry in files}
    for name in sorted(there.keys() | listed.keys()):
        if name not in there:
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
