"""A hub that has too many requests, or cannot be asked for another reason: the cache is used where it has the commit,
else the hub is waited for, within bounds, and that is said."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.hub.hub_home import TOKEN
from tests.hub.hub_server import Hub

RESOLVE = """
import contextlib, io, json, sys
from pathlib import Path
from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve
ended = []
for path, revision in json.loads(sys.argv[1]):
    notes, said = [], io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            found = resolve(path, "model", revision, Path("/"), "", notes)
            result = {"digest": found.digest, "path": found.path, "commit": found.hub.rpartition("@")[2]}
        except BadInput as error:
            result = {"error": str(error), "kind": type(error).__name__}
    lines = [line for line in said.getvalue().splitlines() if line.startswith("note: ")]
    ended.append(result | {"note": "".join(notes), "said": lines})
print(json.dumps(ended))
"""
PUSH = """
import json, sys
from spin_core.errors import SpinloopError
from spin_core.report.hub_push import Target, push
try:
    made = push(Target("acme/new", "model"), {"a.txt": b"x", "w.safetensors": b"weights"}, "title", "text", print)
    print(json.dumps(made.changed))
except SpinloopError as error:
    print(json.dumps(str(error)))
"""
MODEL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "model.safetensors": b"weights"}


@pytest.fixture
def resolve(python, hub: Hub):
    """What comes of each (model, revision), one after the other in one process."""
    hub.add("models/acme/good", MODEL)

    def call(*each: tuple[str, str]) -> list[dict]:
        return python(RESOLVE, json.dumps(each))

    return call


def once_each(*places: str, status: int = 429, **headers: str):
    """Refuses the first request whose address has one of `places`, for each of them."""
    left = list(places)

    def refuse(request: str):
        hit = next((place for place in left if place in request), None)
        if hit is None:
            return None
        left.remove(hit)
        return status, {name.replace("_", "-"): value for name, value in headers.items()}

    refuse.left = left
    return refuse


def test_whole_cached_commit_is_used_where_the_hub_cannot_be_asked(resolve, hub):
    """Catches a run that a rate limit ends although it needs nothing of the hub, one that waits for it, and one that
    goes on without a word."""
    [online] = resolve(("acme/good", "main"))
    answers = [429, 408, 407, 500, 503]
    left = [status for status in answers for _ in range(2)]
    hub.refuse = lambda request: (left.pop(0), {"Retry-After": "600"})
    began = time.monotonic()
    ended = resolve(*[("acme/good", revision) for _ in answers for revision in (online["commit"], "main")])
    assert time.monotonic() - began < 60 and not left, "it waited, or asked twice"
    for status, pinned, branch in zip(answers, ended[::2], ended[1::2], strict=True):
        for one in (pinned, branch):
            assert one["digest"] == online["digest"] and not one["said"], one
            assert f"the hub cannot be asked now ({status} " in one["note"] and online["commit"][:8] in one["note"]
        assert "as it was when last asked for" in branch["note"] and "last asked" not in pinned["note"]


def test_answer_of_the_hub_is_not_replaced_by_the_cache(resolve, hub):
    """Catches a cache that is taken for an answer which the hub has given: access withdrawn, repository gone."""
    resolve(("acme/good", "main"))
    for status in (401, 403, 404):
        hub.refuse = lambda request, status=status: (status, {})
        [ended] = resolve(("acme/good", "main"))
        assert "error" in ended, status


def test_rate_limit_is_waited_for_where_nothing_is_cached(resolve, hub):
    """Catches a refusal at the first 429 of a question or a download, a pause that is shorter than the hub wants, and
    a silent one."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    for name in ("date", "limit", "gateway"):
        hub.add(f"models/acme/{name}", MODEL)
    refusals = [
        once_each("/api/models/acme/good", "/tree/", "config.json", "model.safetensors", Retry_After="1"),
        once_each("/api/models/acme/date", Retry_After=soon),
        once_each("/api/models/acme/limit", ratelimit='"api";r=0;t=1'),
        once_each("/api/models/acme/gateway", status=503, Retry_After="1"),
    ]
    hub.refuse = lambda request: next((said for one in refusals if (said := one(request))), None)
    began = time.monotonic()
    ended = resolve(*[(f"acme/{name}", "") for name in ("good", "date", "limit", "gateway")])
    assert time.monotonic() - began > 5 and not [one for refuse in refusals for one in refuse.left]
    assert len({one["digest"] for one in ended}) == 1, ended
    assert all("too many requests; waiting 1 s" in line for one in ended for line in one["said"])
    assert [bool(one["said"]) for one in ended] == [True] * 4


def test_rate_limit_is_waited_for_where_a_part_is_cached(resolve, hub):
    """Catches a cache with a hole that ends a run, where the hub would have the rest in a second."""
    [online] = resolve(("acme/good", "main"))
    hole = Path(online["path"]) / "tokenizer.json"
    hole.resolve().unlink()
    hole.unlink()
    hub.refuse = once_each("/api/models/acme/good", "tokenizer.json", Retry_After="1")
    [ended] = resolve(("acme/good", online["commit"]))
    assert ended["digest"] == online["digest"] and len(ended["said"]) == 1


def test_pause_that_is_too_long_is_one_sentence(resolve, hub):
    """Catches a run that sleeps for a day because a server says so, in a question and in a download."""
    for name in ("tree", "file"):
        hub.add(f"models/acme/{name}", MODEL)
    places = ("/models/acme/good", "/models/acme/tree/tree/", "/acme/file/resolve/")
    hub.refuse = lambda request: (429, {"Retry-After": "86400"}) if any(p in request for p in places) else None
    for ended in resolve(("acme/good", ""), ("acme/tree", ""), ("acme/file", "")):
        assert ended.get("kind") == "Unreachable", ended
        assert "read (TooManyRequests: it wants a pause of 86400 s); run again later" in ended["error"]


def test_push_waits_for_a_rate_limit(python, hub):
    """Catches a push that a rate limit ends half way, and a body that is sent again from where its first sending
    ended."""
    places = ("/api/repos/create", "/revision/", "/tree/", "/preupload/", "/objects/batch", "PUT /lfs/", "/commit/")
    hub.refuse = once_each(*places, Retry_After="1")
    assert python(PUSH, token=TOKEN) is True and not hub.refuse.left
    assert hub.files("models/acme/new") == {**hub.files("models/acme/new"), "a.txt": b"x", "w.safetensors": b"weights"}
    assert [line.split("/")[1] for line in hub.requests].count("lfs") == 2, "sent again as it was left, and once more"
    hub.refuse = lambda request: (429, {"Retry-After": "86400"})
    text = python(PUSH, token=TOKEN)
    assert "acme/new: the hub cannot be reached (TooManyRequests: it wants a pause of 86400 s); the run stays" in text
