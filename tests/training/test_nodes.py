"""Two nodes on one machine: a stage on node 0, `spinloop join` as the other, each with its own launcher."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launched import runtime, spec
from training_data import DIGESTS, finetune_config, job_at, made_up_pairs, metrics_of, pairs_tree, scored

from spin_core.config.runtime import Compute, Runtime
from spin_core.errors import BadInput, ChildDied, StageFailed
from spin_core.runtime import launch, leader, meeting
from spin_core.runtime.child import Child, launched
from spin_core.runtime.join import join
from spin_core.runtime.leader import Leader
from spin_core.runtime.meeting import Meeting, Place
from spin_core.stages import finetune
from spin_core.store.store import Store

SETTINGS = {"lr": 1e-3, "schedule_epochs": 2.0}
HERE = {node: Place(node, "run-7", "127.0.0.1") for node in (0, 1, 2)}
TWO = Compute(nodes=2)


@pytest.fixture
def inputs(tmp_path, theta) -> dict:
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(5), [])
    return {"model": theta, "pairs": [tree], "logps": [scored(tmp_path / "score", theta, tree, finetune_config())]}


@pytest.fixture
def store(tmp_path) -> Path:
    return Store(tmp_path / "store").root


@pytest.fixture
def fast(monkeypatch) -> None:
    for name, seconds in (("BEAT", 0.02), ("GONE", 0.2), ("LOST", 0.5), ("MEETING", 2.0)):
        monkeypatch.setattr(meeting, f"{name}_SECONDS", seconds)


def second_node(store: Path, log: Path, within: tuple[str, ...] = ()) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in (*meeting.RANK, *meeting.MEETING)}
    # As a pod of an indexed job has it.
    environment |= {"SPINLOOP_MEETING": "run-7", "JOB_COMPLETION_INDEX": "1"}
    command = [*within, sys.executable, "-m", "flows.cli", "join", "--store", str(store.parent)]
    with log.open("w") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


def until(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something that a thread does."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


@pytest.mark.full
def test_finetune_on_two_nodes_same_curve_as_one_process(tmp_path, store, inputs) -> None:
    """Catches a node that counts for another, processes that meet at the wrong port, a second stage that the joined
    node misses, and a node that stays when node 0 is gone."""
    alone = job_at(tmp_path / "alone", DIGESTS, micro_tokens=100)
    finetune.run(inputs, finetune_config(**SETTINGS), alone)
    how = runtime(1).model_copy(update={"compute": TWO})
    log = tmp_path / "node1.log"
    node, message = second_node(store, log), []
    try:
        with Leader(store, HERE[0]) as first:
            for number in ("first", "second"):  # as in a run: each training has processes of its own
                child = Child(launch=launched(how.model_dump(), first))
                try:
                    job = spec("finetune", finetune_config(**SETTINGS), inputs, DIGESTS, tmp_path / number, how)
                    child.run(job, message.append, timeout=280)
                finally:
                    child.kill()
                for a, b in zip(metrics_of(alone.out), metrics_of(tmp_path / number / "out"), strict=True):
                    assert b["loss"] == pytest.approx(a["loss"], abs=1e-4), log.read_text()
            assert node.poll() is None
        assert node.wait(timeout=60) == 0
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
    assert log.read_text().count("node 1 of 2 joins with 1 processes") == 2
    assert "took part in 2 launches" in log.read_text() and "Traceback" not in log.read_text()
    assert not (store / "nodes" / "run-7").exists()


@pytest.fixture
def networks() -> Iterator[dict[str, tuple[str, ...]]]:
    """Two networks with an address each and a cable between them: address → what starts a command there."""
    names = {f"10.213.77.{n}": f"spinloop-{os.getpid()}-{n}" for n in (1, 2)}
    made = []

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"networks cannot be made here (ip {' '.join(words)}: {done.stderr.strip()})")

    try:
        for name in names.values():
            ip("netns", "add", name)
            made.append(name)
        first, second = made
        ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
        for address, name in names.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield {address: ("ip", "netns", "exec", name) for address, name in names.items()}
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.skipif(not shutil.which("ip"), reason="needs iproute2's `ip`")
@pytest.mark.full
def test_nodes_in_networks_of_their_own_train_and_listen_there_only(tmp_path, store, inputs, networks) -> None:
    """Catches processes that only find each other on one machine, and what listens on every network."""
    alone = job_at(tmp_path / "alone", DIGESTS, micro_tokens=100)
    finetune.run(inputs, finetune_config(**SETTINGS), alone)
    (address, within), (_, other) = networks.items()
    log = tmp_path / "node1.log"
    node = second_node(store, log, other)
    paths = {name: list(map(str, value)) if isinstance(value, list) else str(value) for name, value in inputs.items()}
    arguments = [address, str(store), str(tmp_path / "job"), json.dumps(paths)]
    command = [*within, sys.executable, str(Path(__file__).with_name("node_child.py")), *arguments]
    places = os.pathsep.join([str(launch.ROOT), str(Path(__file__).parent)])
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, timeout=290, check=False
        )
        assert done.returncode == 0, done.stderr + log.read_text()
        assert json.loads(done.stdout.splitlines()[-1]) == [address]
        assert node.wait(timeout=60) == 0
    finally:
        node.kill()
        node.wait()
    for a, b in zip(metrics_of(alone.out), metrics_of(tmp_path / "job" / "out"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4), log.read_text()


def test_launch_is_told_to_those_who_take_part_and_its_end_and_theirs_are_seen(store, fast) -> None:
    """Catches an order that does not arrive, a node that is called lost when its part is over, one that is not when its
    processes have ended or it is gone, and a folder that is left behind."""
    lost: queue.Queue[str] = queue.Queue()
    with Leader(store, HERE[0]) as first:
        node = Meeting(store, HERE[1], pytest.fail)
        for how_it_ends in ("released", "ended", "gone"):
            first.call(TWO, "cpu", 20029, lambda text: None, lost.put)
            until(lambda: any(member.order for member in node.there.values()))
            (seen,) = node.there.values()
            assert seen.order and (seen.node, seen.order.port, seen.order.nodes) == (0, 20029, [node.me.id])
            assert seen.order.address == "127.0.0.1" and seen.order.compute == TWO
            node.tell(launch=seen.order.launch)
            until(lambda: any(member.launch for member in first._meeting.there.values()))
            if how_it_ends == "released":
                first.release()
                until(lambda: not any(member.order for member in node.there.values()))
                node.tell()
                continue
            time.sleep(3 * meeting.BEAT_SECONDS)  # its watch has seen it too
            node.tell() if how_it_ends == "ended" else node.leave()
            why = lost.get(timeout=30)
            assert why.startswith("node 1 has ended its processes" if how_it_ends == "ended" else "node 1 is gone")
            first.release()
    assert lost.empty() and not (store / "nodes" / "run-7").exists()


def test_nodes_that_do_not_come_are_named(store, fast, monkeypatch) -> None:
    """Catches a stage that waits forever, does not say what it waits for, or takes the file of a process that is dead
    for one that is there."""
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 0.5)
    said: list[str] = []
    with Leader(store, HERE[0]) as first:
        dead = meeting.Member(node=2, id="0" * 16, beat=9)
        (store / "nodes" / "run-7" / f"node-2-{dead.id}.json").write_text(dead.model_dump_json())
        with pytest.raises(StageFailed, match=r"compute\.nodes is 3, and nodes 1, 2 did not join within 0\.5 s; start"):
            first.call(Compute(nodes=3), "cpu", 20001, said.append, pytest.fail)
    assert said == ["waiting for nodes 1, 2 to join"]


def test_first_come_keeps_its_number(store, fast) -> None:
    """Catches a node whose place another process takes by saying its number, and a number that is lost for good with
    the process that had it."""
    with Leader(store, HERE[0]) as first:
        came = Meeting(store, HERE[1], pytest.fail)
        first.call(TWO, "cpu", 20001, lambda text: None, pytest.fail)
        late = Meeting(store, HERE[1], pytest.fail)
        until(lambda: late.me.id in first._meeting.there)
        for expected in (came, late):
            first.release()
            first.call(TWO, "cpu", 20001, lambda text: None, lambda text: None)
            assert first._order and first._order.nodes == [expected.me.id]
            came.leave()
            until(lambda: came.me.id not in first._meeting.there)
        late.leave()


def test_second_run_in_a_meeting_is_refused(store, fast) -> None:
    """Catches two runs whose orders the nodes take by turns, and a run that is kept out by the file of a killed one."""
    with Leader(store, HERE[0]):
        with pytest.raises(BadInput, match=r"another run is at work there; set SPINLOOP_MEETING to another name"):
            Leader(store, HERE[0])
        dead = meeting.Member(node=0, id="0" * 16, beat=9)
        (store / "nodes" / "run-8").mkdir()
        (store / "nodes" / "run-8" / f"node-0-{dead.id}.json").write_text(dead.model_dump_json())
        Leader(store, Place(0, "run-8", "127.0.0.1")).close()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "SPINLOOP_NODE_RANK: it is not set"),
        ({"SPINLOOP_LEADER": "a", "SLURM_NODEID": "x"}, "SLURM_NODEID='x' is no number"),
        ({"SLURM_NODEID": "1024", "SLURM_JOB_ID": "9"}, "SLURM_NODEID='1024' is no number"),
        ({"GROUP_RANK": "1"}, "SPINLOOP_MEETING: it is not set"),
        ({"GROUP_RANK": "1", "SPINLOOP_MEETING": "../x"}, "SPINLOOP_MEETING='../x' cannot name"),
    ],
)
def test_environment_that_does_not_say_is_refused(environment, sentence) -> None:
    """Catches a traceback, a node that takes itself for node 0, and a meeting outside its folder."""
    with pytest.raises(BadInput, match=sentence):
        meeting.place(environment)


def test_first_known_variable_counts() -> None:
    """Catches a launcher's variable that is not known, and an order in which one's own setting loses."""
    for name in meeting.RANK:
        assert meeting.place({"MASTER_ADDR": "a", name: "3"}) == Place(3, "a", "a")
    both = {"SPINLOOP_NODE_RANK": "1", "SLURM_NODEID": "2", "SPINLOOP_LEADER": "b", "MASTER_ADDR": "a"}
    assert meeting.place(both | {"SLURM_JOB_ID": "5"}) == Place(1, "5", "b")


def test_address_of_node_0_is_one_of_its_own(monkeypatch) -> None:
    """Catches processes that wait where no other node comes: an address of another machine, and a name that is
    127.0.1.1 on the machine itself (Debian's /etc/hosts)."""
    assert [leader.own_address(name) for name in ("127.0.0.1", "localhost")] == ["127.0.0.1", "127.0.0.1"]
    with pytest.raises(BadInput, match=r"SPINLOOP_LEADER=no name: no address is known for it"):
        leader.own_address("no name")
    for address, sentence in (
        ("127.0.1.1", r"here it is 127\.0\.1\.1 \(/etc/hosts\)"),
        ("192.0.2.7", "192.0.2.7 is not"),
    ):
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, at=address, **__: [(2, 1, 6, "", (at, 0))])
        with pytest.raises(BadInput, match=f"SPINLOOP_LEADER=node7: {sentence}"):
            leader.own_address("node7")


def test_port_is_free_and_none_that_linux_gives_to_anybody() -> None:
    """Catches a port that another process may be given between the choice and its use."""
    assert launch.free_port() in launch.PORTS and max(launch.PORTS) < 32768
    assert launch.interface_to("127.0.0.1") and launch.environment(runtime(2), 20001)["GLOO_SOCKET_IFNAME"]


def test_several_nodes_without_a_launcher_are_refused() -> None:
    """Catches a run that waits for nodes that nobody started."""
    with pytest.raises(BadInput, match=r"runtime\.compute\.nodes is 2, and this process was started as none of them"):
        launched(runtime(1).model_copy(update={"compute": TWO}).model_dump())


def test_only_node_0_of_several_leads_and_only_the_others_join(store, monkeypatch) -> None:
    """Catches a run on one node, or of a worker whose stages run on pools, that wants a launcher; two leaders; and a
    node 0 that waits for itself."""
    for name in (*meeting.RANK, *meeting.MEETING):
        monkeypatch.delenv(name, raising=False)
    several = Runtime(compute=TWO)
    with leader.leading(store, several) as nobody:
        assert nobody is None
    monkeypatch.setenv("SPINLOOP_NODE_RANK", "1")
    monkeypatch.setenv("SPINLOOP_LEADER", "127.0.0.1")
    with leader.leading(store, Runtime()) as nobody:
        assert nobody is None
    refused = pytest.raises(BadInput, match=r"this is node 1, and a run starts on node 0; run `spinloop join` here")
    with refused, leader.leading(store, several):
        pytest.fail("it leads")
    monkeypatch.setenv("SPINLOOP_NODE_RANK", "0")
    with leader.leading(store, several) as first:
        assert first and first.address == "127.0.0.1" and list((store / "nodes").iterdir())
    with pytest.raises(BadInput, match=r"this is node 0, which runs the profile"):
        join(store, meeting.place(), pytest.fail)
    assert not list((store / "nodes").iterdir())


def test_node_0_that_never_comes_is_named(store, fast) -> None:
    """Catches a node that waits for good, with its GPUs, for a run that has another store or name."""
    with pytest.raises(StageFailed, match=r"run-7: node 0 did not come within 2 s; look whether its run has begun"):
        join(store, HERE[1], pytest.fail)


def test_node_that_is_gone_ends_the_stage_with_its_number(tmp_path, store, inputs, monkeypatch) -> None:
    """Catches processes of node 0 that wait hours for those of a machine that is gone."""
    monkeypatch.setattr(meeting, "LOST_SECONDS", 3.0)
    how = runtime(1).model_copy(update={"compute": TWO})
    with Leader(store, HERE[0]) as first:
        child = Child(launch=launched(how.model_dump(), first))
        node = second_node(store, tmp_path / "node1.log")

        def gone(event: dict) -> None:
            if event.get("label") == "finetune" and event.get("done", 0) >= 1:
                node.kill()

        try:
            job = spec(
                "finetune", finetune_config(lr=1e-3, schedule_epochs=2000.0), inputs, DIGESTS, tmp_path / "job", how
            )
            with pytest.raises(ChildDied, match=r"node 1 is gone|another of its processes ended"):
                child.run(job, gone, timeout=250)
        finally:
            child.kill()
            node.kill()
            node.wait()
