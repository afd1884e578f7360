"""Killed and refused uploads: what arrived is not sent again, nothing partial is a hit."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from itertools import count
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store.keys import key_of
from spin_core.store.s3 import transfer
from tests.faults.fault import Fault
from tests.faults.s3.machine import answer_of, contents, started
from tests.faults.s3.server import S3Request, part_numbers
from tests.faults.store.battery import FACTS, PAYLOAD, assert_right, write_output
from tests.faults.store.kinds import Step

PARTS = 4
SIZES = {"model.safetensors": (PARTS - 1) * transfer.PART + 999, "config.json": 20, "empty": 0}
STEP = {"payload": PAYLOAD, "sizes": SIZES, "salt": 1}
KEY = key_of(PAYLOAD)
KILLED = Fault("R2", "kill -9 while an output is uploaded in parts to S3", pr=1, night=8, release=30)


def publish(store, files: dict[str, bytes], payload: dict = PAYLOAD):
    """What a stage does on a miss."""
    tree = store.new_tree()
    write_output(tree, files)
    return store.publish(payload, tree, FACTS)


def upload_key(store) -> str:
    """The object that is being uploaded in parts."""
    [(key, _, _)] = store.objects.uploads("files/")
    return key


def test_killed_upload_goes_on_where_it_stopped(url, at, proxy, tmp_path):
    """Catches an upload that begins anew after a kill, one that shows a record before its files, and one that computes
    the step again although its output is on the disk."""

    def trial(rng: random.Random) -> None:
        # Machines of its own: one that was there before has another output of this key, which would do as well.
        step = {**STEP, "salt": rng.randrange(1 << 30)}
        first, second, third = (f"{name}{step['salt']}" for name in "abc")
        for stat in list(at("clean").objects.listed("")):
            at("clean").objects.delete(stat.key)
        last = rng.randint(2, PARTS)
        child: list[subprocess.Popen] = []

        def kill(request: S3Request) -> int | None:
            if request.part and proxy.parts() >= last:
                child[0].send_signal(signal.SIGKILL)
                return 503
            return None

        proxy.forget()
        child.append(started(url, tmp_path / first, "compute", step))
        proxy.meddle = kill
        assert child[0].wait(60) == -signal.SIGKILL
        child[0].communicate()
        proxy.settle()
        store = at(second)
        assert not list(store.objects.listed("records/")), "a record before its files"
        assert store.lookup("finetune", KEY) is None, "a hit of half an output"
        [(key, upload, _)] = store.objects.uploads("files/")
        there = store.objects.parts(key, upload)
        proxy.forget()

        again = answer_of(started(url, tmp_path / first, "compute", step))

        assert not again["ran"], "computed again"
        assert again["right"]
        sent = part_numbers(proxy.requests)
        assert sorted(sent) == [n for n in range(1, PARTS + 1) if n not in there], (
            f"{sent} sent, {sorted(there)} were there"
        )
        record = at(third).lookup("finetune", KEY)
        assert_right(record, contents(SIZES, step["salt"]))

    KILLED.run(trial)


def test_part_of_another_file_is_not_taken_up(at, proxy):
    """Catches a resumed upload that trusts parts by their number: another writer's cut, or another file's bytes."""
    store = at()
    files = contents({"w": 2 * transfer.PART + 5}, 3)
    import hashlib

    key = f"files/{hashlib.sha256(files['w']).hexdigest()}"
    foreign = store.objects.begin(key)
    store.objects.put_part(key, foreign, 1, b"x" * transfer.PART)
    proxy.forget()
    assert_right(publish(store, files), files)
    assert sorted(part_numbers(proxy.requests)) == [1, 2, 3]
    assert_right(at("b").lookup("finetune", KEY), files)


def test_refused_upload_fails_loudly_and_goes_on_later(at, proxy):
    """Catches a publication that says nothing of a service which takes no parts, or a record of half an output."""
    store = at()
    files = contents({"w": 2 * transfer.PART + 5}, 4)
    proxy.meddle = lambda request: 503 if request.part and proxy.parts() > 1 else None
    with pytest.raises(StoreError, match=r"^s3://.*503|Meddled.* after 4 tries") as failed:
        publish(store, files)
    assert str(failed.value).endswith(".") and "\n" not in str(failed.value)
    proxy.forget()
    assert not list(store.objects.listed("records/")), "a record before its files"
    assert at("b").lookup("finetune", KEY) is None
    there = at("b").objects.parts(upload_key(store), store.objects.uploads("files/")[0][1])
    proxy.forget()
    record = at("a").lookup("finetune", KEY)
    assert_right(record, files)
    assert len(part_numbers(proxy.requests)) == 3 - len(there)


def test_upload_that_vanished_is_reported(at, proxy):
    """Catches an upload that was cleared away while it was sent, and is taken for complete."""
    store = at()
    files = contents({"w": 2 * transfer.PART + 5}, 5)

    def clear(request: S3Request) -> int | None:
        if request.method == "POST" and "uploadId=" in request.query:
            proxy.meddle = lambda request: None
            for key, upload, _ in store.objects.uploads("files/"):
                store.objects.abort(key, upload)
        return None

    proxy.meddle = clear
    with pytest.raises(StoreError, match="not there; run again"):
        publish(store, files)
    assert_right(at().lookup("finetune", KEY), files)


def test_what_is_there_is_not_sent_again(at, proxy):
    """Catches identical files that are stored and sent once for each output."""
    shared = contents({"tokenizer.json": 300_000}, 6)
    publish(at(), {**shared, "a": b"1"})
    proxy.forget()
    step = Step({**PAYLOAD, "config": {"seed": 2}}, {**shared, "b": b"2"})
    publish(at("b"), step.files, step.payload)
    puts = [
        one.path.rpartition("/files/")[2] for one in proxy.requests if one.method == "PUT" and "/files/" in one.path
    ]
    assert len(puts) == 1
    assert_right(at("c").lookup("finetune", step.key), step.files)


def test_parts_are_few_enough():
    """Catches a file of 5 TB, S3's largest, in more than 10,000 parts, or parts that depend on the writer."""
    assert transfer.part_size(14 << 30) == transfer.PART
    assert len(list(transfer.pieces(14_000_000_000))) == 835
    assert 5e12 / transfer.part_size(int(5e12)) <= 10_000
    sizes = [count for _, _, count in transfer.pieces(3 * transfer.PART)]
    assert sizes == [transfer.PART] * 3 and list(transfer.pieces(0)) == []
    assert Path(transfer.__file__).exists()


def test_tree_of_many_files_fits_into_a_process(at, tmp_path):
    """Catches a dataset of more shards than a process may have files open."""
    store = at("a")
    store.objects.put("files/x", b"last")
    files = [transfer.File("files/x", tmp_path / f"{n}", 4 * (n == 599)) for n in range(600)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [int(fd) for fd in os.listdir("/proc/self/fd")]  # the tests before this one left some open
    room = next(limit for limit in count() if limit - sum(fd < limit for fd in taken) == 256)
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, before[1]))
    try:
        transfer.download(store.objects, files, store.report, "many")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sum(file.path.stat().st_size for file in files) == 4
