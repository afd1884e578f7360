"""How the nodes of one stage meet: the first starts it and announces it at a known port, the others start their part.

`leader` is the first node's side, `join` (`spinloop join`) every other's. All that is sent is settings: how many
processes and nodes, the device, and the port where torch's processes meet. What it is *not*: no shell on other
machines, no list of hosts to keep; whatever starts the nodes (a Kubernetes indexed Job, Slurm, MPI, a person) says in
the environment which one this is, and where the first one is. As torch's own rendezvous it trusts the network between
the nodes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from spin_core.config.runtime import Compute, Runtime
from spin_core.errors import BadInput, ChildDied, StageFailed
from spin_core.runtime import launch

RANK = ("SPINLOOP_NODE_RANK", "JOB_COMPLETION_INDEX", "SLURM_NODEID", "OMPI_COMM_WORLD_NODE_RANK", "GROUP_RANK")
LEADER = ("SPINLOOP_LEADER", "MASTER_ADDR")
PORT = ("SPINLOOP_JOIN_PORT", "MASTER_PORT")
DEFAULT_PORT = 29400
MEETING_SECONDS = 600.0
"""Until all nodes have called: those of a cluster start minutes apart."""
LOST_SECONDS = 60.0
"""Without an answer of a node 0 that was there: its run has ended."""
AGAIN_SECONDS = 1.0
LONGEST = 4096
MOST_NODES = 1024


@dataclass(frozen=True)
class Place:
    """This node among the others."""

    rank: int
    leader: str
    port: int


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """What the launcher's environment says. Raises BadInput naming the variable that is missing or no number."""

    def number(names: tuple[str, ...], default: int | None) -> int:
        name = next((name for name in names if environment.get(name)), None)
        if name is None and default is not None:
            return default
        try:
            value = int(environment[name]) if name else -1
        except ValueError:
            value = -1
        if not 0 <= value < 65536:
            problem = f"{name}={environment[name]!r} is no number of a node or port" if name else "it is not set"
            raise BadInput(
                f"{names[0]}: {problem}; set it to this node's number from 0, as {', '.join(names[1:])} would."
            )
        return value

    leader = next((environment[name] for name in LEADER if environment.get(name)), "")
    if not leader:
        raise BadInput(f"{LEADER[0]}: it is not set; set it to the address of node 0, as {LEADER[1]} would.")
    return Place(number(RANK, None), leader, number(PORT, DEFAULT_PORT))


class Leader:
    """Node 0: keeps those that come waiting, all through a run, and announces each launch to as many as it needs."""

    def __init__(self, here: Place) -> None:
        self.here = here
        try:
            self._listener = socket.create_server(("", here.port))
        except OSError as error:
            raise BadInput(
                f"{PORT[0]}: port {here.port} cannot be listened on ({error.strerror}); set another one on all nodes."
            ) from None
        self._waiting: dict[int, socket.socket] = {}
        self._at_work: dict[int, socket.socket] = {}
        self._closed = False
        self._came = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                node, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(AGAIN_SECONDS)  # too many open files, a connection that was cut at once
                continue
            threading.Thread(target=self._welcome, args=(node,), daemon=True).start()

    def _welcome(self, node: socket.socket) -> None:
        """Whatever connects to an open port: only a node's number is taken, and it has 10 s to say it."""
        _keep_alive(node)
        node.settimeout(10.0)
        rank = _receive(node, time.monotonic() + 10.0).get("node")
        if type(rank) is not int or not 0 < rank < MOST_NODES:
            _refuse(node, f"a node that joins has a number from 1 to {MOST_NODES - 1}")
            return
        with self._came:
            before = self._waiting.get(rank)
            self._waiting[rank] = node
            self._came.notify_all()
        if before is not None:
            _refuse(before, "another node has come with its number")

    def call(
        self, compute: Compute, device: str, port: int, say: Callable[[str], None], lost: Callable[[str], None]
    ) -> None:
        """Announces a launch to the nodes 1 to n−1, whose processes meet at `port`; `lost` is called when one of them
        is gone before `release`. Raises StageFailed where one does not come in time."""
        needed, until = set(range(1, compute.nodes)), time.monotonic() + MEETING_SECONDS
        with self._came:
            while missing := sorted(needed - {rank for rank, node in self._waiting.items() if not _gone(node)}):
                if time.monotonic() > until:
                    raise StageFailed(
                        f"runtime.compute.nodes is {compute.nodes}, and {_named(missing)} did not join within "
                        f"{MEETING_SECONDS:g} s; start `spinloop join` there with {LEADER[0]}={self.here.leader} and "
                        f"its {RANK[0]}"
                    )
                say(f"waiting for {_named(missing)} to join")
                self._came.wait(min(30.0, MEETING_SECONDS))
            at_work = {rank: self._waiting.pop(rank) for rank in sorted(needed)}
        self._at_work = at_work
        for rank, node in at_work.items():
            with suppress(OSError):  # one that is gone is seen by its watch
                _send(node, {"compute": compute.model_dump(), "device": device, "port": port})
            threading.Thread(target=self._watch, args=(at_work, rank, lost), daemon=True).start()

    def _watch(self, at_work: dict[int, socket.socket], rank: int, lost: Callable[[str], None]) -> None:
        """torch's processes wait for each other for hours; a node's line ends with its part."""
        with suppress(OSError):  # it may have been released already
            at_work[rank].settimeout(None)
            at_work[rank].recv(1)
        if self._at_work is at_work:
            lost(f"node {rank} is gone, or its processes have ended; their last words are in its own output")

    def release(self) -> None:
        """The launch is over: its nodes end their part of it and wait for the next."""
        at_work, self._at_work = self._at_work, {}
        for node in at_work.values():
            with suppress(OSError):
                node.shutdown(socket.SHUT_RDWR)
            node.close()

    def close(self) -> None:
        """Sends all nodes home; for tests, a run's process does so by ending."""
        self.release()
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for node in self._waiting.values():
            node.close()


@cache
def leader() -> Leader:
    """This process's own, listening until it ends. Raises BadInput as `place`, and where this is not node 0."""
    here = place()
    if here.rank != 0:
        raise BadInput(f"{RANK[0]}: this is node {here.rank}, and a run starts on node 0; run `spinloop join` here.")
    return Leader(here)


def join(here: Place, say: Callable[[str], None], python: str = sys.executable) -> int:
    """Takes part in every launch of node 0 until that is gone: how many there were.

    Raises ChildDied where this node's processes died while the stage was at work, StageFailed where node 0 never came.
    """
    count, since = 0, time.monotonic()
    while True:
        try:
            line = socket.create_connection((here.leader, here.port), timeout=10.0)
        except OSError as error:
            if time.monotonic() - since > (LOST_SECONDS if count else MEETING_SECONDS):
                if count:
                    return count
                raise StageFailed(
                    f"{here.leader}:{here.port}: node 0 does not answer ({error.strerror or error}); look whether its "
                    f"run has begun, and whether {LEADER[0]} and {PORT[0]} are right"
                ) from None
            time.sleep(AGAIN_SECONDS)
            continue
        with line:
            _keep_alive(line)
            with suppress(OSError):
                _send(line, {"node": here.rank})
            line.settimeout(None)  # between two launches there may be hours of vLLM
            order = _receive(line)
            if "refused" in order:
                raise BadInput(f"node {here.rank} is not wanted: {order['refused']}; look at {RANK[0]}.")
            if "compute" in order:
                try:
                    how = Runtime.model_validate({"compute": order["compute"], "device": order["device"]})
                    port = int(order["port"])
                except (ValueError, KeyError, TypeError):
                    raise BadInput(
                        f"{here.leader}:{here.port}: what answers there is no node 0 of this version of spinloop; look "
                        f"at {LEADER[0]} and {PORT[0]}, and use one version on all nodes."
                    ) from None
                say(f"node {here.rank} of {how.compute.nodes} joins with {how.compute.processes} processes")
                _take_part(line, here, how, port, python)
                count += 1
            else:
                time.sleep(AGAIN_SECONDS)
        since = time.monotonic()


def _named(nodes: list[int]) -> str:
    return f"node{'s' * (len(nodes) > 1)} {', '.join(map(str, nodes))}"


def _take_part(leader: socket.socket, here: Place, how: Runtime, port: int, python: str) -> None:

    inherited = {name: value for name, value in os.environ.items() if name not in launch.RANKS}
    process = subprocess.Popen(
        launch.command(python, how.compute, here.rank, here.leader, port),
        env={**inherited, "PYTHONPATH": launch.python_path(), **launch.environment(how)},
        stdin=subprocess.PIPE,  # ends with this process, however that ends: the workers see it
        start_new_session=True,
    )
    gone = threading.Event()
    threading.Thread(target=_until_closed, args=(leader, gone, process), daemon=True).start()
    try:
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code and not gone.is_set():
        raise ChildDied(f"node {here.rank}: its processes ended with exit code {code}; their last words are above.")


def _until_closed(leader: socket.socket, gone: threading.Event, process: subprocess.Popen) -> None:
    """Node 0 closes the line when its processes are done, or its machine is gone: then there is nothing to wait for."""
    with suppress(OSError):
        leader.recv(1)
    gone.set()
    process.kill()


def _keep_alive(line: socket.socket) -> None:
    """A machine without power sends no word: its silence is noticed after 90 s, and no firewall forgets the line."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _gone(node: socket.socket) -> bool:
    """Whether one that waits has closed its end; it has nothing to say meanwhile."""
    node.setblocking(False)  # with a time-out it would wait for that, and call it an error
    try:
        return node.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _refuse(node: socket.socket, why: str) -> None:
    with suppress(OSError):
        _send(node, {"refused": why})
    node.close()


def _send(to: socket.socket, message: dict) -> None:
    to.sendall(json.dumps(message).encode() + b"\n")


def _receive(of: socket.socket, until: float = float("inf")) -> dict:
    """One line of JSON, if it is there in time; {} for anything else."""
    data = b""
    with suppress(OSError):
        while not data.endswith(b"\n") and len(data) < LONGEST and time.monotonic() < until:
            if not (piece := of.recv(LONGEST)):
                break
            data += piece
    try:
        message = json.loads(data)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
