"""Node 0 of a run over several nodes: waits for the others, announces each launch to them, sees when one is lost."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from spin_core.config.runtime import Compute, Runtime
from spin_core.errors import BadInput, SpinloopError, StageFailed, StoreError
from spin_core.runtime import meeting
from spin_core.runtime.launch import family_of
from spin_core.runtime.meeting import LEADER, MEETING, RANK, Meeting, Order, Place

SAY_SECONDS = 30.0
LOOKS = 3
"""After so many, who is at work in the folder has been seen to be."""

Say = Callable[[str], None]


class Leader:
    """Node 0's part of the meeting, all through a run. A context manager: the others go home at its end."""

    def __init__(self, store: Path, here: Place) -> None:
        """Raises BadInput where this is not node 0, where its address will not do, or where another run is at work in
        the meeting; else as `Meeting`."""
        if here.node != 0:
            raise BadInput(
                f"{RANK[0]}: this is node {here.node}, and a run starts on node 0; run `spinloop join` here."
            )
        self.address = own_address(here.leader)
        self._order: Order | None = None
        self._lost: Say = lambda why: None
        self._taken: set[str] = set()
        self._notes: list[str] = []
        self._meeting = Meeting(store, here, self._notes.append)
        for _ in range(LOOKS if len(list(self._meeting.folder.glob("node-0-*.json"))) > 1 else 0):
            self._meeting.wait()
        if any(member.node == 0 for member in self._meeting.there.values()):
            self._meeting.leave()
            raise BadInput(
                f"{self._meeting.folder}: another run is at work there; set {MEETING[0]} to another name on all nodes "
                "of this one."
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def call(self, compute: Compute, device: str, port: int, say: Say, lost: Say) -> None:
        """Announces a launch to the nodes 1 to n−1, whose processes meet at `port`; `lost` is called when one of them
        is gone before `release`. Raises StageFailed where one does not come in time."""
        needed, began, said = range(1, compute.nodes), time.monotonic(), float("-inf")
        while True:
            while self._notes:
                say(self._notes.pop(0))
            if not (missing := [rank for rank in needed if not self._first(rank)]):
                break
            now = time.monotonic()
            if now - began > meeting.MEETING_SECONDS:
                raise StageFailed(
                    f"runtime.compute.nodes is {compute.nodes}, and {named(missing)} did not join within "
                    f"{meeting.MEETING_SECONDS:g} s; start `spinloop join` there with its {RANK[0]}, and see that "
                    f"{self._meeting.folder} is the same folder (--store, of one on S3 SPINLOOP_CACHE; {MEETING[0]})"
                )
            if now - said > SAY_SECONDS:
                said = now
                say(f"waiting for {named(missing)} to join")
            self._meeting.wait()
        self._taken, self._lost = set(), lost
        self._order = Order(
            launch=secrets.token_hex(8),
            compute=compute,
            device=device,
            address=self.address,
            port=port,
            nodes=[self._first(rank) for rank in needed],
        )
        self._meeting.tell(order=self._order)

    def _first(self, rank: int) -> str:
        """Of those with this number that are there, the id of the one that was seen first; empty: there is none."""
        return next((id for id, member in self._meeting.there.items() if member.node == rank), "")

    def _watch(self) -> None:
        """torch's processes wait for those of a lost machine for hours."""
        while not self._meeting.left:
            why = ""
            try:
                self._meeting.wait()
            except SpinloopError as error:  # the next `call` raises it
                why = str(error)
            if (order := self._order) and (why := why or self._who_is_gone(order)):
                self._order = None
                self._lost(why)

    def _who_is_gone(self, order: Order) -> str:
        there = self._meeting.there
        for rank, id in enumerate(order.nodes, 1):
            if id not in there:
                return f"node {rank} is gone; its last words are in its own output"
            if there[id].launch == order.launch:
                self._taken.add(id)
            elif id in self._taken:
                return f"node {rank} has ended its processes; their last words are in its own output"
        return ""

    def release(self) -> None:
        """The launch is over: its nodes end their part of it and wait for the next."""
        if self._order or self._meeting.me.order:
            self._order = None
            with suppress(StoreError):  # the next beat says it too
                self._meeting.tell()

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Sends all nodes home."""
        self._order = None
        self._meeting.leave()


@contextmanager
def leading(store: Path, runtime: Runtime) -> Iterator[Leader | None]:
    """Node 0's part of the meeting for as long as a run lasts; None where no stage is of several nodes, or where this
    process was not started as a node (its stages then run on a pool). Raises as `Leader` and `place`."""
    if runtime.compute.nodes == 1 or not meeting.is_node():
        yield None
        return
    with Leader(store, meeting.place()) as first:
        yield first


def own_address(leader: str) -> str:
    """The address of this machine that `leader`, its name or address, means to the other nodes. Raises BadInput where
    there is none."""
    if not leader:
        raise BadInput(f"{LEADER[0]}: it is not set; set it to the address of node 0, as {LEADER[1]} would.")
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(leader, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise BadInput(
            f"{LEADER[0]}={leader}: no address is known for it ({error}); set it to node 0's address in the network of "
            "the nodes."
        ) from None
    own = [address for address in dict.fromkeys(found) if _is_here(address)]
    far = [address for address in own if not ip_address(address).is_loopback]
    if far or (own and leader in (*own, "localhost")):
        return (far or own)[0]
    problem = (
        f"here it is {own[0]} (/etc/hosts), where no other node comes" if own else f"{found[0]} is not of this node"
    )
    raise BadInput(f"{LEADER[0]}={leader}: {problem}; set it to node 0's address in the network of the nodes.")


def _is_here(address: str) -> bool:
    with suppress(OSError, ValueError), socket.socket(family_of(address)) as probe:
        probe.bind((address, 0))
        return True
    return False


def named(nodes: list[int]) -> str:
    """`node 1`, `nodes 1, 2`."""
    return f"node{'s' * (len(nodes) > 1)} {', '.join(map(str, nodes))}"
