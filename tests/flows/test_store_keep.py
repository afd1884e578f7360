"""`spinloop store policy`, `pin`, `forget` and `gc` by age and size, on a finished run's store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from spin_core.store.store import Store
from tests.store.test_store_pack import filled


@pytest.fixture
def store(finished, tmp_path: Path) -> Path:
    """A private copy of the finished store, whose run was last started ninety days ago, and a later one."""
    store = Path(shutil.copytree(finished[0], tmp_path / "store", symlinks=True))
    root = store / "spinloop-store-v1"
    (run,) = (folder for folder in (root / "runs").iterdir() if folder.is_dir())
    for file in run.glob("costs-*.json"):
        file.rename(file.with_name("costs-20260101T000000Z-abcdef.json"))
    later = root / "runs" / "later-1"
    later.mkdir()
    (later / "best").symlink_to((run / "best").readlink())
    (later / ".order").write_text("2\n")
    (root / "latest").unlink()
    (root / "latest").symlink_to("runs/later-1")
    return store


def run_of(store: Path) -> str:
    return next(path.name for path in (store / "spinloop-store-v1/runs").iterdir() if path.name.startswith("tiny-"))


def trees(store: Path) -> set[str]:
    return {path.name for path in (store / "spinloop-store-v1/trees").iterdir()}


def kept(store: Path) -> set[str]:
    """What the later run needs: its best model, and what that was made from; no figures."""
    root = store / "spinloop-store-v1"
    records = [json.loads(file.read_text()) for file in root.glob("records/*/*.json")]
    inputs = {one["digest"]: json.dumps(one["payload"]["inputs"]) for one in records}
    waiting, reached = [(root / "runs/later-1/best").readlink().name], set[str]()
    while waiting:
        if (digest := waiting.pop()) not in reached:
            reached.add(digest)
            waiting += [one for one in inputs if one in inputs[digest]]
    return reached


def test_gc_by_age_gives_up_an_old_run_and_says_so(spinloop, store) -> None:
    """Catches a dry run that says other things than gc does, and a best model that goes with its run."""
    before, after = trees(store), kept(store)
    assert after < before
    code, would, _ = spinloop("store", "gc", "--older-than", "30d", "--dry-run", "--store", store)
    assert code == 0 and trees(store) == before
    assert would.startswith(f"{run_of(store)}: would be given up (last started ") and "best model stays" in would
    code, did, _ = spinloop("store", "gc", "--older-than", "5000d", "--store", store)
    assert code == 0 and trees(store) == before and did.startswith("0 records and 0 trees removed")
    code, did, _ = spinloop("store", "gc", "--older-than", "30d", "--store", store)
    assert code == 0 and trees(store) == after
    assert did == would.replace("would be given up", "given up").replace("would be removed", "removed")


def test_pinned_run_stays_whatever_gc_is_asked_for(spinloop, store) -> None:
    """Catches a pin that one way of clearing does not heed."""
    before, run, after = trees(store), run_of(store), kept(store)
    assert spinloop("store", "pin", run, "--store", store)[0] == 0
    assert spinloop("store", "gc", "--older-than", "30d", "--store", store)[0] == 0 and trees(store) == before
    assert spinloop("store", "gc", "--keep-runs", "0", "--store", store)[0] == 0 and trees(store) == before
    code, _, err = spinloop("store", "forget", run, "--store", store)
    assert code == 2 and f"{run}: is pinned; `spinloop store unpin {run}` first." in err
    assert f"pinned: {run}" in spinloop("store", "policy", "--store", store)[1]
    assert spinloop("store", "unpin", run, "--store", store)[0] == 0
    assert spinloop("store", "unpin", run, "--store", store)[0] == 2
    assert spinloop("store", "forget", run, "--store", store)[0] == 0
    assert not (store / "spinloop-store-v1/runs" / run).exists() and trees(store) == before
    assert spinloop("store", "gc", "--keep-runs", "1", "--store", store)[0] == 0 and trees(store) == after


def test_quota_that_is_too_small_removes_nothing(spinloop, store) -> None:
    """Catches a gc that removes what it can and then fails."""
    before = trees(store)
    code, _, err = spinloop("store", "gc", "--max-size", "1KB", "--store", store)
    assert code == 2 and trees(store) == before
    assert "1e-06 GB are less than" in err and "the best models of 2 runs take" in err and "Traceback" not in err
    code, out, _ = spinloop("store", "gc", "--max-size", "1TB", "--store", store)
    assert code == 0 and trees(store) == before and out.startswith("0 records")


def test_a_store_in_use_is_cleared_in_two_steps(spinloop, store) -> None:
    """Catches options or a policy that do not reach gc, and a store that is packed under those who read it."""
    before, after = trees(store), kept(store)
    assert spinloop("store", "policy", "older_than=30d", "while_used=true", "pack=true", "--store", store)[0] == 0
    with Store(store).using():
        code, _, err = spinloop("store", "gc", "--older-than", "30d", "--store", store)
        assert code == 1 and "a run is using the store" in err
        code, out, _ = spinloop("store", "gc", "--policy", "--store", store)
        assert code == 0 and trees(store) == before and "0 records and 0 trees removed" in out and "packed" not in out
        assert f"Runs use the store: {len(before) - len(after)} trees that nobody needs" in out
    with Store(store).using():
        code, out, _ = spinloop("store", "gc", "--older-than", "30d", "--while-used", "--store", store)
        assert code == 0 and trees(store) == after and "wait for a gc between runs" in out
        code, out, _ = spinloop("store", "gc", "--keep-runs", "0", "--while-used", "--store", store)
        assert code == 0 and trees(store) == after and "go with a later gc" in out


def test_policy_is_kept_in_the_store(spinloop, store) -> None:
    """Catches a policy that is read otherwise than it was written, and a wrong one that is written."""
    file, after = store / "spinloop-store-v1/store.yaml", kept(store)
    code, _, err = spinloop("store", "gc", "--policy", "--store", store)
    assert code == 2 and "there is no policy; write one" in err
    code, _, err = spinloop("store", "policy", "max_size=5", "--store", store)
    assert code == 2 and "5 is no size" in err and not file.exists()
    assert spinloop("store", "policy", "older_than=30d", "max_size=2TB", "pack=true", "--store", store)[0] == 0
    code, out, _ = spinloop("store", "policy", "--store", store)
    assert out.splitlines() == ["older_than: 30d", "max_size: 2TB", "pack: true"]
    code, out, _ = spinloop("store", "policy", "max_size=none", "--store", store)
    assert out.splitlines() == ["older_than: 30d", "pack: true"]
    code, _, err = spinloop("store", "policy", "max_sice=none", "--store", store)
    assert code == 2 and "max_sice is not set; set are older_than, pack" in err
    assert spinloop("store", "verify", "--store", store)[0] == 0
    code, out, _ = spinloop("store", "gc", "--policy", "--store", store)
    assert code == 0 and trees(store) == after and "0 models packed" in out
    file.write_text("older_then: 30d\n")
    code, _, err = spinloop("store", "gc", "--policy", "--store", store)
    assert code == 2 and "store.yaml: older_then: unknown setting" in err
    file.write_text("[")
    code, _, err = spinloop("store", "gc", "--policy", "--store", store)
    assert code == 2 and "store.yaml" in err and "Traceback" not in err


@pytest.mark.parametrize("command", [["pin", "nobody"], ["forget", "../trees"], ["unpin", "nobody"]])
def test_unknown_run_is_named(spinloop, store, command) -> None:
    code, _, err = spinloop("store", *command, "--store", store)
    assert code == 2 and f"{command[1]}: there is no such run; runs are later-1, " in err


def test_pack_command(spinloop, store) -> None:
    """Catches a command that says nothing of why it did nothing: the tiny run's weights are below a delta's least
    size."""
    code, out, _ = spinloop("store", "pack", "--store", store)
    assert code == 0 and "no model to pack" in out and "under 1 MiB" in out


def test_pack_command_says_what_it_gave(spinloop, tmp_path: Path) -> None:
    """Catches sums of other files than weights, and a dry run that packs."""
    steps = filled(Store(tmp_path / "s"))
    size = len(steps[0].files["model.safetensors"])
    code, would, _ = spinloop("store", "pack", "--dry-run", "--store", tmp_path / "s")
    assert code == 0 and would.startswith(f"would pack 3 models, whose weights take {3 * size / 1e6:.2f} MB")
    code, out, _ = spinloop("store", "pack", "--store", tmp_path / "s")
    assert code == 0 and out.startswith(f"packed 3 models: {3 * size / 1e6:.2f} MB of weights take ") and "kB" in out
    key = steps[2].key[:12]
    code, out, _ = spinloop("store", "fetch", key, "--store", tmp_path / "s")
    assert code == 0 and (Path(out.strip()) / "model.safetensors").read_bytes() == steps[2].files["model.safetensors"]
