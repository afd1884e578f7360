"""A record: which output a key has, what the key was made of, the facts of its making. Data; reading runs no code."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from spin_core.errors import BadInput
from spin_core.store.digest import Damaged, FileEntry, open_regular, tree_digest
from spin_core.store.keys import DIGEST, KeyPayload, canonical, key_of, plain

FORMAT = 1
MAX_BYTES = 1 << 26
FIELDS = {
    "store": "the format of records: 1",
    "stage": "the step's stage",
    "key": "sha256 of the payload, and the record's name",
    "payload": "what the key is made of: stage, VERSION, config, digests of the inputs, and the store's format",
    "digest": "sha256 of the artifact's list of files, and the name of its folder in `trees/`",
    "files": "that list: path, size and sha256 of each file",
    "facts": "summary, versions, timings, code digest: shown to people, never part of a decision",
    "check": "sha256 of all other fields",
}
"""What a record has, and what each field is."""


@dataclass(frozen=True)
class Record:
    """One published step. `path` is the folder that holds the output; `digest` is its content digest and its name."""

    stage: str
    key: str
    payload: KeyPayload
    digest: str
    files: list[FileEntry]
    """The output's manifest, sorted by path."""
    facts: dict[str, Any]
    """summary, provenance, timings, code digest: shown to people, never part of a decision here."""
    path: Path


def encode(record: Record) -> bytes:
    """The record's file: indented JSON with a checksum, one text for one record. Raises BadInput as `plain` does."""
    body = {
        "store": FORMAT,
        "stage": record.stage,
        "key": record.key,
        "payload": plain(record.payload, "payload"),
        "digest": record.digest,
        "files": plain(record.files, "files"),
        "facts": plain(record.facts, "facts"),
    }
    body["check"] = hashlib.sha256(canonical(body)).hexdigest()
    return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read(file: Path, trees: Path) -> Record:
    """The record in `file` (records/<stage>/<key>[.nondeterministic-…].json); its tree is not looked at.

    Raises Damaged unless it is byte for byte what `encode` wrote, under the name that its payload hashes to; OSError
    for genuine read failures.
    """
    return parse(_bytes(file), file, trees)


def parse(data: bytes, file: Path, trees: Path) -> Record:
    """The record in `data`, as `read` gives it; `file` is the name that it has."""
    try:
        body = json.loads(data)
        return _checked(body, data, file, trees)
    except (ValueError, TypeError, KeyError, RecursionError, BadInput) as error:
        raise Damaged(f"{file}: this is not a whole record ({str(error)[:120]}).") from error


def _bytes(file: Path) -> bytes:
    with open(open_regular(file), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_BYTES:
            raise Damaged(f"{file}: {size} bytes is no record of ours.")
        return stream.read(MAX_BYTES)


def _checked(body: Any, data: bytes, file: Path, trees: Path) -> Record:
    if not isinstance(body, dict) or set(body) != set(FIELDS) or body["store"] != FORMAT:
        raise ValueError("other fields than a record has")
    stage, key, digest = body["stage"], body["key"], body["digest"]
    if file.parent.name != stage or file.name.split(".")[0] != key:
        raise ValueError("the name of another record")
    if key_of(body["payload"]) != key or body["payload"]["stage"] != stage:
        raise ValueError("a payload that does not hash to its key")
    if not isinstance(body["facts"], dict) or not DIGEST.fullmatch(digest) or tree_digest(body["files"]) != digest:
        raise ValueError("a list of files that does not hash to its digest")
    entries(body["files"])
    record = Record(stage, key, body["payload"], digest, body["files"], body["facts"], trees / digest)
    if encode(record) != data:
        raise ValueError("altered bytes")
    return record


def place_of(record: Record) -> str:
    """Where a record lies below its store."""
    assert key_of(record.payload) == record.key
    return f"records/{record.stage}/{record.key}.json"


def entries(files: list[FileEntry]) -> list[FileEntry]:
    """The manifest `files`, if every entry is of the form that `digest.manifest` gives it, each path once and inside
    its tree. Raises ValueError, TypeError or KeyError."""
    if not isinstance(files, list):
        raise TypeError("no list of files")
    names = {entry["path"] for entry in files}
    if len(names) != len(files):
        raise ValueError("a file that is there twice")
    for entry in files:
        name, size = entry["path"], entry["size"]
        path = PurePosixPath(name)
        inside = path.name and str(path) == name and not path.is_absolute() and ".." not in path.parts
        if set(entry) != {"path", "size", "sha256"} or not inside or "\0" in name:
            raise ValueError("a file entry of another form")
        if type(size) is not int or size < 0 or not DIGEST.fullmatch(entry["sha256"]):
            raise ValueError("a file entry of another form")
        if any(str(folder) in names for folder in path.parents):
            raise ValueError("a file that is a folder too")
        name.encode()  # half of a surrogate pair is a ValueError
    return files
