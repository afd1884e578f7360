"""takes/: which steps were replaced on purpose, how often, and what that does to keys, words, gc and verify."""

from __future__ import annotations

import pytest

from spin_core.runtime.step import KeyedStep, Step
from spin_core.sources.resolve import Ref
from spin_core.stages import score
from spin_core.store.explain import compare, differences, explain
from spin_core.store.gc import gc
from spin_core.store.keys import key_of, payload, take_of, with_take
from spin_core.store.store import Store
from spin_core.store.takes import in_words
from spin_core.store.verify import verify
from tests.faults.store.battery import publish

A, B = "a" * 64, "b" * 64
FIRST = payload("generate", 1, {"seed": 3}, {"model": A})
KEY = key_of(FIRST)
SCORE = {"max_length": 80, "precision": "float32", "collation": "exact"}


def test_newest_counter_is_the_one_that_counts(store) -> None:
    """Catches the order of names for that of numbers (10 before 9), a counter that goes back, and a strange file that
    is taken for one, or that nobody is shown."""
    for take in (2, 10, 9):
        store.takes.write("generate", KEY, take, B)
    store.takes.write("score", B, 1, A)
    assert store.takes.read() == Store(store.root.parent).takes.read() == {KEY: 10, B: 1}
    assert verify(store) == []
    for name in ("notes.txt", f"{KEY}.0.json", f"{KEY}.-1.json", f"{KEY}.11.json.tmp", "x" * 64 + ".12.json"):
        (store.root / "takes" / name).write_bytes(b"")
    assert store.takes.read() == {KEY: 10, B: 1}
    assert len(verify(store)) == 5 and all(line.startswith("takes/") for line in verify(store))


def test_store_that_was_never_replaced_in_has_no_folder_for_it(store) -> None:
    """Catches a read that writes: a plan, or a store that is for reading only."""
    assert store.takes.read() == {} and not (store.root / "takes").exists()


def test_first_output_keeps_the_key_it_always_had() -> None:
    """Catches a counter of 0 that enters the key: every store would be computed again."""
    assert with_take(FIRST, 0) == FIRST and key_of(with_take(with_take(FIRST, 3), 0)) == KEY
    assert "take" not in FIRST and with_take(FIRST, 2) == FIRST | {"take": 2}
    assert len({key_of(with_take(FIRST, take)) for take in range(5)}) == 5


@pytest.mark.parametrize("take", ["1", True, -1, 1.0, None, [1]])
def test_counter_of_a_record_that_no_key_has_is_none(take) -> None:
    """Catches a traceback on a record that somebody else made."""
    assert take_of({"take": take}) == 0 and in_words(take_of({"take": take})) == ""


def test_step_asks_for_its_newest_output() -> None:
    """Catches a replaced step that asks for its first output, one that was not replaced and asks for another, and a
    replaced score that falls back on what was computed without its real answers' log-probs before."""
    step = Step(score, "", score.Config.model_validate({"chat": {}, "score": SCORE}))
    reads = {"model": Ref(A), "pairs": Ref(B)}
    saving = reads | {"real_pairs": Ref(A), "real_logps": Ref(B)}
    first, plain = KeyedStep(step, saving), KeyedStep(step, reads)
    assert first.take == 0 and first.key == first.first_key and first.bare == plain
    takes = {first.key: 2}
    twice = KeyedStep(step, saving, takes)
    assert twice.take == 2 and twice.payload == with_take(first.payload, 2) and twice.key == key_of(twice.payload)
    assert twice.first_key == first.key and twice.bare is None
    assert twice.at(3).take == 3 and twice.at(3).payload == with_take(first.payload, 3)
    assert KeyedStep(step, reads, takes).key == plain.key
    replaced = KeyedStep(step, saving, {plain.key: 1})
    assert replaced.key == first.key and replaced.bare.take == 1


def test_words_tell_counters_apart(store) -> None:
    """Catches two outputs of one step that `explain` calls the same, a step behind a replaced one whose reason is only
    that an input changed, and a plan that says "never ran" of a replaced step whose output gc removed."""
    once = with_take(FIRST, 1)
    assert differences(FIRST, once) == ["generate: replaced 0 → 1 times"]
    old = publish(store, FIRST, {"a": b"1"})
    new = publish(store, once, {"a": b"2"})
    assert compare(store, new) == f"differs from {old.key[:12]} in generate: replaced 0 → 1 times"
    publish(store, payload("gather", 1, {}, {"answers": [old.digest]}), {"b": b"1"})
    behind = payload("gather", 1, {}, {"answers": [new.digest]})
    assert explain(store, behind) == "input answers changed because generate: replaced 0 → 1 times"
    gone = explain(store, with_take(FIRST, 3))
    assert gone == "replaced 3 times, and that output is no longer in the store"


def test_gc_treats_a_replaced_output_as_any_other(store) -> None:
    """Catches a replacement that keeps an output alive, and a counter that goes back when its record goes: the first
    output would come back in silence."""
    publish(store, FIRST, {"a": b"1"})
    new = publish(store, with_take(FIRST, 1), {"a": b"2"})
    store.takes.write("generate", KEY, 1, new.key)
    other = publish(store, payload("demo_rows", 1, {}, {}), {"rows": b"x"})
    store.link_run("kept", {"1": other.digest})
    gc(store, keep_runs=1)
    assert [record.stage for record in store.records()] == ["demo_rows"]
    assert store.takes.read() == {KEY: 1} and verify(store) == []
