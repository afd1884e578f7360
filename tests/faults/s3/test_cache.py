"""The local cache: damaged, deleted, full; what a living process uses stays."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store import cache, fs
from tests.faults.fault import Fault
from tests.faults.s3.machine import answer_of, contents, started
from tests.faults.store.battery import PAYLOAD, assert_right, compute, overwrite
from tests.faults.store.kinds import Step

SPOILT = Fault("R6", "the cache folder of a store on S3 is damaged", pr=4, night=80, release=400)


def step(n: int, size: int = 1000) -> Step:
    return Step({**PAYLOAD, "config": {"n": n}}, contents({"w": size, "sub/config.json": 9}, n))


def trees(store) -> set[str]:
    """What the cache holds."""
    return {path.name for path in (store.root / "trees").iterdir()}


def test_damaged_cache_is_fetched_again(at, proxy):
    """Catches a cache that is believed: a flipped bit, a cut or missing file or record, a folder that is gone."""

    def spoil(store, record, rng: random.Random, ways: tuple[str, ...]) -> None:
        file = rng.choice([p for p in record.path.rglob("*") if p.is_file()])
        record_file = store.root / "records" / record.stage / f"{record.key}.json"
        how = rng.choice(ways)
        if how == "flip":
            data = bytearray(file.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            overwrite(file, bytes(data))
        elif how == "cut":
            overwrite(file, file.read_bytes()[:-1])
        elif how == "gone":
            file.parent.chmod(0o755)
            file.unlink()
        elif how == "tree":
            shutil.rmtree(record.path)
        elif how == "record":
            overwrite(record_file, record_file.read_bytes()[:-9])
        elif how == "record gone":
            record_file.unlink()
        else:
            shutil.rmtree(store.root.parent)

    def trial(rng: random.Random) -> None:
        name = f"m{rng.random()}"
        one = step(rng.randrange(1 << 30))
        record = compute(at(name), one)
        spoil(at(name), record, rng, ("flip", "cut", "gone", "tree", "record", "record gone", "all"))
        ran: list[str] = []
        assert_right(compute(at(name), one, ran), one.files)
        assert ran == [], "computed again, though the service has it"
        spoil(at(name), record, rng, ("flip", "cut", "gone"))
        tree = at(name).tree(record.digest)  # as a stage's input, which nobody looked up
        assert {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()} == one.files

    SPOILT.run(trial)


def test_least_recently_used_goes_first_and_the_limit_holds(at, monkeypatch):
    """Catches a cache that grows for ever, and one that evicts what was read a moment ago."""
    monkeypatch.setenv("SPINLOOP_CACHE_GB", "0.00035")  # three trees of 100 kB, and no fourth
    writer = at("elsewhere")
    records = [compute(writer, step(n, 100_000)) for n in range(5)]
    for n in (0, 1, 2, 0, 3, 4):
        store = at("a")  # a new process would hold nothing of the last one's
        store.cache._in_use = lambda: set()  # as after its end
        assert_right(store.lookup("finetune", records[n].key), step(n, 100_000).files)
    assert trees(store) == {records[n].digest for n in (0, 3, 4)}
    assert at("a").lookup("finetune", records[1].key) is not None, "what was evicted is fetched again"


def test_what_a_living_process_uses_stays(url, at, tmp_path, monkeypatch):
    """Catches a cache that takes away the model which another process of this machine is training from, and one that
    keeps what a dead process used."""
    monkeypatch.setenv("SPINLOOP_CACHE_GB", "0.00015")
    sizes = {"w": 100_000, "sub/config.json": 9}
    works = [{"payload": step(n).payload, "sizes": sizes, "salt": n} for n in (0, 1)]
    living = started(url, tmp_path / "a", "hold", works[0])
    assert living.stdout and living.stdout.readline() == "held\n"
    [used] = (tmp_path / "a").glob("*/*/trees/*")
    other = answer_of(started(url, tmp_path / "a", "compute", works[1]))
    assert any("because this run uses all of it" in note for note in other["notes"])
    store = at("a")
    assert trees(store) == {used.name, other["digest"]}
    living.kill()
    living.communicate()
    assert trees(store) == {used.name, other["digest"]}
    third = compute(store, step(2, 100_000))
    assert trees(store) == {third.digest}, "what only dead processes used stays in the way"


def test_cache_is_by_store_and_endpoint(monkeypatch, tmp_path):
    """Catches two stores that share a cache folder, and a folder that $SPINLOOP_CACHE does not name."""
    monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path))
    one, two = "http://127.0.0.1:1", "http://127.0.0.1:2"
    places = [cache.place("s3://bucket/a", one), cache.place("s3://bucket/b", one), cache.place("s3://bucket/a", two)]
    assert len(set(places)) == 3 and all(place.parent == tmp_path for place in places)
    monkeypatch.delenv("SPINLOOP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.place("s3://bucket/a", one).parent == tmp_path / "x" / "spinloop"
    assert cache.limit() == 100_000_000_000


def test_endpoint_of_a_profile_is_another_cache(at, proxy, monkeypatch, tmp_path):
    """Catches two services, each named in ~/.aws/config, whose stores of one name share a folder."""
    by_environment = at("a")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {proxy.url}/\n")
    assert at("a").root != by_environment.root
    assert at("a").objects.endpoint() == f"{proxy.url}/"


def test_full_disk_is_reported(at, monkeypatch, tmp_path):
    """Catches a fetch that fails without a sentence, or leaves half a tree, where the disk is full."""
    record = compute(at("a"), step(1))
    store = at("b")

    def full(op: str, path: Path) -> None:
        if op == "write before" and path.name == "w":
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(fs, "hook", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.lookup("finetune", record.key)
    monkeypatch.setattr(fs, "hook", None)
    assert trees(store) == set() and not list((store.root / "tmp").iterdir())
    assert_right(store.lookup("finetune", record.key), step(1).files)


def test_late_fetch_takes_only_what_is_read(at, proxy):
    """Catches a plan that downloads every model to say that it is cached, and one that calls a missing file cached."""
    record = compute(at("a"), step(1, 50_000))
    proxy.forget()
    reader = at("b", create=False, read_only=True)
    assert reader.lookup("finetune", record.key).digest == record.digest
    assert not [one for one in proxy.requests if one.method == "GET" and "/files/" in one.path]
    assert not [one for one in proxy.requests if one.method in ("PUT", "POST", "DELETE")]
    late = at("c", late=True)
    assert late.lookup("finetune", record.key) is not None and trees(late) == set()
    assert (late.tree(record.digest) / "w").read_bytes() == step(1, 50_000).files["w"]
    [key] = [stat.key for stat in late.objects.listed("files/") if stat.size == 50_000]
    late.objects.put(key, b"x" * 50_000)
    other = at("d", late=True)
    assert other.lookup("finetune", record.key) is not None, "it has the right size"
    with pytest.raises(StoreError, match="not whole there; run again"):
        other.input_tree(record.digest)
    assert at("e", late=True).lookup("finetune", record.key) is None, "the next run does not compute it again"


def test_list_of_uses_that_cannot_be_read_evicts_nothing(tmp_path, monkeypatch):
    """Catches eviction of what another process uses, because its list could not be read at that moment."""
    monkeypatch.setenv("SPINLOOP_CACHE_GB", "0")
    root, digest = tmp_path / "spinloop-store-v1", "a" * 64
    (root / "trees" / digest).mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "trees" / digest / "w").write_bytes(b"weights")
    theirs, ours = cache.Cache(tmp_path), cache.Cache(tmp_path)
    theirs.use(digest)
    real = Path.read_text

    def read_text(self, *how, **more):
        if self == theirs._file:
            raise OSError(5, "Input/output error")
        return real(self, *how, **more)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(Path, "read_text", read_text)
        ours.make_room(root, 1, lambda text: None)
    assert (root / "trees" / digest / "w").read_bytes() == b"weights"
    assert ours.make_room(root, 1, lambda text: None) == 0
