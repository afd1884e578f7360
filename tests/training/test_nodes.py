"""Two nodes on one machine: a stage on node 0, `spinloop join` as the other, each with its own launcher."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launched import runtime, spec
from training_data import DIGESTS, finetune_config, job_at, made_up_pairs, metrics_of, pairs_tree, scored

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput, ChildDied, StageFailed
from spin_core.runtime import launch, rendezvous
from spin_core.runtime.child import Child, launched
from spin_core.stages import finetune

SETTINGS = {"lr": 1e-3, "schedule_epochs": 2.0}


@pytest.fixture
def inputs(tmp_path, theta) -> dict:
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(5), [])
    return {"model": theta, "pairs": [tree], "logps": [scored(tmp_path / "score", theta, tree, finetune_config())]}


@pytest.fixture
def meeting(monkeypatch) -> dict[str, str]:
    """The environment of both nodes; node 0 listens in this process."""
    rendezvous.leader.cache_clear()
    for name in (*rendezvous.RANK, *rendezvous.LEADER, *rendezvous.PORT):
        monkeypatch.delenv(name, raising=False)
    common = {"SPINLOOP_LEADER": "127.0.0.1", "SPINLOOP_JOIN_PORT": str(launch.free_port())}
    for name, value in {**common, "SPINLOOP_NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return common


def second_node(meeting: dict[str, str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, **meeting, "JOB_COMPLETION_INDEX": "1"}  # as a pod of an indexed job has it
    del environment["SPINLOOP_NODE_RANK"]
    command = [sys.executable, "-m", "flows.cli", "join"]
    with log.open("w") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


@pytest.mark.full
def test_finetune_on_two_nodes_same_curve_as_one_process(tmp_path, inputs, meeting) -> None:
    """Catches a node that counts for another, processes that meet at the wrong port, a second stage that the joined
    node misses, and a node that stays when node 0 is gone."""
    alone = job_at(tmp_path / "alone", DIGESTS, micro_tokens=100)
    finetune.run(inputs, finetune_config(**SETTINGS), alone)
    how = runtime(1).model_copy(update={"compute": runtime(1).compute.model_copy(update={"nodes": 2})})
    log = tmp_path / "node1.log"
    node, message = second_node(meeting, log), []
    try:
        for number in ("first", "second"):  # as in a run: each training has processes of its own
            child = Child(launch=launched(how.model_dump()))
            try:
                job = spec("finetune", finetune_config(**SETTINGS), inputs, DIGESTS, tmp_path / number, how)
                child.run(job, message.append, timeout=280)
            finally:
                child.kill()
            for a, b in zip(metrics_of(alone.out), metrics_of(tmp_path / number / "out"), strict=True):
                assert b["loss"] == pytest.approx(a["loss"], abs=1e-4), log.read_text()
        assert node.poll() is None
        rendezvous.leader().close()
        until = time.monotonic() + 60
        while processes_of(node.pid) and time.monotonic() < until:  # its launcher has ended; it waits for node 0
            time.sleep(0.2)
        assert not processes_of(node.pid)
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
    assert log.read_text().count("node 1 of 2 joins with 1 processes") == 2


def processes_of(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


def test_nodes_that_do_not_come_are_named(tmp_path, meeting, monkeypatch) -> None:
    """Catches a stage that waits forever, or does not say what it waits for."""
    monkeypatch.setattr(rendezvous, "MEETING_SECONDS", 0.5)
    message: list[str] = []
    compute = Runtime(compute={"nodes": 3}).compute  # type: ignore[arg-type]
    with pytest.raises(StageFailed, match=r"runtime\.compute\.nodes is 3, and nodes 1, 2 did not join within 0\.5 s"):
        rendezvous.leader().call(compute, "cpu", 1, message.append, pytest.fail)
    assert message[0] == "waiting for nodes 1, 2 to join"


def test_line_that_closes_is_a_node_that_is_gone(meeting) -> None:
    """Catches a line that nobody watches: torch's own processes see a killed one at once, but wait hours for a machine
    without power; and a node that is called lost when its part is over."""
    lost, compute = queue.Queue[str](), Runtime(compute={"nodes": 2}).compute  # type: ignore[arg-type]
    address, leader = ("127.0.0.1", int(meeting["SPINLOOP_JOIN_PORT"])), rendezvous.leader()
    for over in (True, False):
        with socket.create_connection(address) as node:
            node.sendall(b'{"node": 1}\n')
            leader.call(compute, "cpu", 29, lambda text: None, lost.put)
            assert json.loads(node.recv(4096))["port"] == 29
            if over:
                leader.release()
                assert node.recv(1) == b""
    assert lost.get(timeout=30).startswith("node 1 is gone")
    for thread in threading.enumerate():
        if "_watch" in thread.name:
            thread.join(timeout=30)
    assert lost.empty()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "SPINLOOP_LEADER: it is not set"),
        ({"SPINLOOP_LEADER": "a"}, "SPINLOOP_NODE_RANK: it is not set"),
        ({"SPINLOOP_LEADER": "a", "SLURM_NODEID": "x"}, "SLURM_NODEID='x' is no number"),
        ({"MASTER_ADDR": "a", "GROUP_RANK": "1", "MASTER_PORT": "99999"}, "MASTER_PORT='99999' is no number"),
    ],
)
def test_environment_that_does_not_say_is_refused(environment, sentence) -> None:
    """Catches a traceback, and a node that takes itself for node 0."""
    with pytest.raises(BadInput, match=sentence):
        rendezvous.place(environment)


def test_first_known_variable_counts() -> None:
    """Catches a launcher's variable that is not known, and an order in which one's own setting loses."""
    for name in rendezvous.RANK:
        assert rendezvous.place({"MASTER_ADDR": "a", name: "3"}) == rendezvous.Place(3, "a", rendezvous.DEFAULT_PORT)
    both = {"SPINLOOP_NODE_RANK": "1", "SLURM_NODEID": "2", "SPINLOOP_LEADER": "b", "MASTER_ADDR": "a"}
    assert rendezvous.place(both | {"MASTER_PORT": "5"}) == rendezvous.Place(1, "b", 5)


def test_node_that_is_gone_ends_the_stage_with_its_number(tmp_path, inputs, meeting) -> None:
    """Catches processes of node 0 that wait hours for those of a machine that is gone, and what connects to the port
    and says nothing, or rubbish."""
    how = runtime(1).model_copy(update={"compute": runtime(1).compute.model_copy(update={"nodes": 2})})
    child = Child(launch=launched(how.model_dump()))
    address = ("127.0.0.1", int(meeting["SPINLOOP_JOIN_PORT"]))
    with socket.create_connection(address), socket.create_connection(address) as rubbish:
        rubbish.sendall(b'{"node": "x"}\n')
        assert b"refused" in rubbish.recv(4096)
    node = second_node(meeting, tmp_path / "node1.log")

    def gone(event: dict) -> None:
        if event.get("label") == "finetune" and event.get("done", 0) >= 1:
            node.kill()

    try:
        job = spec("finetune", finetune_config(**SETTINGS), inputs, DIGESTS, tmp_path / "job", how)
        with pytest.raises(ChildDied, match=r"node 1 is gone|another of its processes ended"):
            child.run(job, gone, timeout=250)
    finally:
        child.kill()
        node.kill()
        node.wait()
