"""`spinloop store`: what a person sees of a finished run's store, and clears."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def store(finished, tmp_path: Path) -> Path:
    """A private copy of the finished store."""
    return Path(shutil.copytree(finished[0], tmp_path / "store", symlinks=True))


def test_du_adds_up_to_what_is_on_disk(spinloop, store) -> None:
    """Catches a table by stage that leaves outputs out, and a run's share that is not what it links to."""
    code, out, _ = spinloop("store", "du", "--store", store)
    assert code == 0
    trees = store / "spinloop-store-v1" / "trees"
    total = sum(file.lstat().st_size for file in trees.rglob("*") if file.is_file())
    assert out.splitlines()[-1].startswith(f"{total / 1e6:,.2f} MB in all")
    tables = [[line.split() for line in part.splitlines()] for part in out.split("\n\n")]
    assert tables[0][0] == ["stage", "outputs", "size"] and tables[1][0] == ["run", "outputs", "size", "only", "here"]
    assert sum(int(line[1]) for line in tables[0][1:]) == len(list(trees.iterdir()))
    assert next(line for line in tables[0] if line[0] == "finetune")[1] == "2"
    ((run, outputs, *_),) = tables[1][1:]
    assert run.startswith("tiny-") and int(outputs) == len(list(trees.iterdir()))
    assert spinloop("store", "du", "tiny-none", "--store", store)[0] == 2


def test_verify_hashes_only_with_deep(spinloop, store) -> None:
    """Catches a quick check that takes hours, and a deep one that does not look at bytes."""
    assert spinloop("store", "verify", "--store", store)[0] == 0
    assert spinloop("store", "verify", "--deep", "--store", store)[0] == 0
    file = next((store / "spinloop-store-v1" / "trees").glob("*/report.html"))
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b"a", b"b", 1))
    assert spinloop("store", "verify", "--store", store)[0] == 0
    code, out, err = spinloop("store", "verify", "--deep", "--store", store)
    assert code == 1 and file.parent.name in out and "1 problem in" in err
    file.write_bytes(b"")
    assert spinloop("store", "verify", "--store", store)[0] == 1


def test_gc_says_what_goes_and_keeps_the_best_model(spinloop, store) -> None:
    """Catches a dry run that promises other things than gc does, and the model that people came for among the
    rubbish."""
    root = store / "spinloop-store-v1"
    best = (root / "latest" / "best").resolve()
    decisions = sorted((root / "latest").glob("*-gate*/decision.json"))
    k = json.loads(decisions[-1].read_text())["best"]
    made_by = "finetune-iter" if k else "sft-theta"
    assert any(made_by in link.name and link.resolve() == best for link in (root / "latest").iterdir())
    code, would, _ = spinloop("store", "gc", "--keep-runs", "0", "--dry-run", "--store", store)
    assert code == 0 and "would remove" in would and best.exists()
    before = sum(file.lstat().st_size for file in root.rglob("*") if file.is_file() and not file.is_symlink())
    code, did, _ = spinloop("store", "gc", "--keep-runs", "0", "--store", store)
    assert code == 0 and did == would.replace("would remove", "removed")
    kept = [file for file in root.rglob("*") if file.is_file() and not file.is_symlink()]
    after = sum(file.lstat().st_size for file in kept if file.name != "gc.json")  # its own list of what went
    assert did.splitlines()[-1].endswith(f"{(before - after) / 1e6:,.2f} MB")
    assert [tree.name for tree in (root / "trees").iterdir()] == [best.name]
    assert (root / "latest" / "best").resolve() == best and (root / "latest" / "report.html").exists()
    assert spinloop("store", "gc", "--keep", "no-such-run", "--store", store)[0] == 2
