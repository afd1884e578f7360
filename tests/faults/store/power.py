"""A model of a disk that loses power (R5): what every system call left, and what of it had been made durable.

Each hook event of fs.py takes a picture of the entire folder, so that writes beside fs.py (a stage's own) are seen too.
`fsync` of a file makes its bytes durable, of a folder its names; everything else may be lost, as POSIX allows:

- zero: files have their names, but bytes that were not synced are gone;
- prefix: of those bytes the first half is there;
- undone: a folder has the names that it had when it was last synced, its files only what was synced;
- lottery: each of these choices for itself, file by file and name by name (more than the three, at random).
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from spin_core.store import fs

POLICIES = ("zero", "prefix", "undone")
Node = int
"""An inode number of the recorded folder."""


@dataclass
class Moment:
    """The folder after one operation. `names` and `data` as every process saw them; `safe_…` as the disk has them."""

    op: str
    top: Node
    names: dict[Node, dict[str, Node]] = field(default_factory=dict)
    data: dict[Node, bytes] = field(default_factory=dict)
    links: dict[Node, str] = field(default_factory=dict)
    safe_names: dict[Node, dict[str, Node]] = field(default_factory=dict)
    safe_data: dict[Node, bytes] = field(default_factory=dict)


def record(place: Path, work: Callable[[], object]) -> list[Moment]:
    """One moment before `work` (all of it durable), one after each of its operations, one after its return."""
    log = [_picture("start", place)]
    log[0].safe_names, log[0].safe_data = dict(log[0].names), dict(log[0].data)

    def hook(op: str, path: Path) -> None:
        if op.endswith("after"):
            log.append(_next(log[-1], op.split()[0], path, place))

    fs.hook = hook
    try:
        work()
    finally:
        fs.hook = None
    log.append(_next(log[-1], "return", place, place))
    return log


def _picture(op: str, place: Path) -> Moment:
    moment = Moment(op, os.lstat(place).st_ino)
    waiting = [place]
    while waiting:
        folder = waiting.pop()
        entries = moment.names.setdefault(os.lstat(folder).st_ino, {})
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            entries[entry.name] = status.st_ino
            if stat.S_ISDIR(status.st_mode):
                waiting.append(Path(entry.path))
            elif stat.S_ISLNK(status.st_mode):
                moment.links[status.st_ino] = os.readlink(entry.path)
            else:
                moment.data[status.st_ino] = Path(entry.path).read_bytes()
    return moment


def _next(last: Moment, op: str, path: Path, place: Path) -> Moment:
    now = _picture(op, place)
    # What lost its last name may get it back, with its bytes; a number that comes again is something else.
    now.safe_data = {node: data for node, data in last.safe_data.items() if node in last.data or node not in now.data}
    now.safe_names = dict(last.safe_names)
    if op == "fsync" and os.path.lexists(path):
        node = os.lstat(path).st_ino
        if node in now.data:
            now.safe_data[node] = now.data[node]
        elif node in now.names:
            now.safe_names[node] = dict(now.names[node])
    return now


def after_power_loss(log: list[Moment], at: int, policy: str, target: Path, rng: random.Random | None = None) -> None:
    """Makes `target` the folder that is there after power was lost right after operation `at`."""
    moment = log[at]
    # Bytes and kinds of what has lost its last name meanwhile, but may get it back.
    seen: dict[Node, bytes] = {}
    links: dict[Node, str] = {}
    for earlier in log[: at + 1]:
        seen |= earlier.data
        links |= earlier.links
    home = {node: folder for folder, names in moment.names.items() for node in names.values()}
    done: set[Node] = set()

    def names_of(folder: Node) -> dict[str, Node]:
        now, safe = moment.names.get(folder, {}), moment.safe_names.get(folder, {})
        if policy.startswith("lottery") and rng is not None:
            drawn = {name: rng.choice((now.get(name), safe.get(name))) for name in sorted(now.keys() | safe.keys())}
            return {name: node for name, node in drawn.items() if node is not None}
        return safe if policy == "undone" else now

    def bytes_of(node: Node) -> bytes:
        complete, safe = seen[node], moment.safe_data.get(node, b"")
        kept = policy if not policy.startswith("lottery") or rng is None else rng.choice((*POLICIES, "complete"))
        if safe == complete or kept in ("zero", "undone"):
            return safe
        return complete if kept == "complete" else complete[: len(complete) // 2]

    def build(folder: Node, path: Path) -> None:
        done.add(folder)
        for name, node in names_of(folder).items():
            if node in links:
                (path / name).symlink_to(links[node])
            elif node in seen:
                (path / name).write_bytes(bytes_of(node))
            elif node not in done and (home.get(node) in (folder, None) or not _named(home[node], node)):
                (path / name).mkdir()
                build(node, path / name)

    def _named(folder: Node, node: Node) -> bool:
        return node in (moment.names if policy != "undone" else moment.safe_names).get(folder, {}).values()

    build(moment.top, target)
