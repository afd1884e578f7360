"""R6, R7, R8: what is stored was altered, lost or replaced, or reads badly once."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

from spin_core.store import fs
from spin_core.store.keys import payload
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.fault import Fault
from tests.faults.store import battery, damages
from tests.faults.store.battery import FILES, KEY, assert_right, compute, folder, overwrite, publish, record_file
from tests.faults.store.kinds import Step, kinds

R6_EACH = Fault("R6", "a bit of a stored file flips (each file of each stage's output, and its record)")
R6 = Fault("R6", "a random bit of a random file of a random stage flips", pr=50, night=1000, release=5000)
R6_SHARED = Fault("R6", "a bit of a file flips that two outputs share", pr=10, night=100, release=300)
R7 = Fault("R7", "a file reads wrongly once", pr=20, night=100, release=1000)
R7_AFTER = Fault("R7", "a bit flips right after a look-up: the next one sees it", pr=10, night=100, release=1000)
R8 = Fault(
    "R8", "a stored file deleted, emptied, cut, joined, made a link, folder, FIFO or hard link (each × each stage)"
)
R8_WAY = Fault("R8", "something damaged or planted lies where an output is to go")
STAGES = list(kinds())


@pytest.mark.parametrize("stage", STAGES)
def test_lookup_flipped_bit_in_any_file_is_a_miss_and_quarantined(stage):
    """Catches a look-up that trusts names or sizes, or hashes some files only."""
    damages.check_flips(Store, R6_EACH, kinds()[stage])


def test_lookup_random_flips_none_is_served():
    """Catches hashing only a part of each file."""

    def trial(rng: random.Random) -> None:
        step = kinds()[rng.choice(STAGES)]
        with folder() as place:
            stored = compute(Store(place), step)
            file = rng.choice([record_file(place, step), *(stored.path / name for name in step.files)])
            damages.flip(file, rng.randrange(8 * max(1, file.stat().st_size)))
            reader = Store(place)
            assert reader.lookup(step.stage, step.key) is None
            assert file.name in reader.notes[-1]
            battery.assert_recovers(Store, place, step)

    R6.run(trial)


def test_lookup_flip_in_a_file_that_two_outputs_share_both_are_misses():
    """Catches an output whose tokenizer is its input's by hard link, and which is not hashed for that reason; and one
    that is made again out of the damaged file."""
    tokenizer = bytes(range(256)) * 64

    def trial(rng: random.Random) -> None:
        with folder() as place:
            parent = publish(Store(place), payload("sft", 1, {}, {}), {"tokenizer.json": tokenizer, "a": b"1"})
            child_payload = payload("finetune", 1, {}, {"model": parent.digest})
            child = Step(child_payload, {"tokenizer.json": tokenizer, "a": b"2"})
            stored = compute(Store(place), child)
            damages.flip(rng.choice((parent, stored)).path / "tokenizer.json", rng.randrange(8 * len(tokenizer)))
            outputs = [Step(parent.payload, {"tokenizer.json": tokenizer, "a": b"1"}), child]
            rng.shuffle(outputs)
            shared = (parent.path / "tokenizer.json").stat().st_ino == (stored.path / "tokenizer.json").stat().st_ino
            missed = [Store(place).lookup(one.stage, one.key) is None for one in outputs]
            assert sum(missed) == (2 if shared else 1), missed
            for one in outputs:
                battery.assert_recovers(Store, place, one)

    R6_SHARED.run(trial)


def test_lookup_file_reads_wrongly_once_is_read_again():
    """Catches serving, or throwing away for good, what the disk only misread."""

    def trial(rng: random.Random) -> None:
        step = kinds()[rng.choice(STAGES)]
        with folder() as place:
            stored = compute(Store(place), step)
            name = rng.choice([record_file(place, step).name, *(Path(name).name for name in step.files)])
            with damages.bad_once(name, rng.randrange(1 << 20)) as done:
                record = Store(place).lookup(step.stage, step.key)
            assert done and (record is None or record == stored)
            battery.assert_recovers(Store, place, step)
            assert record is not None, "healthy, and set aside"

    R7.run(trial)


def test_publish_file_reads_wrongly_once_is_never_published_wrong():
    """Catches an output under the digest of what was misread: no look-up may ever give it."""

    def trial(rng: random.Random) -> None:
        with folder() as place:
            name = rng.choice([Path(name).name for name in FILES])
            with damages.bad_once(name, rng.randrange(1 << 20)):
                compute(Store(place))
            battery.assert_recovers(Store, place, intact=False)

    R7.run(trial)


def test_lookup_flip_after_a_lookup_is_seen_by_the_next():
    """Catches remembering that an output was intact. (Between a look-up and the use of its output nothing is hashed:
    the package's docstring says so.)"""
    damages.check_flip_after_lookup(Store, R7_AFTER)


@pytest.mark.parametrize("stage", STAGES)
def test_lookup_file_or_output_replaced_or_gone_is_a_miss(stage):
    """Catches following links, hanging on a FIFO, and missing an added file."""
    damages.check_replaced(Store, R8, kinds()[stage])


def test_lookup_through_a_planted_link_leaves_its_target_alone(store, place):
    """Catches cleaning up, or writing, through a link that somebody put where a tree was."""
    record = publish(store)
    record.path.chmod(0o755)
    record.path.rename(place / "elsewhere")
    record.path.symlink_to(place / "elsewhere")
    assert store.lookup("finetune", KEY) is None
    assert_right(compute(store))
    assert (place / "elsewhere/config.json").read_bytes() == FILES["config.json"]


def test_lookup_healed_meanwhile_does_not_set_aside_the_good_tree(store, monkeypatch):
    """Catches quarantining by name after another process has already replaced the damaged tree with a good one."""
    record = publish(store)
    overwrite(record.path / "config.json", b"bad")
    real = Store._judge
    first: list = []

    def judge(self, file):
        verdict = real(self, file)
        if not first:
            first.append(verdict[1])
            other = Store(store.root.parent)
            assert_right(compute(other))
        return verdict

    monkeypatch.setattr(Store, "_judge", judge)
    assert_right(store.lookup("finetune", KEY))
    assert first[0] is not None
    assert_right(record)


@pytest.mark.parametrize("stage", STAGES)
def test_publish_damaged_tree_in_the_way_is_replaced(stage):
    """Catches taking what lies under the digest's name for the output without looking."""
    damages.check_in_the_way(Store, R8_WAY, kinds()[stage])


def test_publish_something_else_in_the_way_is_replaced_and_victim_unchanged():
    """Catches writing through a planted link, and failing for ever on a planted file."""
    planted = {"file": Path.touch, "empty folder": Path.mkdir}

    def trial(point: tuple[str, str]) -> None:
        stage, what = point
        step = kinds()[stage]
        with folder() as place:
            tree = compute(Store(place), step).path
            record_file(place, step).unlink()
            tree.chmod(0o755)
            fs.remove(tree)
            victim = place / "victim"
            victim.mkdir()
            (victim / "config.json").write_bytes(b"victim")
            planted.get(what, lambda path: path.symlink_to(victim))(tree)
            assert_right(compute(Store(place), step), step.files)
            assert {p.name: p.read_bytes() for p in victim.iterdir()} == {"config.json": b"victim"}
            assert verify(Store(place)) == []

    R8_WAY.each(product(STAGES, [*planted, "link"]), trial)
