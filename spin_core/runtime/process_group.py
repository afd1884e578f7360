"""The processes of one stage as each of them sees the others: the same jobs, lists put together (torch module).

Alone (no launcher) every function is that of a team of one. Messages are JSON over gloo, also beside GPUs; not here:
tensors of a model (accelerate, DeepSpeed and FSDP2 move these).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from spin_core.runtime.launch import family_of

MEET = timedelta(minutes=30)
"""Until all processes have come: they load torch from a disk that many nodes may share."""
WAIT = timedelta(days=30)
"""For the next job: a run waits for people, and for other stages."""


def rank() -> int:
    """This process's number; 0 leads: it is given the jobs and writes the results."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def begin() -> None:
    """Makes torch's process group: nccl where accelerate finds GPUs, else gloo; for one process a group of one."""
    if dist.is_initialized():
        return
    if world() > 1:
        from accelerate import PartialState

        cpu = os.environ.get("ACCELERATE_USE_CPU") == "true" or not torch.cuda.is_available()
        PartialState(cpu=cpu, timeout=timedelta(hours=2), store=_store(), rank=rank(), world_size=world())
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _store() -> dist.Store:
    """Where the processes find each other. It listens at MASTER_ADDR alone: by itself torch's listens on every network
    of the machine, and asks nobody who he is."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank() != 0:
        return dist.TCPStore(address, port, world(), False, MEET)
    listening = socket.create_server((address, port), family=family_of(address), backlog=2048).detach()
    try:
        return dist.TCPStore(address, port, world(), True, MEET, master_listen_fd=listening)
    except NotImplementedError:  # torch 2.6: only its older server takes a socket that listens already
        return dist.TCPStore(address, port, world(), True, MEET, master_listen_fd=listening, use_libuv=False)


@cache
def _control() -> dist.ProcessGroup:
    begin()
    group = dist.new_group(backend="gloo", timeout=WAIT)
    assert group is not None
    return group


def broadcast(message: Any) -> Any:
    """The message of process 0 (any JSON), in all."""
    if world() == 1:
        return message
    data = _bytes(message) if rank() == 0 else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor([len(data)])
    dist.broadcast(length, 0, group=_control())
    if rank() != 0:
        data = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0, group=_control())
    return json.loads(data.numpy().tobytes())


def gather(message: Any) -> list[Any]:
    """The message of each process (any JSON), by its number, in all."""
    if world() == 1:
        return [message]
    data = _bytes(message)
    lengths = [torch.tensor([0]) for _ in range(world())]
    dist.all_gather(lengths, torch.tensor([len(data)]), group=_control())
    longest = max(int(n) for n in lengths)
    parts = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = data
    dist.all_gather(parts, padded, group=_control())
    return [json.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)]


def deal(costs: Sequence[int], hands: int) -> list[list[int]]:
    """0 … n−1 of the given costs (longest first) dealt out: each to the hand that has least so far; order is kept."""
    owned: list[list[int]] = [[] for _ in range(hands)]
    load = [0] * hands
    for i, cost in enumerate(costs):
        least = load.index(min(load))
        owned[least].append(i)
        load[least] += cost
    return owned


def _bytes(message: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
