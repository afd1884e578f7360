"""runs/<run>/: links and files for people. Views, which may be rewritten; no lookup reads them."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from spin_core.errors import BadInput
from spin_core.store import fs
from spin_core.store.digest import children

RUN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
LABEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
# How many runs began before this one: `gc` keeps the last ones, and a copied store has other times on its files.
ORDER = ".order"
BEST = "best"
"""The label of a run's best model: `gc` keeps it."""
Pointer = tuple[dict[str, str], int]
"""A run's links (label → digest), and its place among the others."""


def link(root: Path, run: str, links: dict[str, str | None]) -> None:
    """runs/<run>/<label> → ../../trees/<digest> for each (None: no such link), then `latest` → runs/<run>; each link
    changes at once.

    Raises BadInput for a run name or label that is not one, OSError.
    """
    relabel(root, run, links)
    if not leads_to(root, run):
        write_order(root, run, _last_order(root) + 1)
        point_latest(root, run)


def _last_order(root: Path) -> int:
    last = 0
    for other in children(root / "runs"):
        with suppress(OSError):  # another's run that cannot be read ends none of ours
            last = max(last, order(other))
    return last


def relabel(root: Path, run: str, links: dict[str, str | None]) -> None:
    """The links of `link` alone. Raises as it does."""
    for label in links:
        _demand_label(label)
    folder = _folder(root, run)
    for label, digest in sorted(links.items()):
        if digest is None:
            fs.unlink(folder / label)
        else:
            _relink(root, f"../../trees/{digest}", folder / label)


def point_latest(root: Path, run: str) -> None:
    """`latest` → runs/<run>. Raises OSError."""
    _relink(root, f"runs/{run}", root / "latest")


def leads_to(root: Path, run: str) -> bool:
    """Whether `latest` is this run."""
    latest = root / "latest"
    return latest.is_symlink() and os.readlink(latest) == f"runs/{run}"


def write_order(root: Path, run: str, number: int) -> None:
    """Gives a run its place among the others. Raises OSError, BadInput as `link`."""
    replace_file(root, _folder(root, run) / ORDER, f"{number}\n".encode())


def write(root: Path, run: str, name: str, data: bytes) -> None:
    """runs/<run>/<name>, replaced at once. Raises BadInput for a name that is not one, OSError."""
    _demand_label(name)
    replace_file(root, _folder(root, run) / name, data)


def order(folder: Path) -> int:
    """The place of a run among the others; 0 if it has none, or one that is no number. Raises OSError where it cannot
    be read: its run would be the first that gc takes."""
    try:
        return int((folder / ORDER).read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def pointer(folder: Path) -> Pointer:
    """Where the links of a run's folder lead, by label, and its place among the others. Raises OSError."""
    links = [path for path in children(folder) if stat.S_ISLNK(os.lstat(path).st_mode)]
    return {path.name: Path(os.readlink(path)).name for path in links}, order(folder)


def _demand_label(label: str) -> None:
    if not LABEL.fullmatch(label):
        raise BadInput(f"{label!r}: no name for a link or file of a run; use letters, digits, '.', '_' and '-'.")


def _folder(root: Path, run: str) -> Path:
    if not RUN.fullmatch(run):
        raise BadInput(
            f"run name {run!r}: use up to 64 lower-case letters, digits, '.', '_' and '-', first a letter or digit."
        )
    fs.make_dir(root / "runs" / run, 0o755)
    return root / "runs" / run


def _relink(root: Path, text: str, path: Path) -> None:
    if path.is_symlink() and os.readlink(path) == text:
        return
    with fs.temporary(root / "tmp" / f"{fs.unique()}.link") as temp:
        fs.symlink(text, temp)
        fs.replace(temp, path)


def replace_file(root: Path, path: Path, data: bytes) -> None:
    """Puts a file in the place of `path`, at once. Raises OSError."""
    with fs.temporary(root / "tmp" / f"{fs.unique()}.file") as temp:
        fs.write_file(temp, data, 0o644)
        fs.replace(temp, path)
