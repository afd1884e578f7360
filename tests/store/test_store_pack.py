"""`store pack`: weights in the middle of a run as differences, in a folder: given back bit for bit, and under every
promise that whole files have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store import delta, deltas, fs, pack
from spin_core.store.gc import gc
from spin_core.store.store import Store
from spin_core.store.usage import usage
from spin_core.store.verify import verify
from tests.faults.s3.test_deltas import models, trained
from tests.faults.store.battery import assert_right, compute, in_child, overwrite
from tests.faults.store.kinds import Step

WEIGHTS = "model.safetensors"


def filled(store: Store, iterations: int = 4, run: str = "run-1", best: int | None = None) -> list[Step]:
    """A run's models, with its links; packed is what lies between."""
    steps = models(iterations)
    digests = [compute(store, step).digest for step in steps]
    links = {f"{t:02}-finetune-iter-{t - 1}": digests[t] for t in range(1, iterations + 1)}
    store.link_run(run, {"00-import": digests[0], **links, "best": digests[iterations if best is None else best]})
    return steps


def tree(store: Store, step: Step) -> Path:
    record = store.record(step.stage, step.key)
    assert record
    return record.path


def whole(store: Store, steps: list[Step]) -> list[int]:
    """Which of the models have their weights as they are."""
    return [t for t, step in enumerate(steps) if (tree(store, step) / WEIGHTS).exists()]


def check_all(store: Store, steps: list[Step]) -> None:
    """Every model is a hit, and has its bytes when a step reads it."""
    for step in steps:
        record = store.lookup(step.stage, step.key)
        assert record
        store.input_tree(record.digest)
        assert_right(record, step.files)
    assert store.notes == []


def test_models_on_the_way_are_packed_and_come_back(store: Store) -> None:
    """Catches other bytes, a best or last model whose link leads to no weights, and a look-up that is a miss."""
    steps = filled(store, best=3)
    dry = pack.pack(store, dry_run=True)
    size = len(steps[0].files[WEIGHTS])
    assert (dry.models, dry.before, dry.after) == (2, 2 * size, 0) and whole(store, steps) == [0, 1, 2, 3, 4]
    done = pack.pack(store)
    assert (done.models, done.before) == (2, 2 * size) and 0 < done.after < 0.5 * size
    assert whole(store, steps) == [0, 3, 4] and verify(store) == [] and verify(store, deep=False) == []
    used = usage(store)
    assert used.total < 3.5 * size and {line.name: line.bytes < 2.5 * size for line in used.stages}["finetune"]
    for step in steps:
        record = store.lookup(step.stage, step.key)
        assert record and (record.path / "config.json").exists() == (step.stage == "finetune")
    assert whole(store, steps) == [0, 3, 4], "a look-up needs no weights"
    check_all(store, steps)
    assert whole(store, steps) == [0, 1, 2, 3, 4]
    again = pack.pack(store)  # the deltas are there
    assert (again.models, again.after) == (done.models, done.after) and whole(store, steps) == [0, 3, 4]
    assert pack.pack(store).models == 0


def test_a_run_that_goes_on(store: Store) -> None:
    """θ_4 was the last model, and is one on the way once there are θ_5 and θ_6: its base is packed already."""
    steps = filled(store)
    pack.pack(store)
    longer = models(6)
    digests = [compute(store, step).digest for step in longer]
    store.link_run("run-1", {f"{t:02}-finetune-iter-{t - 1}": digests[t] for t in (5, 6)} | {"best": digests[6]})
    assert pack.pack(store).models == 2 and whole(store, longer) == [0, 6]
    check_all(store, longer)
    assert steps[4].key == longer[4].key


def test_best_that_moves_to_a_packed_model_is_whole(store: Store) -> None:
    """Catches a link `best` behind which the weights are missing."""
    steps = filled(store)
    pack.pack(store)
    record = store.lookup(steps[2].stage, steps[2].key)
    assert record
    store.link_run("run-1", {"best": record.digest})
    assert (store.root / "runs/run-1/best" / WEIGHTS).read_bytes() == steps[2].files[WEIGHTS]


def test_not_while_a_run_uses_the_store(store: Store) -> None:
    """Catches weights that go while a step reads them."""
    steps = filled(store)
    with store.using(), pytest.raises(StoreError, match="a run is using the store"):
        pack.pack(store)
    assert whole(store, steps) == [0, 1, 2, 3, 4]


def test_not_deeper_than_is_read_in_one_pass(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a year of iterations of which the last hangs on three hundred others."""
    monkeypatch.setattr(delta, "DEEPEST", 2)
    steps = filled(store, iterations=6)
    pack.pack(store)
    assert whole(store, steps) == [0, 3, 6]
    check_all(store, steps)


@pytest.mark.parametrize("seed", range(12))
def test_damage_is_a_miss_and_heals(store: Store, seed: int) -> None:
    """A flipped, cut or missing delta or base: every model that hangs on it is a miss, what does not is a hit, and all
    is right once it was computed again. Catches wrong bytes, and a model that is damaged for ever."""
    steps, rng = filled(store), random.Random(seed)
    pack.pack(store)
    places = [tree(store, steps[0]) / WEIGHTS, *sorted((store.root / deltas.FOLDER).rglob(f"{WEIGHTS}.*"))]
    file = places[seed % len(places)]
    raw = bytearray(file.read_bytes())
    how = seed // len(places)
    if how == 0:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif how == 1:
        raw = raw[: rng.randrange(len(raw))]
    if how < 2:
        overwrite(file, bytes(raw))
    else:
        file.parent.chmod(0o755)
        file.unlink()
    assert verify(store), "verify does not see it"
    ran: list[str] = []
    for step in steps:
        record = compute(store, step, ran)
        store.input_tree(record.digest)
        assert_right(store.lookup(step.stage, step.key), step.files)
    assert ran and all("counts as not there" in note for note in store.notes)
    store.notes.clear()
    check_all(store, steps)
    gc(store)
    assert verify(store) == []
    check_all(store, steps)


def test_damage_between_look_up_and_use_is_one_sentence_and_heals(store: Store) -> None:
    """Catches a step that reads wrong weights, and a run that fails in the same way for ever."""
    steps = filled(store)
    pack.pack(store)
    record = store.lookup(steps[2].stage, steps[2].key)
    assert record
    overwrite(next((store.root / deltas.FOLDER / record.digest).iterdir()), b"{}\n")
    with pytest.raises(StoreError, match=r"no delta of ours.*run again, and it is computed again\.$"):
        store.input_tree(record.digest)
    store.notes.clear()
    ran: list[str] = []
    compute(store, steps[2], ran)
    assert ran == [steps[2].key]
    store.notes.clear()
    check_all(store, steps)


def test_gc_keeps_what_deltas_hang_on(store: Store) -> None:
    """Catches a gc after which a kept model's delta leads nowhere; and deltas that stay when their model goes."""
    steps = filled(store)
    pack.pack(store)
    two = tree(store, steps[2])
    store.link_run(
        "run-2", {"best": compute(store, Step({**steps[0].payload, "config": {"n": 7}}, {"x": b"1"})).digest}
    )
    (store.root / "runs/run-1/best").unlink()
    for link in (store.root / "runs/run-1").glob("*finetune*"):
        link.unlink()
    (store.root / "runs/run-1/01-finetune-iter-1").symlink_to(f"../../trees/{two.name}")
    gc(store, keep_runs=0)
    assert {path.name for path in (store.root / deltas.FOLDER).iterdir()} == {
        tree(store, steps[1]).name,
        two.name,
    }
    check_all(store, steps[:3])
    (store.root / "runs/run-1/01-finetune-iter-1").unlink()
    gc(store, keep_runs=0)
    assert list((store.root / deltas.FOLDER).iterdir()) == []


def test_killed_anywhere_nothing_is_lost(place: Path) -> None:
    """Killed at each change of the disk while it packs or restores: every model is a hit with its bytes afterwards.
    Catches weights that go before their delta is there, and half a file under its name."""
    for what in ("pack", "restore"):
        points = 1
        number = 0
        while number < points:
            store = Store(place / f"{what}-{number}")
            steps = filled(store, iterations=2)
            if what == "restore":
                pack.pack(store)
            digest = tree(store, steps[1]).name

            def work(store: Store = store, digest: str = digest, what: str = what) -> None:
                pack.pack(store) if what == "pack" else store.input_tree(digest)

            if number == 0:
                seen: list[str] = []
                fs.hook = lambda op, path, seen=seen: seen.append(op)
                work()
                fs.hook = None
                points = len(seen)
                assert points > 10
            else:
                left = [number]

                def hook(op: str, path: Path, left: list[int] = left) -> None:
                    left[0] -= 1
                    if left[0] == 0:
                        import os

                        os._exit(137)

                def dies(work=work, hook=hook) -> None:
                    fs.hook = hook
                    work()

                assert in_child(dies) == 137
            check_all(store, steps)
            gc(store)
            assert verify(store) == []
            fs.remove(place / f"{what}-{number}")
            number += 1


def test_other_weights_stay_whole(store: Store) -> None:
    """A model that was trained from scratch after its input, or is of another size: nothing is packed, nothing said."""
    steps = models(2, first=trained(b"\0" * 8 + b"no safetensors" * 200_000, 1))
    digests = [compute(store, step).digest for step in steps]
    store.link_run("run-1", {"01-finetune-iter-0": digests[1], "02-finetune-iter-1": digests[2]})
    assert pack.pack(store) == pack.PackResult(0, 0, 0) and whole(store, steps) == [0, 1, 2] and store.notes == []


def test_look_up_hashes_what_a_delta_hangs_on(store: Store) -> None:
    """A flipped bit of θ_0 makes θ_1 a miss before anybody looks θ_0 up. Catches a hit whose weights are wrong, or that
    fails when a step reads it."""
    steps = filled(store)
    pack.pack(store)
    file = tree(store, steps[0]) / WEIGHTS
    raw = bytearray(file.read_bytes())
    raw[7000] ^= 4
    overwrite(file, bytes(raw))
    assert store.lookup(steps[1].stage, steps[1].key) is None
    assert WEIGHTS in store.notes[0] and "counts as not there" in store.notes[0]
