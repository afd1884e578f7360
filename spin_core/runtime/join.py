"""`spinloop join`: every node but the first takes part in the launches of node 0."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput, StageFailed
from spin_core.runtime import launch, meeting
from spin_core.runtime.meeting import MEETING, RANK, Meeting, Member, Order, Place


def join(store: Path, here: Place, say: Callable[[str], None], python: str = sys.executable) -> int:
    """Takes part in every launch of node 0 until that is gone: how many there were. Where this node's processes die,
    node 0 is notified, which ends the launch; its next one is another try.

    Raises BadInput where this is node 0, or another process has its number; StageFailed where node 0 never came; else
    as `Meeting`.
    """
    if here.node == 0:
        raise BadInput(f"{RANK[0]}: this is node 0, which runs the profile (`spinloop run`); the others join it.")
    ours, count, since, met = Meeting(store, here, say), 0, time.monotonic(), False
    last = ""
    try:
        while True:
            first = _first(ours)
            if first is None:
                if met:
                    return count
                if time.monotonic() - since > meeting.MEETING_SECONDS:
                    raise StageFailed(
                        f"{ours.folder}: node 0 did not come within {meeting.MEETING_SECONDS:g} s; look whether its "
                        f"run has begun, with runtime.compute.nodes, this --store, and {MEETING[0]}={here.meeting}"
                    )
            elif (order := first.order) and order.launch != last and here.node <= len(order.nodes):
                last = order.launch
                if order.nodes[here.node - 1] != ours.me.id:
                    raise BadInput(f"node {here.node}: another process has this number; look at {RANK[0]}.")
                say(f"node {here.node} of {order.compute.nodes} joins with {order.compute.processes} processes")
                _take_part(ours, order, say, python)
                count += 1
            met = met or first is not None
            ours.wait()
    finally:
        ours.leave()


def _first(ours: Meeting) -> Member | None:
    """Node 0. Of two, which begin at once and then both refuse, the one that has an order."""
    firsts = [member for member in ours.there.values() if member.node == 0]
    return next((member for member in firsts if member.order), firsts[0] if firsts else None)


def _take_part(ours: Meeting, order: Order, say: Callable[[str], None], python: str) -> None:
    """Until node 0 ends the launch, or is lost, or this node's processes have ended."""
    how = Runtime(compute=order.compute, device=order.device)
    own = launch.environment(how, order.port, ours.here.node, order.address)
    inherited = {name: value for name, value in os.environ.items() if name not in launch.RANKS}
    process = subprocess.Popen(
        launch.command(python, how.compute),
        env={**inherited, "PYTHONPATH": launch.python_path(python), **own},
        stdin=subprocess.PIPE,  # ends with this process, however that ends: the workers see it
        start_new_session=True,
    )
    try:
        ours.tell(launch=order.launch)
        while (first := _first(ours)) and first.order and first.order.launch == order.launch:
            if process.poll() is not None:
                break
            ours.wait()
        else:
            return
        ours.tell()
        ours.wait()
        if (first := _first(ours)) and first.order and first.order.launch == order.launch:
            say(f"node {ours.here.node}: its processes ended with exit code {process.returncode}; see above")
    finally:
        process.kill()
        process.wait()
        ours.tell()
