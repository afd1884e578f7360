"""`kill -9` of a process that computes and publishes a stage, at any moment of it; and links that somebody planted
where it writes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from spin_core.store import fs
from tests.faults.fault import Fault
from tests.faults.flow.cases import case_of

DEFAULT, IN_FULL = ("score",), ("generate", "sft", "finetune", "evaluate")
LATE = 0.5  # of the kills: in the last fifth, where the output is sealed and published


@pytest.mark.parametrize("stage", [*DEFAULT, *(pytest.param(one, marks=pytest.mark.full) for one in IN_FULL)])
def test_stage_killed_at_any_moment_is_complete_and_ends_in_the_same_bytes(forks, smoke, stage: str) -> None:
    """Catches an output that is visible before it is complete, a rerun that takes half-written work for its own, one
    that computes again what was published, and leftovers that gc does not know."""
    case = case_of(forks, smoke.store, stage)

    def trial(rng: random.Random) -> None:
        after = rng.uniform(0.8 if rng.random() < LATE else 0.0, 1.0) * case.seconds
        with case.store() as place:
            case.run(place, after=after)
            case.assert_recovers(place)

    Fault("R2", f"kill -9 of {stage} at a random moment", pr=3, night=30, release=100).run(trial)


def test_links_planted_where_a_stage_writes_lead_nowhere(forks, smoke) -> None:
    """Catches a stage that writes, chmods or deletes through a link which another user put where its tree, its scratch
    folder, its lock or all temporary files go."""
    case = case_of(forks, smoke.store, "finetune")

    def trial(where: str) -> None:
        with case.store() as place:
            victim = place.parent / "victim"
            (victim / "tmp-x").mkdir(parents=True)
            for name in ("checkpoint-00000001", "tmp-x/file", "model.safetensors"):
                (victim / name).write_text("mine")
            before = contents(victim)
            target = place / "spinloop-store-v1" / where.format(key=case.key, digest=case.digest)
            fs.remove(target)
            target.symlink_to(victim)
            done = case.run(place)
            assert contents(victim) == before, "the victim was changed"
            if done.status:
                assert done.error.startswith("StoreError: ") and "link" in done.error, done
            else:
                assert done.digest == case.digest and (case.recorded(place) and not case.tree(place).is_symlink())

    places = ("trees/{digest}", "scratch/finetune-{key}", "locks/finetune-{key}", "tmp", "trees", "scratch", "locks")
    Fault("S14", "a planted link to somebody's folder, where a stage is about to write").each(places, trial)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and bytes of everything below."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }
