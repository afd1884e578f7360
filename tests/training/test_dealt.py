"""Stages that only read a model, shared by two processes: each does its half, and together they give what one gives."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from launched import runtime, spec, start
from training_data import (
    CHAT,
    DIGESTS,
    finetune_config,
    job_at,
    made_up_pairs,
    metrics_of,
    pairs_tree,
    score_config,
    scored,
)

from spin_core.modeling.encoding import Conversation, encode
from spin_core.modeling.loading import load_chat
from spin_core.stages import finetune, generate

PAIRS = 6
SHARDINGS = ["fsdp2", pytest.param("none", marks=pytest.mark.full)]


@pytest.fixture(scope="module")
def two():
    child = start(2)
    yield child
    child.kill()


def dealt(events: list[dict], label: str) -> int:
    """The bar of process 0 is over its own part."""
    return next(event["total"] for event in events if event.get("label", "").startswith(label) and event.get("closed"))


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_score_each_process_half_of_the_pairs(tmp_path, two, theta, sharding) -> None:
    """Catches every process that scores all, and values that come back in another order or of another pair."""
    tree, config = pairs_tree(tmp_path / "pairs", made_up_pairs(PAIRS), []), finetune_config()
    one = pq.read_table(scored(tmp_path / "one", theta, tree, config) / "logps.parquet").to_pydict()
    inputs, digests, events = {"model": theta, "pairs": tree}, {"model": "m", "pairs": "p"}, list[dict]()
    job = spec("score", score_config(config), inputs, digests, tmp_path / "two", runtime(2, sharding))
    two.run(job, events.append, timeout=240)
    both = pq.read_table(tmp_path / "two" / "out" / "logps.parquet").to_pydict()
    assert both["id"] == one["id"] and len(one["id"]) == PAIRS
    for column in ("real", "generated"):
        assert both[column] == pytest.approx(one[column], abs=2e-4)
    assert dealt(events, "score") == PAIRS // 2


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_generate_each_process_half_of_the_prompts(tmp_path, two, theta, sharding) -> None:
    """Catches every process that answers all, answers of another prompt, and random numbers that depend on who draws
    them; seven prompts, so that one process has one that the other lacks."""
    texts = [[{"role": "user", "content": f"Say {i}." + " Please." * i}] for i in range(7)]
    encoded = encode(load_chat(theta, CHAT), [Conversation(prompt, (), ()) for prompt in texts])
    rows = [{"id": f"{i:016x}", "prompt": one.prompt} for i, one in enumerate(encoded)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = generate.Config(generate=generate.Generate(max_new_tokens=8, temperature=1.0), chat=CHAT, seed=3)
    inputs, digests, events = {"model": theta, "prompts": tmp_path / "prompts.jsonl"}, {"model": "m"}, list[dict]()
    generate.run(inputs, config, job_at(tmp_path / "one", digests))
    job = spec("generate", config, inputs, digests, tmp_path / "two", runtime(2, sharding))
    two.run(job, events.append, timeout=240)
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert len({line["text"] for line in answers(tmp_path / "one")}) > 1
    assert dealt(events, "generate") == 4
    assert any("the model is sharded" in event.get("note", "") for event in events) == (sharding != "none")


def answers(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "out" / "answers.jsonl").read_text().splitlines()]


@pytest.mark.full
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the package deepspeed (pip install .[dev])")
def test_lora_under_zero2_gives_the_curve_of_one_process(tmp_path, two, theta) -> None:
    """Catches adapters that no part of the optimiser owns, and a base model that is saved without them."""
    config = finetune_config(optimizer="adamw", lora={"rank": 4}, lr=1e-2)
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(5), [])
    logps = scored(tmp_path / "score", theta, tree, config)
    inputs = {"model": theta, "pairs": [tree], "logps": [logps]}
    one = job_at(tmp_path / "one", DIGESTS, micro_tokens=100)
    finetune.run(inputs, config, one)
    two.run(spec("finetune", config, inputs, DIGESTS, tmp_path / "two", runtime(2, "zero2")), print, timeout=240)
    first, second = (metrics_of(tmp_path / place / "out") for place in ("one", "two"))
    assert [line["loss"] for line in second] == pytest.approx([line["loss"] for line in first], abs=1e-4)
    assert first[0]["loss"] != first[-1]["loss"]
    names = [sorted(path.name for path in (tmp_path / place / "out").iterdir()) for place in ("one", "two")]
    assert names[0] == names[1]
