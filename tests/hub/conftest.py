"""A hub on loopback, the command line in processes that know no other, and one run whose model and data came from
it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.flows import migrated
from tests.flows.fixtures import TINY, once
from tests.hub.hub_home import TOKEN, Done, Ran, command, environment, new_token
from tests.hub.hub_server import Hub, start


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty hub that takes TOKEN for acme."""
    made, server = start()
    made.tokens[TOKEN] = {"acme"}
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def spinloop(tmp_path: Path, hub: Hub) -> Callable[..., Done]:
    """The command line in a process of its own, with `token` in its environment and `hub` as its hub."""

    def call(*args: object, token: str = TOKEN, url: str = "", **more: str) -> Done:
        return command([str(arg) for arg in args], environment(tmp_path, url or hub.url, token, **more), tmp_path)

    return call


@pytest.fixture
def python(tmp_path: Path, hub: Hub) -> Callable[..., Any]:
    """What a piece of code prints as JSON, in a process whose hub is `hub`."""

    def call(code: str, *args: object, token: str = "", url: str = "", home: Path = tmp_path, **more: str) -> Any:
        ran = subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            capture_output=True, text=True, env=environment(home, url or hub.url, token, **more), cwd=tmp_path,
            timeout=120,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    return call


@pytest.fixture(scope="session")
def start_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's untrained model as a folder."""
    from spin_core.job import Job
    from spin_core.stages import demo_model

    out = tmp_path_factory.mktemp("start")
    demo_model.run({}, demo_model.Config(seed=0), Job(out=out, scratch=out))
    return out


@pytest.fixture(scope="session")
def start_rows() -> dict[str, bytes]:
    """The demo's rows as the files of a dataset repository."""
    from spin_core.stages.demo_rows import make_rows

    lines = [json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in make_rows(0, 90)]
    names = ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl")
    return {names[0]: "".join(lines[:70]).encode(), names[1]: "".join(lines[70:]).encode()}


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, start_model: Path, start_rows: dict[str, bytes]) -> Ran:
    """The tiny profile, run with a token in the environment, from a private model and a private dataset. The hub has
    gone since; what it had and was requested is there."""

    def make(place: Path) -> None:
        hub, server = start()
        home, token = place / "home", new_token()
        migrated.home(home / "prefect")
        hub.tokens[token] = {"acme"}
        files = {path.name: path.read_bytes() for path in start_model.iterdir()}
        hub.add("models/acme/start", files, private=True)
        hub.add("datasets/acme/rows", start_rows, private=True)
        dataset = {**TINY["dataset"], "path": "acme/rows", "split": "train", "test_split": "test", "revision": "main"}
        profile = home / "tiny.yaml"
        profile.write_text(yaml.safe_dump({**TINY, "model": {"path": "acme/start"}, "dataset": dataset}))
        done = command(
            ["run", str(profile), "--store", str(home / "store"), "--json"], environment(home, hub.url, token), home
        )
        server.shutdown()
        server.server_close()
        assert done.code == 0, done.err
        ran = Ran(home / "store", json.loads(done.out)["run"], home, done, hub, profile, token)
        (place / "ran.pickle").write_bytes(pickle.dumps(ran))

    made: Ran = pickle.loads((once(tmp_path_factory, "hub-run", make) / "ran.pickle").read_bytes())
    return made
