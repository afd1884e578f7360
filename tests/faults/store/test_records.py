"""R9: a record that is gone, cut, altered, of another form, or another step's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from spin_core.store import record as module
from spin_core.store.keys import payload
from spin_core.store.record import Record, encode
from spin_core.store.store import Store
from tests.faults.fault import Fault
from tests.faults.store import battery
from tests.faults.store.battery import KEY, PAYLOAD, assert_right, compute, overwrite, publish, record_file
from tests.faults.store.kinds import kinds

R9_BYTES = Fault("R9", "a record cut before each byte, and each byte altered")
R9 = Fault("R9", "a record deleted, of another version or form, swapped, edited to another output")


def test_lookup_record_cut_or_altered_at_each_byte_is_a_miss(store, place):
    """Catches a parser that is content with a part, and facts without a checksum."""
    publish(store)
    file = record_file(place)
    original = file.read_bytes()
    rng = random.Random(7)

    def trial(at: int) -> None:
        flipped = bytearray(original)
        flipped[at] ^= 1 << rng.randrange(8)
        for bad in (original[:at], bytes(flipped)):
            file.write_bytes(bad)
            assert store.lookup("finetune", KEY) is None, (at, bad[-40:])
            assert not file.exists()

    R9_BYTES.each(range(len(original)), trial)
    file.write_bytes(original)
    assert_right(store.lookup("finetune", KEY))


FORMS = {
    "deleted": None,
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty map": b"{}",
    "nested": b"[" * 100_000,
    "infinity": b'{"store": 1e999}',
    "a long number": b"9" * 5000,
    "no UTF-8": b"\xff\xfe",
    "NaN": b'{"a":NaN}',
    "a pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("stage", ["finetune", "reformat"])
def test_lookup_record_gone_or_of_another_form_is_a_miss(stage):
    """Catches a traceback on a record that is JSON of another kind, or none; and computing a second output."""
    step = kinds()[stage]

    def trial(form: str) -> None:
        with battery.folder() as place:
            before = compute(Store(place), step)
            text = FORMS[form]
            if text is None:
                record_file(place, step).unlink()
            else:
                overwrite(record_file(place, step), text)
            assert Store(place).lookup(step.stage, step.key) is None
            battery.assert_recovers(Store, place, step)
            assert Store(place).lookup(step.stage, step.key) == before

    R9.each(FORMS, trial)


def test_lookup_record_of_another_schema_version_is_a_miss(monkeypatch):
    """Catches guessing what a newer record means: here one that is right in all but the number, checksum and all."""

    def trial(version: object) -> None:
        with battery.folder() as place:
            record = compute(Store(place))
            monkeypatch.setattr(module, "FORMAT", version)
            text = encode(record)
            monkeypatch.setattr(module, "FORMAT", 1)
            assert text != record_file(place).read_bytes()
            overwrite(record_file(place), text)
            assert Store(place).lookup("finetune", KEY) is None
            battery.assert_recovers(Store, place)

    R9.each([0, 2, 1.0, "1", True, None], trial)


def test_lookup_record_of_another_key_under_this_name_is_a_miss():
    """Catches serving one step's output for another: a swapped or copied record, of this stage or another."""
    others = [
        payload("finetune", 2, PAYLOAD["config"], PAYLOAD["inputs"]),
        payload("sft", 1, PAYLOAD["config"], PAYLOAD["inputs"]),
    ]

    def trial(other: dict) -> None:
        with battery.folder() as place:
            store = Store(place)
            publish(store)
            theirs = publish(store, other, {"config.json": b"other"})
            file = store.root / "records" / theirs.stage / f"{theirs.key}.json"
            overwrite(record_file(place), file.read_bytes())
            assert store.lookup("finetune", KEY) is None
            assert store.lookup(theirs.stage, theirs.key) == theirs
            battery.assert_recovers(Store, place)

    R9.each(others, trial)


def test_lookup_record_rewritten_with_a_fresh_checksum_is_still_held_to_its_name(store, place):
    """Catches a checksum being the only check: the payload must hash to the key, and the files to the digest."""
    record = publish(store)
    other = publish(store, payload("finetune", 2, {}, {}), {"config.json": b"other"})
    up = [{**other.files[0], "path": name} for name in ("../config.json", "/etc/passwd", "a/../../b")]
    spoofs: list[Callable[[], Record]] = [
        lambda: replace(record, payload=other.payload),
        lambda: replace(record, digest=other.digest),
        lambda: replace(record, files=other.files),
        lambda: replace(record, digest="../" + other.digest),
        *(lambda entry=entry: replace(record, files=[entry]) for entry in up),
    ]

    def trial(spoof: Callable[[], Record]) -> None:
        record_file(place).unlink()
        record_file(place).write_bytes(encode(spoof()))
        assert store.lookup("finetune", KEY) is None
        publish(store)

    R9.each(spoofs, trial)
    assert_right(store.lookup("finetune", KEY))


def test_publish_damaged_record_in_the_way_is_replaced(store, place):
    """Catches a damaged record that makes its key unpublishable for ever."""
    publish(store)
    overwrite(record_file(place), b"{")
    assert_right(publish(store))
    assert_right(store.lookup("finetune", KEY))


def test_records_of_a_store_with_a_damaged_one_are_the_others(store, place):
    """Catches `store ls` that fails, or lists what nobody can use, for one bad file."""
    kept = publish(store)
    other = compute(store, kinds()["score"])
    overwrite(record_file(place, kinds()["score"]), b"{}")
    assert [record.key for record in store.records()] == [kept.key]
    assert other.key in store.notes[-1]
