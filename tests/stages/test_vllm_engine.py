"""The vLLM engine, really run, in its own interpreter: the same answers as the transformers engine, loaded once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_core.config.chat import ChatSection
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.modeling.encoding import Conversation, encode
from spin_core.modeling.loading import load_chat
from spin_core.runtime import vllm_env
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, compute
from spin_core.sources.resolve import resolve
from spin_core.stages import demo_model, generate
from spin_core.stages.demo_rows import make_rows
from spin_core.store.store import Record, Store

pytestmark = [
    pytest.mark.skipif(not vllm_env.place("").exists(), reason="vLLM's environment is not there: make vllm-env"),
    pytest.mark.timeout(600),
]
CHAT = ChatSection(max_prompt_length=48)
PROMPTS = {f"row{i:03}": prompt for i, (prompt, _) in enumerate(make_rows(1, 60))}


def _model(folder: Path, heads: int = 2) -> Path:
    demo_model.run({}, demo_model.Config(seed=5, heads=heads), Job(out=folder, scratch=folder))
    return folder


class World:
    """A store, a model and the children of one run."""

    def __init__(self, folder: Path, children: Children):
        self.folder, self.children = folder, children
        self.store = Store(folder / "store")
        (folder / "model").mkdir()
        self.model = _model(folder / "model")
        self.count = 0

    def record(
        self, engine: str, ids: list[str], model: Path | None = None, keep: bool = True, seed: int = 3, **settings
    ) -> Record:
        """Generate the answers of these prompts as a shard."""
        self.count += 1
        file = self.folder / f"{self.count}-{ids[0]}-{ids[-1]}.jsonl"
        prompts = [Conversation([{"role": "user", "content": PROMPTS[id]}], (), ()) for id in ids]
        made = encode(load_chat(model or self.model, CHAT), prompts)
        rows = [{"id": id, "prompt": one.prompt} for id, one in zip(ids, made, strict=True)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        part = generate.Generate(engine=engine, **{"max_new_tokens": 24, **settings})
        config = generate.Config(generate=part, chat=CHAT, seed=seed)
        inputs = {
            "model": resolve(str(model or self.model), "model", "", Path(), ""),
            "prompts": resolve(str(file), "dataset", "", Path(), ""),
        }
        runtime = Runtime(device="cpu", threads=1, vllm_kv_gib=1, requests_in_flight=16, keep_engine=keep)
        return compute(
            self.store, KeyedStep(Step(generate, "", config), inputs), runtime, self.children, lambda event: None
        )[0]

    def lines(self, record: Record) -> dict[str, dict]:
        """The record's answers by id."""
        text = (self.store.tree(record.digest) / "answers.jsonl").read_text()
        return {line["id"]: line for line in map(json.loads, text.splitlines())}

    def answers(self, engine: str, ids: list[str], **settings) -> dict[str, dict]:
        return self.lines(self.record(engine, ids, **settings))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One vLLM process for the tests of this file, and one of the project's own."""
    with Children(2) as children:
        yield World(tmp_path_factory.mktemp("world"), children)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}])
def test_both_engines_give_the_same_answers(world, settings) -> None:
    """Catches draws that are not the row's own, a nucleus or temperature that vLLM applies a second time, and an end
    that only one of them sees. The logits agree to 1e-6, so a draw falls between them once in thousands."""
    ids = list(PROMPTS)
    ours, theirs = (world.answers(engine, ids, **settings) for engine in ("transformers", "vllm"))
    same = sum(ours[id] == theirs[id] for id in ids)
    assert same >= len(ids) - 1
    assert len({line["text"] for line in theirs.values()}) > 30, "they are different answers, not one"


def test_shards_of_any_size_and_side_by_side_give_the_same_answers_from_one_engine(world) -> None:
    """Catches draws that depend on what else is in the batch, answers given to another shard's rows, and a model that
    is loaded for each shard."""
    ids = list(PROMPTS)
    together = world.answers("vllm", ids)
    shards = [ids[i : i + 7] for i in range(0, len(ids), 7)]
    records: list[Record] = []
    threads = [threading.Thread(target=lambda s=shard: records.append(world.record("vllm", s))) for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parts = [world.lines(record) for record in records]
    assert sum(map(len, parts)) == len(ids)
    assert {id: line for part in parts for id, line in part.items()} == together
    loads = [record.facts["summary"]["load_seconds"] for record in records]
    assert sum(seconds > 0 for seconds in loads) <= 1, "the second place may start its own engine, once"
    assert all(record.facts["summary"]["tokens_per_second"] > 0 for record in records)


@pytest.mark.parametrize(
    "settings",
    [{"min_new_tokens": 12}, {"stop": ["a", "kj"]}, {"logprobs": True}, {"max_new_tokens": 5, "attempts": 4}],
    ids=lambda settings: next(iter(settings)),
)
def test_options_mean_the_same_in_both_engines(world, settings) -> None:
    """Catches a minimum that one engine counts with the end token, a stop string whose tokens are left out, log-probs
    of the tempered or cut distribution, and redraws with other seeds."""
    ids = list(PROMPTS)[:30]
    ours, theirs = (world.answers(engine, ids, temperature=0.8, **settings) for engine in ("transformers", "vllm"))
    logps = [(ours[id].pop("logps", []), theirs[id].pop("logps", [])) for id in ids if ours[id]["tokens"] > 0]
    assert sum(ours[id] == theirs[id] for id in ids) >= len(ids) - 1
    if "logprobs" in settings:
        assert max(abs(a - b) for one, other in logps for a, b in zip(one, other, strict=True)) < 1e-3
    else:
        assert not any(one or other for one, other in logps)
    if "stop" in settings:
        assert any(line["finish"] == "stop" for line in theirs.values())
    if "min_new_tokens" in settings:
        assert min(line["tokens"] for line in theirs.values()) >= 12


def test_model_that_vllm_does_not_take_is_bad_input_in_one_sentence(world, tmp_path) -> None:
    """Catches a traceback of 200 lines, and a run that tries such a model three times."""
    model = _model(tmp_path, heads=4)  # of 16 each
    with pytest.raises(BadInput, match=r"vLLM 0\.\d+\.\d+ does not take this model") as refused:
        world.record("vllm", list(PROMPTS)[:2], model=model)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 600


@pytest.fixture
def one_place(tmp_path: Path) -> Iterator[World]:
    """As `world`, with one place for a process: which of two has an engine depends on the tests before."""
    (tmp_path / "world").mkdir()
    with Children(1) as children:
        yield World(tmp_path / "world", children)


def test_another_model_is_answered_for_by_the_same_engine(one_place, tmp_path) -> None:
    """Catches the answers of θ_t given for θ_{t+1}, whose weights the first model's engine takes in place; other
    answers with a kept engine than with a new one, also for the first model again; and a kept engine where the setting
    says no."""
    folder = tmp_path / "model"
    folder.mkdir()
    demo_model.run({}, demo_model.Config(seed=6), Job(out=folder, scratch=folder))
    ids = list(PROMPTS)[:12]
    before = one_place.answers("vllm", ids)
    reloaded = one_place.record("vllm", ids, model=folder)
    other = one_place.lines(reloaded)
    assert reloaded.facts["summary"]["reloaded"] == 1.0 and other != before
    assert other == one_place.lines(one_place.record("transformers", ids, model=folder))
    back = one_place.record("vllm", ids, seed=4)
    assert back.facts["summary"]["reloaded"] == 1.0
    fresh = one_place.record("vllm", ids, model=folder, keep=False, seed=4)
    kept = one_place.record("vllm", ids, model=folder, seed=4, max_new_tokens=23)
    assert "reloaded" not in fresh.facts["summary"] and "engine_restarts" not in kept.facts["summary"]
    assert one_place.lines(one_place.record("transformers", ids, model=folder, seed=4)) == one_place.lines(fresh)
