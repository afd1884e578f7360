"""A step on a work pool whose server does not answer: a real HTTP server that says so."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from spin_core.config.runtime import Runtime
from spin_core.errors import StageFailed
from spin_core.runtime.step import KeyedStep, Step
from spin_core.sources.resolve import Ref
from spin_core.stages import sft
from spin_core.store.store import Store
from tasks.runner import pool_run
from tasks.runner.pool_run import PoolRun
from tasks.runner.pools import Batch, Pools

STEP = Step(sft, "θ_0", sft.Config(sft=sft.Sft(), seed=1))
KEY = "ab" * 32


@pytest.fixture
def busy() -> Iterator[type]:
    """A server that answers everything with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 503
        requests: ClassVar[list[str]] = []

        def answer(self) -> None:
            self.requests.append(self.path)
            self.send_response(type(self).status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


def pool_of(client: SyncPrefectClient, tmp_path, redo: str = "") -> PoolRun:
    """A step that nobody computes yet; or one to be computed again."""
    inputs = {"model": "a" * 64, "tokens": "b" * 64}
    return PoolRun(client, Store(tmp_path), Runtime(), "spin-gpu", {KEY: KeyedStep(STEP, inputs)}, redo)


def test_server_that_is_busy_is_polled_again_for_a_while(busy, tmp_path, monkeypatch) -> None:
    """Catches an iteration that fails, with its stages at work, because the server was busy for a minute (SQLite under
    load answers 503), and one that polls a dead server for ever."""
    with get_client(sync_client=True) as client:
        shared = pool_of(client, tmp_path)
        for _ in range(3):
            assert shared.look(print, threading.Event()) is None
        assert len(busy.requests) == 1, f"a busy server is polled again at once: {busy.requests}"
        monkeypatch.setattr(pool_run, "POLL_SECONDS", (0.0, 0.0))
        assert shared.look(print, threading.Event()) is None and len(busy.requests) == 2
        monkeypatch.setattr(pool_run, "SILENT_SECONDS", 0.0)
        with pytest.raises(StageFailed, match="503"):
            shared.look(print, threading.Event())
        with pytest.raises(StageFailed, match="503"):  # for every step of the batch, and without another question
            shared.look(print, threading.Event())
        assert len(busy.requests) == 3


def test_server_that_refuses_is_not_polled_again(busy, tmp_path) -> None:
    """Catches ten minutes of waiting for a wrong password to become right."""
    busy.status = 401
    with get_client(sync_client=True) as client, pytest.raises(StageFailed, match="401"):
        pool_of(client, tmp_path).look(print, threading.Event())


def test_each_run_that_asks_has_a_step_computed_again_once(tmp_path, monkeypatch) -> None:
    """Catches a second `--redo` that reads what came of the first, and a run that is resumed and has it done twice."""
    names = []
    with get_client(sync_client=True) as client:
        for run in ("one", "one", "other"):
            monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run)
            names.append([pool_of(client, tmp_path, how)._name for how in ("", "compare", "replace")])
    first, resumed, other = names
    assert first == resumed and first[0] == other[0], "runs that need a step share its flow run"
    assert len({*first, *other}) == 5


def test_step_that_was_not_there_is_not_computed_again(tmp_path) -> None:
    """Catches a shard that this run computes for the first time and that its own redo then replaces, as soon as it is
    in the store: the run would go on from another output than later ones."""
    store, shards = Store(tmp_path), [Ref("b" * 64), Ref("c" * 64)]
    every = [KeyedStep(STEP, {"model": Ref("a" * 64), "prompts": prompts}) for prompts in shards]
    batch = Batch([(STEP, prompts) for prompts in shards])

    def publish(keyed: KeyedStep) -> None:
        tree = store.new_tree()
        (tree / "x").write_text(keyed.key)
        store.publish(keyed.payload, tree, {}, keyed.key)

    with Pools(store, Runtime(), "spin-gpu") as pools:
        publish(every[0])
        assert pools.again(every[1], batch, "replace", print) is None
        publish(every[1])
        pools.ending.set()
        assert pools.again(every[1], batch, "replace", print) is None
        with pytest.raises(StageFailed, match="is being ended"):  # this one would be: its flow run is looked for
            pools.again(every[0], batch, "replace", print)
