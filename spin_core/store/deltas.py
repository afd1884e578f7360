"""Weights of a tree that are kept as their difference to another tree's (delta.py), in a folder.

    deltas/<digest of the tree>/<path of the file>.<sha256 of the delta>

The tree has its other files; a step that reads the model gets the weights back in it first (`restore`), and the delta
stays. Not here: what is packed (pack.py), and object storage (s3/deltas.py).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spin_core.store import delta, fs
from spin_core.store.digest import Damaged, FileEntry, file_digest, files_in
from spin_core.store.progress import Report, bar

FOLDER = "deltas"


def packed(root: Path, digest: str) -> dict[str, Path]:
    """Path in the tree → its delta, for every file of a tree that has one. Raises Damaged, OSError."""
    below = root / FOLDER / digest
    return {name.rpartition(".")[0]: path for name, path in files_in(below)} if below.is_dir() else {}


def left_out(root: Path, digest: str) -> dict[str, Path]:
    """Of `packed` those that the tree lacks."""
    tree = root / "trees" / digest
    return {name: path for name, path in packed(root, digest).items() if not (tree / name).exists()}


def sound(root: Path, digest: str, files: Iterable[FileEntry]) -> set[str]:
    """Files that the tree lacks, and that its deltas give: every delta on the way and the whole file that it begins
    with were hashed now. Raises Damaged where one is not what it was, OSError."""
    sums = {entry["path"]: entry["sha256"] for entry in files}
    good = set()
    for name, path in left_out(root, digest).items():
        base, links = way(root, name, path)
        for link in links:
            if file_digest(link)[1] != link.name.rpartition(".")[2]:
                raise Damaged(f"{link}: its content is not what was packed.")
        if file_digest(base)[1] != delta.header(links[0]).base:
            raise Damaged(f"{base}: its content is not what {path.relative_to(root)} was made from.")
        if delta.header(path).new != sums.get(name):
            raise Damaged(f"{path}: the delta of another file.")
        good.add(name)
    return good


def bases(root: Path, digest: str) -> set[str]:
    """Digests of the trees that the deltas of this one hang on, directly. Raises Damaged, OSError."""
    return {delta.header(path).tree for path in packed(root, digest).values()}


def with_bases(root: Path, digests: Iterable[str]) -> set[str]:
    """These, and the trees that their packed weights hang on."""
    kept, waiting = set[str](), list(digests)
    while waiting:
        digest = waiting.pop()
        if digest not in kept:
            kept.add(digest)
            waiting += bases(root, digest)
    return kept


def way(root: Path, name: str, path: Path) -> tuple[Path, list[Path]]:
    """(whole file, deltas from it on) of a file's delta. Raises Damaged where the way ends before."""
    links = [path]
    while len(links) <= 2 * delta.DEEPEST:
        digest = delta.header(links[-1]).tree
        if (whole := root / "trees" / digest / name).exists():
            return whole, links[::-1]
        following = packed(root, digest).get(name)
        if following is None:
            raise Damaged(f"{whole}: is missing, and {path.relative_to(root)} was made from it.")
        links.append(following)
    raise Damaged(f"{path}: hangs on more than {2 * delta.DEEPEST} deltas.")


def restore(root: Path, digest: str, report: Report) -> None:
    """Puts the weights of a packed tree back into it. Raises Damaged where they are not what was published, OSError."""
    tree = root / "trees" / digest
    for name, path in left_out(root, digest).items():
        base, links = way(root, name, path)
        with fs.temporary(root / "tmp" / f"{fs.unique()}.restored") as temp:
            with bar(report, f"store {digest[:12]}", "restore", delta.header(path).size) as advance:
                if delta.restore(base, links, temp, advance) != delta.header(path).new:
                    raise Damaged(f"{tree / name}: restored from its deltas it is not what was published.")
            fs.chmod(temp, 0o444)
            with writable((tree / name).parent):
                fs.replace(temp, tree / name)
    fs.sync(tree)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A folder of a tree in which a name may come or go."""
    mode = stat.S_IMODE(folder.lstat().st_mode)
    fs.chmod(folder, mode | 0o200)
    try:
        yield
    finally:
        fs.chmod(folder, mode)
