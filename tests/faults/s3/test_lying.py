"""R30: answers that are not the service's, or not all of it: no command takes them for S3's, and gc removes nothing
that is needed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from spin_core.errors import BadInput, StoreError
from spin_core.store import leases, roots
from spin_core.store.s3 import answers, objects, verify
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3.remote import RemoteStore
from tests.faults.fault import Fault
from tests.faults.s3 import lies
from tests.faults.s3.held import Answer, Asked, Held, honest
from tests.faults.s3.server import BUCKET
from tests.faults.store.battery import each, two_runs

LYING = Fault("R30", "gc of a store on S3 is answered what is none, cut, old, foreign, partial", pr=40, night=400)
READ = Fault("R30", "a request to S3 is answered what is none, cut or foreign", pr=160, night=1600)
DEAD = Fault("R30", "gc of a store on S3 ends before a random request of it", pr=10, night=100)
PREFIX = "lying/spinloop-store-v1/"
WAYS: tuple[dict, ...] = ({}, {"keep_runs": 1}, {"keep": ["run-1"]}, {"keep_runs": 0, "quarantine": True})
Gc = Callable[..., object]


@pytest.fixture
def store(held: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RemoteStore:
    """Two runs, of which each trained a model from one dataset; a file and a manifest of nobody; one set aside. No
    process uses it."""
    monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path))
    monkeypatch.setattr(leases.Lease, "_begin", lambda self: None)
    return filled(RemoteStore(f"s3://{BUCKET}/lying"))


def filled(store: RemoteStore) -> RemoteStore:
    two_runs(store)
    store.objects.put("files/" + "1" * 64, b"of nobody")
    store.objects.put("trees/" + "2" * 64 + ".json", b"[]")
    store.objects.put("quarantine/files-x-1", b"damaged")
    return store


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.startswith("s3://") and text.endswith(".") and "\n" not in text and "Traceback" not in text, text
    return text


REQUESTS: dict[str, tuple[Callable[[RemoteStore], object], ...]] = {
    "list": (
        lambda store: list(store.objects.listed("records/")),
        lambda store: list(store.records()),
        lambda store: verify.verify(store),
        lambda store: verify.usage(store),
        lambda store: RemoteStore(store.url),
    ),
    "GET": (lambda store: store.objects.get("id"), lambda store: store.objects.read("id", 0, 8)),
    "HEAD": (lambda store: store.objects.head("id"), lambda store: store.objects.head("files/" + "1" * 64)),
    "PUT": (
        lambda store: store.objects.put("x", b"x"),
        lambda store: store.objects.put_once("x", b"x"),
        lambda store: store.move_aside("id"),
    ),
    "uploads": (lambda store: store.objects.uploads("files/"),),
}


def check_requests(store: RemoteStore, held: Held, fault: Fault | None = None) -> None:
    """Whatever is asked of the service, what it never answers is no answer."""
    kinds = [("list", name, lies.PAGES[name]) for name in lies.PAGES if name not in lies.REAL]
    kinds += [(kind, name, lies.NONE[name]) for kind in ("GET", "HEAD", "PUT", "uploads") for name in lies.NONE]
    there = dict(held.objects)

    def trial(number: int) -> None:
        kind, name, lie = kinds[number % len(kinds)]
        rng = random.Random(f"R30 {number}")
        request = REQUESTS[kind][number // len(kinds) % len(REQUESTS[kind])]

        def told(asked: Asked, answer: Answer) -> Answer:
            lied_to = (asked.what or asked.method) == kind and PREFIX in asked.key + asked.prefix + "/"
            return lie(held, asked, answer, rng) if lied_to else answer

        held.objects, held.lie = dict(there), told
        try:
            request(store)
        except StoreError as error:
            one_sentence(error)
        else:
            raise AssertionError(f"{name} was taken for an answer to {kind}")
        finally:
            held.lie = honest
        assert held.objects.keys() >= there.keys(), f"{name} to {kind}: lost {there.keys() - held.objects.keys()}"

    each(fault, range(fault.count if fault else len(kinds)), trial)


def test_no_request_takes_a_strangers_answer(store, held):
    """Catches a sign-in page, an empty body, a cut page, another bucket's or an endless one, that is read as a listing
    of nothing, as a file that is not there, or as a write that arrived; and one that ends in a traceback."""
    check_requests(store, held, READ)


def test_battery_request_that_believes_any_page_is_caught(store, held, monkeypatch):
    """Catches lies that fail for another reason than that they were looked at."""
    whole = objects.Objects._listing
    monkeypatch.setattr(answers, "check", lambda *_: None)
    monkeypatch.setattr(objects.Objects, "_listing", lambda self, **how: {"IsTruncated": False, **whole(self, **how)})
    with pytest.raises(AssertionError, match="an empty body was taken for an answer to list"):
        check_requests(store, held)


def check_gc(store: RemoteStore, held: Held, collect: Gc, fault: Fault | None = None, rounds: int = 1) -> None:
    """Every kind of lie, in listings of any place and in bodies, always or from some time on; with each of WAYS: what
    an honest service has afterwards is there."""
    there = dict(held.objects)
    rightly = [_left(store, held, how) for how in WAYS]
    kinds = [(True, *kind) for kind in lies.PAGES.items()] + [(False, *kind) for kind in lies.BODIES.items()]

    def trial(number: int) -> None:
        rng = random.Random(f"R30 {number}")
        listing, name, lie = kinds[number % len(kinds)]
        way = (number + number // len(kinds)) % len(WAYS)
        place = rng.choice(("", "", *remote_gc.FOLDERS, "leases/") if listing else ("records/", "runs/"))
        first, seen = rng.choice((0, 0, 0, 1, 2)), 0

        def told(asked: Asked, answer: Answer) -> Answer:
            nonlocal seen
            meant = asked.what == "list" if listing else asked.method == "GET" and bool(asked.key)
            if not meant or not (asked.prefix if listing else asked.key).startswith(PREFIX + place):
                return answer
            seen += 1
            return lie(held, asked, answer, rng) if seen > first else answer

        held.objects, held.lie, said = dict(there), told, ""
        try:
            collect(store, **WAYS[way])
        except StoreError as error:
            said = one_sentence(error)
        except BadInput as error:
            said = str(error)
        finally:
            held.lie = honest
        lost = [key for key, data in rightly[way].items() if not _is_kept(key, data, held.objects, there)]
        assert not lost, f"{name} of {place or 'all'} from number {first} on ({said or 'gc ended well'}): lost {lost}"
        if said:
            aside = {key for key in held.objects if "/quarantine/runs-" in key}
            changed = {key for key in held.objects.keys() ^ there.keys() if not key.startswith(PREFIX + "gc")}
            assert not aside and not changed, f"{said}: changed {changed}"

    try:
        each(fault, range(fault.count if fault else rounds * len(kinds)), trial)
    finally:
        held.objects = there


def _left(store: RemoteStore, held: Held, how: dict) -> dict[str, bytes]:
    """What an honest service has after gc, without gc's own list."""
    before = dict(held.objects)
    remote_gc.gc(store, **how)
    left, held.objects = held.objects, before
    return {key: data for key, data in left.items() if key != PREFIX + roots.LIST}


def _is_kept(key: str, data: bytes, now: dict[str, bytes], there: dict[str, bytes]) -> bool:
    """Whether an object is there as it should be: a pointer with the links that it should have, or set aside whole."""
    if now.get(key) == data:
        return True
    aside = [one for name, one in now.items() if "/quarantine/runs-" in name]
    return key.endswith("/run.json") and (there[key] in aside or _links(now.get(key)) >= _links(data))


def _links(pointer: bytes | None) -> set[tuple[str, str]]:
    return set(json.loads(pointer or b'{"links": {}}')["links"].items())


def test_gc_removes_nothing_that_is_needed_whatever_is_answered(store, held):
    """Catches a gc that takes a sign-in page for an empty store, half of a listing for all of it, another store's for
    its own, an old one for that of now, or a record that it cannot read for one that needs nothing."""
    check_gc(store, held, remote_gc.gc, LYING)


@pytest.mark.parametrize(("whole", "why"), [(True, "is not in the listing, so it is old"), (False, "in a row differ")])
def test_gc_of_a_listing_that_may_be_real_and_is_old_is_refused(store, held, whole, why):
    """Catches a gc for which the run that ended last is none yet: as every listing has it, or only one of two."""
    there = dict(held.objects)

    def old(asked: Asked, answer: Answer) -> Answer:
        if asked.what != "list" or asked.prefix not in ((PREFIX, f"{PREFIX}runs/") if whole else (PREFIX,)):
            return answer
        known = {key: data for key, data in held.objects.items() if "run-1/" not in key}
        if whole:
            known.pop(PREFIX + leases.MARK, None)
        return Answer(200, Held(known).listing(asked.prefix))

    held.lie = old
    with pytest.raises(StoreError, match=why):
        remote_gc.gc(store, keep_runs=1)
    held.lie = honest
    assert held.objects == there


def gc_that_believes(monkeypatch: pytest.MonkeyPatch) -> Gc:
    """What gc was: whatever page comes is the listing, asked for once, and what it does not show is not there."""
    whole = objects.Objects._listing
    monkeypatch.setattr(answers, "check", lambda *_: None)
    monkeypatch.setattr(objects.Objects, "_listing", lambda self, **how: {"IsTruncated": False, **whole(self, **how)})
    monkeypatch.setattr(roots, "demand_all", lambda *_: None)
    monkeypatch.setattr(
        remote_gc,
        "_listed",
        lambda store, *_: ({s.key: s for at in remote_gc.FOLDERS for s in store.objects.listed(at)}, set()),
    )
    return remote_gc.gc


def gc_that_lists_once(monkeypatch: pytest.MonkeyPatch) -> Gc:
    """Takes the first real listing, of whatever time and however much, for what is there."""
    monkeypatch.setattr(roots, "demand_all", lambda *_: None)
    monkeypatch.setattr(remote_gc, "_listed", lambda store, *_: ({s.key: s for s in store.objects.listed("")}, set()))
    return remote_gc.gc


@pytest.mark.parametrize("collect", [gc_that_believes, gc_that_lists_once])
def test_battery_gc_that_believes_a_listing_is_caught(store, held, monkeypatch, collect):
    """Catches lies in which nothing is at stake."""
    with pytest.raises(AssertionError, match=r"gc ended well\): lost \['lying/"):
        check_gc(store, held, collect(monkeypatch), rounds=3)


def test_gc_that_ends_before_any_request_leaves_what_the_next_one_finishes(store, held):
    """Catches a gc after whose death records promise files that are gone, or which the next one refuses to finish; and
    removal of what its list does not name."""
    there, asked = dict(held.objects), []
    held.refuses = lambda one: bool(asked.append(one))  # none
    remote_gc.gc(store, keep_runs=1)
    total, ended = len(asked), set(held.objects)

    def trial(rng: random.Random) -> None:
        held.objects, last = dict(there), rng.randrange(total)
        asked.clear()
        held.refuses = lambda one: bool(asked.append(one)) or len(asked) > last
        with suppress(StoreError):  # of a list of uploads that it is refused it makes a note
            remote_gc.gc(store, keep_runs=1)
        held.refuses = lambda one: False
        removed = {key.removeprefix(PREFIX) for key in there.keys() - held.objects.keys()}
        listed = set(json.loads(held.objects.get(PREFIX + roots.LIST, b'{"removes": []}'))["removes"])
        assert removed <= listed, f"not in the list: {removed - listed}"
        assert verify.verify(store, deep=False) == []
        held.objects.pop(PREFIX + leases.MARK, None)  # after two hours
        remote_gc.gc(store, keep_runs=1)
        assert set(held.objects) == ended

    DEAD.run(trial)


# What services send of an empty prefix, each as little as it does.
SERVERS = {
    "AWS": "<Name>{b}</Name><Prefix>{p}</Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url"
    "</EncodingType><IsTruncated>false</IsTruncated>",
    "MinIO": "<Name>{b}</Name><Prefix>{p}</Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><Delimiter></Delimiter>"
    "<IsTruncated>false</IsTruncated>",
    "Ceph": "<Name>{b}</Name><Prefix>{p}</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><KeyCount>0"
    "</KeyCount>",
    "Swift, older Cloudserver": "<Name>{b}</Name><Prefix>{p}</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false"
    "</IsTruncated>",
    "the least": "<IsTruncated>false</IsTruncated><Prefix>{p}</Prefix><Name>{b}</Name>",
}


@pytest.mark.parametrize("name", SERVERS)
def test_empty_listing_of_a_service_is_taken(store, held, name):
    """Catches a check of listings that keeps people out of the service that they have."""
    text = SERVERS[name].format(b=BUCKET, p=f"{PREFIX}x/")
    held.lie = lambda asked, answer: Answer(200, f"<ListBucketResult>{text}</ListBucketResult>".encode())
    assert list(store.objects.listed("x/")) == []


def test_listing_of_many_pages_is_whole_or_an_error(store, held):
    """Catches a page that is passed over, and one that comes twice."""
    held.page = 3
    there = sorted(key.removeprefix(PREFIX) for key in held.objects)
    assert [stat.key for stat in store.objects.listed("")] == there
    remote_gc.gc(store)
    first = held.listing(PREFIX, {}).replace(b">3</NextContinuationToken>", b">4</NextContinuationToken>")
    held.lie = lambda asked, answer: Answer(200, first) if b"6</Next" in answer.body else answer
    with pytest.raises(StoreError, match="twice"):
        list(store.objects.listed(""))
    held.page = 1000
