"""The store's policy as a run of the deployment gc/gc: real server, real workers."""

from __future__ import annotations

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.keeping import policy_of, write_policy
from spin_core.store.store import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]


def test_scheduled_gc_clears_by_the_policy(workers, api, profile, store) -> None:
    """Catches a scheduled gc that clears without a policy or while a run is at work, or says nothing of what went."""
    config = {"runtime": {"pools": dict.fromkeys(("generate", "score", "finetune", "evaluate", "sft"), "here")}}
    for _ in range(2):
        ended = api.wait(api.start("spin/spin", file=str(profile(**config))), 600)
        assert ended.state.name == "Completed", ended.state.message
    opened = Store(store)
    ended = api.wait(api.start("gc/gc"))
    assert ended.state.name == "Failed" and "There is no policy; write one" in ended.state.message
    write_policy(opened, {"older_than": "0d"})
    assert policy_of(opened) == {"older_than": "0d"}
    before = len(list(opened.records()))
    with opened.using():
        ended = api.wait(api.start("gc/gc"))
        assert ended.state.name == "Failed" and "a run is using the store" in ended.state.message
    would = api.wait(api.start("gc/gc", dry_run=True))
    assert would.state.name == "Completed" and "would be removed" in would.state.message
    assert len(list(opened.records())) == before
    done = api.wait(api.start("gc/gc"))
    assert done.state.message == would.state.message.replace("would be removed", "removed")
    assert len(list(opened.records())) < before
    key = ArtifactFilter(key=ArtifactFilterKey(any_=["store-gc"]))
    pages = api.client.read_artifacts(artifact_filter=key, limit=5)
    assert any("given up (last started 0 days ago)" in page.data for page in pages)
