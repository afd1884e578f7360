"""A stranger at the nodes' door (S18): there is no port to come through, and a file that he leaves does not count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spin_core.config.runtime import Compute
from spin_core.errors import BadInput, StageFailed
from spin_core.runtime import meeting, worker
from spin_core.runtime.leader import Leader
from spin_core.runtime.meeting import Meeting, Member, Order, Place
from spin_core.store.store import Store
from tests.faults.fault import Fault
from tests.sockets import sockets

S18 = Fault("S18", "a stranger's file in the nodes' meeting: shape, owner, kind of file; an order beyond its limits")
S18_DOOR = Fault("S18", "ports that a run's node 0 and `spinloop join` open while they meet")
ID = "0123456789abcdef"
GOOD = Member(node=1, id=ID)
ORDER = Order(launch=ID, compute=Compute(nodes=2), device="cpu", address="10.0.0.1", port=20001, nodes=[ID])
FIRST = json.loads(Member(node=0, id=ID, order=ORDER).model_dump_json())
TEXTS = {
    "the issue's own": '{"node": 1}',
    "nothing": "",
    "no JSON": "GET / HTTP/1.1\r\n",
    "a list": "[1]",
    "deep": "[" * 30000,
    "another version": GOOD.model_dump_json().replace('"format":1', '"format":2'),
    "a field more": GOOD.model_dump_json().replace("{", '{"run":"rm",', 1),
    "another number": GOOD.model_copy(update={"node": 2}).model_dump_json(),
    "another id": GOOD.model_copy(update={"id": "f" * 16}).model_dump_json(),
    "no number": GOOD.model_dump_json().replace('"node":1', '"node":true'),
    "long": GOOD.model_dump_json() + " " * meeting.LONGEST,
}
ORDERS = [
    {"address": "evil.example.org"}, {"address": "$(id)"}, {"port": 22}, {"port": 70000}, {"device": "cuda:0; id"},
    {"nodes": [ID] * 1025}, {"compute": {"nodes": 2, "processes": 1000}}, {"compute": {"nodes": 2, "run": "id"}},
    {"stage": "finetune"}, {"launch": "../x"},
]  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    for name, seconds in (("BEAT", 0.02), ("GONE", 0.2), ("MEETING", 0.3)):
        monkeypatch.setattr(meeting, f"{name}_SECONDS", seconds)
    return Store(tmp_path / "store").root


def here(node: int) -> Place:
    return Place(node, "run-7", "127.0.0.1")


def test_what_a_stranger_puts_into_the_meeting_does_not_count(store, tmp_path) -> None:
    """Catches a number that is taken by saying it, a file that is followed, waited for or read without end, one that
    another user wrote or may change, and a name that is shown as it is."""
    folder, said = store / "nodes" / "run-7", list[str]()
    with Leader(store, here(0)) as first:
        planted = {f"node-1-{number:016x}.json": text for number, text in enumerate(TEXTS.values())}
        for name, text in planted.items():
            (folder / name).write_text(text)
        (tmp_path / "good.json").write_text(GOOD.model_copy(update={"id": f"{0xAAAA:016x}"}).model_dump_json())
        (folder / "node-1-000000000000aaaa.json").symlink_to(tmp_path / "good.json")
        os.mkfifo(folder / "node-1-000000000000bbbb.json")
        (folder / "node-1-000000000000cccc.json").mkdir()
        (folder / f"node-1-{ID}.json").write_text(GOOD.model_dump_json())
        (folder / f"node-1-{ID}.json").chmod(0o666)
        (folder / "node-1-\x1b[31m.json").write_text(GOOD.model_dump_json())
        with pytest.raises(StageFailed, match="node 1 did not join"):
            first.call(Compute(nodes=2), "cpu", 20001, said.append, pytest.fail)
        sentences = [text for text in said if text.endswith("; it does not count")]

    def trial(name: str) -> None:
        (sentence,) = (text for text in sentences if name in text)
        assert sentence.isprintable() and len(sentence) < 500

    S18.each([*planted, "aaaa", "bbbb", "cccc", ID, r"\x1b[31m"], trial)
    assert any("every user may change it" in text for text in sentences)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
def test_what_another_user_owns_does_not_count(store) -> None:
    """Catches trust in a name alone, where several users may write into the store."""
    folder, said = store / "nodes" / "run-7", list[str]()
    with Leader(store, here(0)) as first:
        (folder / f"node-1-{ID}.json").write_text(GOOD.model_dump_json())
        os.chown(folder / f"node-1-{ID}.json", 12345, -1)
        with pytest.raises(StageFailed, match="node 1 did not join"):
            first.call(Compute(nodes=2), "cpu", 20001, said.append, pytest.fail)
        assert any("it belongs to another user (number 12345)" in text for text in said)
        os.chown(folder, 12345, -1)
        with pytest.raises(BadInput, match=r"run-7: it belongs to another user .*, so the nodes do not meet there"):
            first.call(Compute(nodes=2), "cpu", 20001, said.append, pytest.fail)


def test_folder_that_is_not_ours_is_refused(store, tmp_path) -> None:
    """Catches a meeting in a place that somebody else has prepared."""
    (store / "nodes").mkdir()
    (store / "nodes" / "run-7").symlink_to(tmp_path)
    with pytest.raises(BadInput, match=r"run-7: it is no folder, so the nodes cannot meet there"):
        Leader(store, here(0))
    assert not list(tmp_path.glob("node-*"))
    (store / "nodes" / "run-8").mkdir()
    (store / "nodes" / "run-8").chmod(0o777)
    with pytest.raises(BadInput, match=r"run-8: every user may change it, so the nodes do not meet there"):
        Meeting(store, Place(1, "run-8", ""), pytest.fail)


def test_order_beyond_its_limits_is_refused(store) -> None:
    """Catches a node that connects where it is sent, starts what it is told, or takes a field that it does not know."""

    def trial(change: dict) -> None:
        file = store / f"node-0-{ID}.json"
        file.write_text(json.dumps(FIRST | {"order": FIRST["order"] | change}))
        with pytest.raises(ValueError, match="it is none of this version of spinloop"):
            meeting.read(file, os.geteuid())

    (store / f"node-0-{ID}.json").write_text(json.dumps(FIRST))
    assert meeting.read(store / f"node-0-{ID}.json", os.geteuid()).order == ORDER
    S18.each(ORDERS, trial)


def test_job_from_the_network_is_a_stage_that_is_shared(monkeypatch) -> None:
    """Catches a process that imports the module that it is sent."""
    monkeypatch.setattr(worker, "LAUNCHED", True)
    for module in ("antigravity", "spin_core.stages.demo_model", "spin_core.stages.finetune.x", ""):
        with pytest.raises(StageFailed, match="no stage that several processes share"):
            worker.run_spec({"module": module, "stage": "finetune"}, lambda event: None)
    assert "antigravity" not in sys.modules


def test_nobody_listens_while_the_nodes_meet(store) -> None:
    """Catches a protocol of our own between nodes: 3,000 idle connections were 1,200 threads, one line took a node's
    place, and a stranger's processes took part in every stage."""
    before = listening(os.getpid())
    environment = {name: value for name, value in os.environ.items() if name not in (*meeting.RANK, *meeting.MEETING)}
    environment |= {"SPINLOOP_NODE_RANK": "1", "SPINLOOP_MEETING": "run-7"}
    command = [sys.executable, "-m", "flows.cli", "join", "--store", str(store.parent)]
    with Leader(store, here(0)) as first:
        node = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            until = time.monotonic() + 60
            while not first._meeting.there and node.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            assert [member.node for member in first._meeting.there.values()] == [1]

            S18_DOOR.each([os.getpid(), node.pid], lambda pid: opened(pid, before))
        finally:
            first.close()
            try:
                said = node.communicate(timeout=60)[0]
            finally:
                node.kill()
    assert node.returncode == 0 and "this node took part in 0 launches" in said


def opened(pid: int, before: set[tuple[str, int]]) -> None:
    assert not listening(pid) - before


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports at which the process and its children listen."""
    top = psutil.Process(pid)
    return {
        tuple(line.laddr)
        for process in ([top] if pid == os.getpid() else [top, *top.children(recursive=True)])
        for line in sockets(process)
        if line.status == psutil.CONN_LISTEN
    }
