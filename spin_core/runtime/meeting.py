"""How the nodes of a run meet: in a folder of the store, which all of them see. Nothing listens for it.

Each process has one file there, `node-<number>-<id>.json`, which it alone writes, and writes again every second: by its
changing the others know that it is there. Node 0's also says which launch is on (`Order`), every other's in which one
its processes are. Node 0 (`leader.py`) decides who takes part, `spinloop join` (`join.py`) does.

Whoever can write into the store decides what is trained anyway, so the store's access is that of the meeting: the
folder is its user's (0700), and what another user put there, or what everybody may change, does not count. What is sent
are settings. Which stage runs on what is never in it: process 0 has that from its parent, the others from process 0.

No two clocks are compared: a file is alive if its content was seen to change within LOST_SECONDS of one's own time.
Written anew each time, it makes a network file system's client look at the folder again, too.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spin_core.config.runtime import Compute
from spin_core.errors import BadInput, SpinloopError, one_line, printable
from spin_core.store import fs

RANK = ("SPINLOOP_NODE_RANK", "JOB_COMPLETION_INDEX", "SLURM_NODEID", "OMPI_COMM_WORLD_NODE_RANK", "GROUP_RANK")
LEADER = ("SPINLOOP_LEADER", "MASTER_ADDR")
MEETING = ("SPINLOOP_MEETING", "SLURM_JOB_ID", *LEADER)
NAME = re.compile(r"[A-Za-z0-9:][A-Za-z0-9._:-]{0,99}")
FILE = re.compile(r"node-(0|[1-9]\d{0,3})-([0-9a-f]{16})\.json")
ID = r"^[0-9a-f]{16}$"
MOST_NODES = 1024
LONGEST = 65536  # bytes of a file: an order for all nodes has 25,000
BEAT_SECONDS = 1.0
GONE_SECONDS = 5.0
"""Without the file of somebody who was there: it has gone, and said so by taking its file away."""
LOST_SECONDS = 60.0
"""Without a change of it: its machine is lost. A network file system may show a change so much later."""
MEETING_SECONDS = 600.0
"""Until all nodes have come: those of a cluster start minutes apart."""


class Order(BaseModel):
    """One launch, as node 0 announces it. `nodes`: the ids of the nodes 1, 2, … that take part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launch: str = Field(pattern=ID)
    compute: Compute
    device: str = Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    address: str = Field(pattern=r"^[0-9A-Fa-f.:]{2,45}$")
    port: int = Field(ge=1024, le=65535)
    nodes: list[str] = Field(max_length=MOST_NODES)


class Member(BaseModel):
    """What a process says of itself in its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    node: int = Field(ge=0, lt=MOST_NODES)
    id: str = Field(pattern=ID)
    beat: int = Field(0, ge=0)
    order: Order | None = None
    """Of node 0: the launch that is on."""
    launch: str = Field("", max_length=16)
    """Of another node: the launch that its processes are in."""


@dataclass(frozen=True)
class Place:
    """This node among the others: its number, what the meeting is called, and node 0's address as the launcher has
    it (only node 0 needs it)."""

    node: int
    meeting: str
    leader: str


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """What the launcher's environment says. Raises BadInput naming the variable that is missing or will not do."""

    def given(names: tuple[str, ...]) -> tuple[str, str]:
        name = next((name for name in names if environment.get(name)), names[0])
        return name, environment.get(name, "")

    name, number = given(RANK)
    if not re.fullmatch(r"\d{1,4}", number) or int(number) >= MOST_NODES:
        problem = f"{name}={number!r} is no number of a node" if number else "it is not set"
        raise BadInput(f"{RANK[0]}: {problem}; set it to this node's number from 0, as {', '.join(RANK[1:])} would.")
    name, meeting = given(MEETING)
    if not meeting:
        raise BadInput(
            f"{MEETING[0]}: it is not set; set it to one name on all nodes of the run (else {', '.join(MEETING[1:])})."
        )
    if not NAME.fullmatch(meeting):
        raise BadInput(
            f"{name}={meeting!r} cannot name a meeting; set {MEETING[0]} to letters, digits, and any of `._:-`."
        )
    return Place(int(number), meeting, given(LEADER)[1])


def is_node(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has given this process a node's number."""
    return any(environment.get(name) for name in RANK)


class Meeting:
    """This process's part in a meeting, from the first look to `leave`. A thread of its own writes and looks."""

    def __init__(self, store: Path, here: Place, say: Callable[[str], None]) -> None:
        """`store`: the store's folder (`Store.root`); `say`: takes a sentence for people. Raises BadInput where the
        folder is another's, StoreError where it cannot be written."""
        self.folder = store / "nodes" / here.meeting
        self.here, self._say = here, say
        self.me = Member(node=here.node, id=secrets.token_hex(8))
        self.there: dict[str, Member] = {}
        """Who is there now, by id, those that came first first; of what is no node 0, node 0's only."""
        self.looked = threading.Condition()
        """Is notified after every look."""
        self._changed: dict[str, tuple[int, float]] = {}  # id → its beat, and when (monotonic) it was seen to change
        self._known: dict[str, Member] = {}
        self._last: dict[str, float] = {}  # id → when its file was there
        self._refused: set[str] = set()
        self._writing = threading.Lock()
        self._left = threading.Event()
        self._problem: SpinloopError | None = None
        self._sound = time.monotonic()
        self._beat()
        threading.Thread(target=self._keep, daemon=True).start()

    def tell(self, order: Order | None = None, launch: str = "") -> None:
        """Say to the others, now and with every beat, which launch is on, or in which one this node's processes are.
        Raises as a look does."""
        self._write(order=order, launch=launch)

    def wait(self) -> None:
        """Until the next look. Raises what has kept this process from writing and looking for LOST_SECONDS, and
        BadInput at once."""
        with self.looked:
            self.looked.wait(5 * BEAT_SECONDS)
        if self._problem and (isinstance(self._problem, BadInput) or time.monotonic() - self._sound > LOST_SECONDS):
            raise self._problem

    @property
    def left(self) -> bool:
        """Whether this process has taken its leave."""
        return self._left.is_set()

    def leave(self) -> None:
        """Takes this process's file away; the last one also the folder."""
        self._left.set()
        with suppress(OSError), self._writing:
            fs.unlink(self._file())
            if not any(map(FILE.fullmatch, os.listdir(self.folder))):
                fs.remove(self.folder)

    def _keep(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            try:
                self._beat()
                self._problem, self._sound = None, time.monotonic()
            except SpinloopError as error:
                self._problem = error
            with self.looked:
                self.looked.notify_all()

    def _beat(self) -> None:
        with fs.boundary(self.folder):
            for folder in (self.folder.parent, self.folder):
                fs.make_dir(folder)
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise BadInput(f"{folder}: it is no folder, so the nodes cannot meet there; remove it.")
            self._write()
            self._look()

    def _file(self) -> Path:
        return self.folder / f"node-{self.me.node}-{self.me.id}.json"

    def _write(self, **said: Any) -> None:
        with fs.boundary(self._file()), self._writing:
            if self._left.is_set():
                return
            self.me = self.me.model_copy(update={"beat": self.me.beat + 1, **said})
            fs.show(self._file(), self.me.model_dump_json().encode())

    def _look(self) -> None:
        own, now = os.lstat(self._file()).st_uid, time.monotonic()
        if why := _anothers(os.lstat(self.folder), own):
            raise BadInput(
                f"{self.folder}: {why}, so the nodes do not meet there; remove it, or set {MEETING[0]} to another name "
                "on all nodes."
            )
        for name in sorted(os.listdir(self.folder)):
            if not name.startswith("node-") or (self.me.node and not name.startswith("node-0-")):
                continue
            try:
                member = read(self.folder / name, own)
            except FileNotFoundError:
                continue
            except ValueError as error:
                if name not in self._refused:
                    self._refused.add(name)
                    self._say(printable(f"{self.folder / name}: {error}; it does not count"))
                continue
            if member.id != self.me.id:
                beat, changed = self._changed.get(member.id, (member.beat, float("-inf")))
                self._changed[member.id] = member.beat, changed if beat == member.beat else now
                self._known[member.id], self._last[member.id] = member, now
        self.there = {
            id: self._known[id]
            for id, (_, changed) in self._changed.items()
            if now - changed < LOST_SECONDS and now - self._last[id] < GONE_SECONDS
        }


def read(file: Path, owner: int) -> Member:
    """What the file of a process says. Raises ValueError with what is wrong with it, FileNotFoundError where it has
    gone."""
    named = FILE.fullmatch(file.name)
    if not named:
        raise ValueError("it has not the name of a node's file")
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LONGEST:
            raise ValueError("it is no file of a node")
        if why := _anothers(status, owner):
            raise ValueError(why)
        data = os.read(fd, LONGEST)
    finally:
        os.close(fd)
    try:
        member = Member.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(
            f"it is none of this version of spinloop ({where}: {one_line(first['msg'], 80)}); use one version on all "
            "nodes"
        ) from None
    if (str(member.node), member.id) != named.groups():
        raise ValueError("it says another number than its name")
    return member


def _anothers(status: os.stat_result, owner: int) -> str:
    """Why a folder or file is not to be trusted: `owner` has what this process writes there, whatever number the file
    system shows for that."""
    if status.st_uid != owner:
        return f"it belongs to another user (number {status.st_uid})"
    return "every user may change it" if status.st_mode & stat.S_IWOTH else ""
