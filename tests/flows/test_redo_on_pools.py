"""A step computed again by a worker: what it is sent, what it says, and what the run that asks makes of that; and the
parameters of the deployment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows import stages as pool_flows
from flows.execute import redone
from flows.server import deployed
from spin_core.config.profile import parse as parsed
from spin_core.config.runtime import Pools
from spin_core.errors import BadInput
from spin_core.runtime.redo import Redone
from spin_core.store.store import Record, Store
from tasks.runner.redo import Redo, answer, message, parse
from tests.flows.fixtures import TINY
from tests.flows.test_form import schema_of
from tests.flows.test_redo import planted

RECORD = Record("gate", "0" * 64, {}, "0" * 64, [], {}, Path())  # type: ignore[typeddict-item]


def test_worker_computes_again_what_it_is_asked_for(finished, server, tmp_path, monkeypatch) -> None:
    """Catches a worker that looks up what it is to compute again, that says "the same" of another output, that replaces
    where it is to compare, or the first output by the second."""
    place = tmp_path / "store"
    shutil.copytree(finished[0], place, symlinks=True)
    store = Store(place)
    shards = [step for step in finished[1] if step["stage"] == "generate" and step["place"]["iteration"] == 1][:2]
    tokens = next(step["digest"] for step in finished[1] if step["stage"] == "tokenize")
    new = planted(store, shards[0])
    monkeypatch.setenv("SPINLOOP_STORE", str(place))
    listed = json.loads((store.tree(tokens) / "shards.json").read_text())
    files = {line["sha256"]: line["file"] for line in listed}

    def work(step: dict, **fields: object) -> dict:
        reads = store.record("generate", step["key"]).payload["inputs"]
        prompts = {"digest": reads["prompts"], "tree": tokens, "file": files[reads["prompts"]]}
        inputs = {"model": reads["model"], "prompts": prompts}
        return {"label": step["label"], "place": step["place"], "inputs": inputs, "key": step["key"], **fields}

    config = pool_flows.generate_stage.Config.model_validate(
        store.record("generate", shards[1]["key"]).payload["config"]
    )

    def asked(how: str) -> dict:
        again = [work(step, redo=how) for step in shards]
        return json.loads(pool_flows.generate(config, again, TINY["runtime"], return_state=True).message)

    titles = [f"generate[{step['label']}]" for step in shards]
    compared = asked("compare")
    of_day = store.lookup("generate", shards[0]["key"])
    assert compared["computed_again"] == 2 and compared["first_time"] == []
    assert compared["otherwise"] == {titles[0]: {"key": of_day.key, "files": ["answers.jsonl"], "replaced": 0}}
    assert store.takes.read() == {}
    taken = asked("replace")
    assert store.takes.read() == {shards[0]["key"]: 1} and taken["otherwise"][titles[0]]["replaced"] == 1
    assert store.lookup("generate", taken["otherwise"][titles[0]]["key"]).digest == new != of_day.digest
    assert store.lookup("generate", shards[0]["key"]).digest == of_day.digest, "the first output is gone"
    mixed = [work(shards[0], redo="compare"), work(shards[1])]
    state = pool_flows.generate(config, mixed, TINY["runtime"], return_state=True)
    assert "`redo` is not the same for all steps" in state.message


def test_what_a_worker_says_is_what_the_run_reads() -> None:
    """Catches a difference that is lost on the way, a step that was not there taken for the same, and an older worker
    that looked the steps up, whose answer is taken for "the same"."""
    made = {"a[0]": Redone(RECORD, []), "a[1]": Redone(RECORD, ["x", "y"]), "a[2]": Redone(RECORD, [], 2)}
    said = message(Redo([("a", None)], True, set(), made, ["a[3]"]))
    titles = ["a[0]", "a[1]", "a[2]", "a[3]"]
    assert answer(said, titles) == (["a[3]"], {"a[1]": ("0" * 64, ["x", "y"], 0), "a[2]": ("0" * 64, [], 2)})
    fewer = said.replace('"computed_again": 3', '"computed_again": 2')
    for text in ("0 steps ran, 4 were cached.", "", "3", "{}", fewer):
        with pytest.raises((ValueError, KeyError, TypeError)):
            answer(text, titles)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"redo": ["generates"]}, "--redo generates: there is no such stage; stages are "),
        ({"redo": ["generate:x"]}, "--redo generate:x: write an iteration from 0 behind the colon"),
        ({"redo": ["", " "], "replace": True}, "--replace: say which step with --redo"),
        ({"redo": ["generate:7"], "replace": True}, "--redo generate:7: demo has the iterations 0 to "),
        ({"redo": ["gate"], "settings": {"runtime": {"approve": True}}}, "--redo: with runtime.approve a run "),
    ],
)  # fmt: skip
def test_parameters_are_checked_before_the_run(server, parameters, says, monkeypatch, tmp_path) -> None:
    """Catches a form whose wrong step is a traceback, or a run of an hour that then says there is no such step."""
    monkeypatch.setenv("SPINLOOP_STORE", str(tmp_path / "store"))
    state = deployed.spin(**parameters, return_state=True)
    assert state.is_failed() and state.message.startswith("BadInput: " + says), state.message
    assert not (tmp_path / "store").exists()


def test_what_the_form_asks_for_is_done_and_said(finished, server, tiny, tmp_path, monkeypatch) -> None:
    """Catches a form whose redo does nothing, or whose `replace` is lost, and what came of it being nowhere."""
    place = tmp_path / "store"
    shutil.copytree(finished[0], place, symlinks=True)
    monkeypatch.setenv("SPINLOOP_STORE", str(place))
    here = {"runtime": {"pools": dict.fromkeys(Pools.model_fields, "here")}}
    state = deployed.spin(file=str(tiny), settings=here, redo=["gate:0"], replace=True, return_state=True)
    assert state.message.startswith(f"1 step ran, {len(finished[1]) - 1} were cached."), state.message
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
        said = ArtifactFilter(key=ArtifactFilterKey(any_=["tiny-redo"]))
        pages = [page for page in client.read_artifacts(artifact_filter=said) if page.flow_run_id == run.id]
    assert run.name == "tiny, 2 iterations, redo gate:0, replace, runtime.pools.sft=here, and 5 more", run.name
    assert "the output stays, as there is nothing to replace" in pages[0].data.replace("\u200b", "")


def test_boxes_are_plain_and_empty() -> None:
    """Catches a box of JSON, one without a word on what it does, and a scheduled run that redoes unasked."""
    boxes = schema_of(deployed.spin)["properties"]
    assert boxes["redo"]["type"] == "array" and boxes["redo"]["items"] == {"type": "string"}
    assert boxes["redo"]["default"] == [] and boxes["replace"]["default"] is False
    assert boxes["replace"]["type"] == "boolean"
    assert (
        "generate:1" in boxes["redo"]["description"] and "later runs go on from it" in boxes["replace"]["description"]
    )


def test_run_that_redoes_is_named_so_and_the_next_one_by_event_is_not() -> None:
    """Catches a redo that nobody sees in the list of runs, and an event that hands it on to the run it starts."""
    assert redone({"redo": ["score", "gate:1"], "replace": True}) == ["redo score", "redo gate:1", "replace"]
    assert redone({"redo": [], "replace": False}) == redone({}) == []
    assert "redo" not in deployed._origin()


def test_redo_under_approval_is_refused_and_on_a_pool_is_not() -> None:
    """Catches a step that is replaced again each time that a person lets the run go on."""
    parse(["score"], True).demand(parsed(TINY | {"runtime": {"pools": {"score": "spin-gpu"}}}, "tiny"))
    with pytest.raises(BadInput, match=r"set runtime.approve: false"):
        parse(["score"]).demand(parsed(TINY | {"runtime": {"approve": True}}, "tiny"))
