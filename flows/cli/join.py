"""`spinloop join`: this machine takes part in the stages of a run that has begun on another (runtime.compute.nodes)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from spin_core.runtime.rendezvous import join, place


def add_command(within: Any, add: Callable) -> None:
    """Put `join` under the parser `within`."""
    add(
        within,
        "join",
        _join,
        "Take part in the stages of a run on node 0 until it ends. Which node this is, and where node 0 is, the "
        "environment says: SPINLOOP_NODE_RANK, SPINLOOP_LEADER and SPINLOOP_JOIN_PORT, or what Kubernetes indexed "
        "jobs, Slurm and MPI set. The store must lie under the same path on all nodes.",
    )


def _join(args: argparse.Namespace) -> None:
    count = join(place(), lambda text: print(text, file=sys.stderr, flush=True))
    print(f"Node 0 is gone; this node took part in {count} launch{'es' * (count != 1)}.")
