"""Files that only stand for others: what git-lfs, git-annex and Xet leave where a file was not fetched, and a web page
that was saved under a file's name.

Seen by their first bytes, or of a link by where it leads; nothing is fetched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from spin_core.data.readers import below
from spin_core.errors import BadInput

LFS = b"version https://git-lfs.github.com/spec/"
ANNEX = b"/annex/objects/"
XET = b"# xet version "
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*(<!--.{0,300}?-->\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
LONGEST = 512  # bytes that are looked at


def refuse(file: Path) -> None:
    """Raise BadInput with the remedy where `file` only stands for another. Raises OSError where it cannot be read."""
    with file.open("rb") as stream:
        head = stream.read(LONGEST)
    if head.startswith(LFS):
        raise BadInput(
            f"{file}: this is a git-lfs pointer, not the file that it stands for; run `git lfs pull` in its "
            "repository, or download the file."
        )
    if head.startswith(ANNEX):
        raise _unfetched(file)
    if head.startswith(XET):
        raise BadInput(
            f"{file}: this is an Xet pointer, not the file that it stands for; check it out with git-xet, or download "
            "the file."
        )
    if PAGE.match(head) and file.suffix.lower() not in (".html", ".htm"):
        raise BadInput(
            f"{file}: this is a web page (HTML) under a data file's name; download the file itself (on the hub from "
            "`/resolve/`, not `/blob/`)."
        )


def refuse_link(path: Path) -> None:
    """Raise BadInput with the remedy where `path` is a link into a git-annex that has not got the content."""
    if path.is_symlink() and not path.exists() and os.fsencode(ANNEX) in os.fsencode(os.readlink(path)):
        raise _unfetched(path)


def links(folder: Path) -> list[str]:
    """The relative names of all links below a folder that lead nowhere. Raises BadInput as `below`."""
    return [p.relative_to(folder).as_posix() for p in below(folder) if p.is_symlink() and not p.exists()]


def _unfetched(file: Path) -> BadInput:
    return BadInput(
        f"{file}: git-annex has not fetched what this stands for; run `git annex get` (or `datalad get`) on it."
    )
