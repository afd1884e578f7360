"""The engine's log-probs in the place of score's: which are taken, that wrong ones are rejected, and by whom they were
made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from training_data import job_at

from spin_core.config.chat import ChatSection
from spin_core.config.finetune import Finetune, engine_logps_unusable, score_settings
from spin_core.config.profile import parse
from spin_core.data.rows import FILES, read_pairs
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.modeling.sampled_logps import CHECKED, FILE, TOLERANCE, sample
from spin_core.stages import demo_model, evaluate, finetune, gather, generate, reformat, score, tokenize

CHAT = ChatSection(max_prompt_length=48)
MODEL, PAIRS = "0" * 64, "1" * 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character model."""
    out = tmp_path_factory.mktemp("model")
    demo_model.run({}, demo_model.Config(seed=5), Job(out=out, scratch=out))
    return out


@pytest.fixture(scope="module")
def world(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 train and 20 test pairs as the stages make them, the answers sampled with log-probs; and `plain`, their
    scores."""
    root = tmp_path_factory.mktemp("world")
    for name, count in (("train", 100), ("test", 20)):
        lines = [{"question": f"{name} {i}", "answer": f"it is {i}"} for i in range(count)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = job_at(root / "rows")
    sources = {"source": root / "train.jsonl", "test_source": root / "test.jsonl"}
    reformat.run(sources, reformat.Config(dataset=reformat.Dataset(), seed=1), rows)
    tokens = job_at(root / "tokens")
    how = tokenize.Config(chat=CHAT, max_rejected=0.0, shard_rows=50)
    tokenize.run({"tokenizer": model, "rows": rows.out}, how, tokens)
    part = generate.Generate(max_new_tokens=8, temperature=4, logprobs=True, min_new_tokens=2)
    trees = []
    for shard in json.loads((tokens.out / "shards.json").read_text()):
        job = job_at(root / shard["file"], {"model": MODEL}, generate_batch=7)
        generate.run(
            {"model": model, "prompts": tokens.out / shard["file"]},
            generate.Config(generate=part, chat=CHAT, seed=2),
            job,
        )
        trees.append(job.out)
    gathered = job_at(root / "pairs")
    given = {"rows": rows.out, "tokens": tokens.out, "answers": trees}
    gather.run(given, gather.Config(gather=gather.Gather()), gathered)
    (root / "plain").mkdir()
    _score(root / "plain", model, gathered.out, engine_logps=False)
    return root


def _score(
    at: Path, model: Path, pairs: Path, digest: str = MODEL, chat: ChatSection = CHAT, **settings: Any
) -> tuple[dict, dict[str, dict], list[str]]:
    """Score with the engine's log-probs: (summary, lines of logps.parquet by id, notes)."""
    events: list[dict] = []
    job = job_at(at, {"model": digest, "pairs": PAIRS}, events)
    options = {"max_length": 100, "precision": "float32", "collation": "exact", "engine_logps": True, **settings}
    summary = score.run({"model": model, "pairs": pairs}, score.Config(score=score.Score(**options), chat=chat), job)
    lines = {line["id"]: line for line in pq.read_table(job.out / "logps.parquet").to_pylist()}
    return summary, lines, [event["note"] for event in events if "note" in event]


@pytest.fixture
def plain(world: Path) -> dict[str, dict]:
    """The lines that score computes by itself."""
    return {line["id"]: line for line in pq.read_table(world / "plain" / "out" / "logps.parquet").to_pylist()}


@pytest.fixture
def edited(world: Path, tmp_path: Path) -> Callable[[Callable[[dict], dict]], Path]:
    """A copy of the pairs whose lines of FILE went through a function."""

    def make(change: Callable[[dict], dict]) -> Path:
        tree = tmp_path / "edited"
        shutil.copytree(world / "pairs" / "out", tree)
        lines = [change(json.loads(line)) for line in (tree / FILE).read_text().splitlines()]
        (tree / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tree

    return make


def _same(line: dict, other: dict) -> bool:
    """To the rounding of another batch."""
    return all(line[name] == pytest.approx(other[name], abs=1e-3) for name in ("real", "generated"))


def test_engines_log_probs_are_scores_own_to_rounding(world, model, plain, tmp_path) -> None:
    """Catches log-probs at the sampling temperature or after the minimum length (both are set), of the wrong tokens or
    rows, without the end, a tolerance near what is correct (50 times below it here), and answers that are scored as
    other tokens than were sampled: all can be taken, also those whose text has lost a special token or a space."""
    lines = [json.loads(line) for line in (world / "pairs" / "out" / FILE).read_text().splitlines()]
    assert len(lines) == 120 and {line["split"] for line in lines} == {"train", "test"}
    assert all(len(line["token_ids"]) == plain[line["id"]]["generated_tokens"] for line in lines)
    assert max(abs(line["logps"] - plain[line["id"]]["generated"]) for line in lines) < TOLERANCE / 50
    summary, _, notes = _score(tmp_path, model, world / "pairs" / "out")
    assert summary["engine_logps"] == len(lines) - CHECKED and notes == []
    train = [line for line in plain.values() if line["split"] == "train"]
    tokens, nats = (sum(line[name] for line in train) for name in ("generated_tokens", "generated"))
    assert 0 < len(train) < len(plain) and summary["forecast"]["entropy"] == pytest.approx(-nats / tokens, abs=1e-4)
    better = sum(line["real"] > line["generated"] for line in train) / len(train)
    assert summary["forecast"]["identical"] == 0 and summary["forecast"]["preferred"] == pytest.approx(better)


def test_taken_log_probs_are_the_engines_and_need_no_pass(edited, model, plain, tmp_path, policy_calls) -> None:
    """Catches a setting that computes everything all the same, that takes the real answers' too, or that puts a
    number at another pair."""
    tree = edited(lambda line: {**line, "logps": line["logps"] + 1e-3})
    kept = {line["id"]: line for line in map(json.loads, (tree / FILE).read_text().splitlines())}
    summary, lines, notes = _score(tmp_path, model, tree)
    taken = {id for id, line in lines.items() if line["generated"] == kept[id]["logps"]}
    assert len(taken) == summary["engine_logps"] and notes == []
    assert sum(batch.sequences for batch in policy_calls) == 2 * len(plain) - len(taken)
    for id, line in lines.items():
        assert line["real"] == pytest.approx(plain[id]["real"], abs=1e-4)
        assert line["generated"] == pytest.approx(plain[id]["generated"], abs=1.1e-3 if id in taken else 1e-4)


def test_one_wrong_log_prob_in_the_sample_and_all_are_computed(world, edited, model, plain, tmp_path) -> None:
    """Catches engines of another precision, temperature or model that are believed: one answer is off by twice the
    tolerance."""
    tree = world / "pairs" / "out"
    pairs = [(split, pair.id) for split, file in FILES.items() for pair in read_pairs(tree / file)]
    wrong = pairs[sample(pairs, range(len(pairs)))[3]][1]
    tree = edited(lambda line: {**line, "logps": line["logps"] - (2 * TOLERANCE if line["id"] == wrong else 0)})
    summary, lines, notes = _score(tmp_path, model, tree)
    assert summary["engine_logps"] == 0
    assert all(_same(line, plain[id]) for id, line in lines.items())
    assert notes == [
        f"score: all log-probs are computed, as the engine's for pair {wrong} is 0.01 nats from the model's own (at "
        "most 0.005 is allowed)."
    ]


def test_log_probs_of_other_tokens_are_not_taken(edited, model, plain, tmp_path) -> None:
    """Catches a log-prob of the sampled tokens for an answer that is trained on as others (a stop string was cut off,
    the text is tokenised otherwise): every number here is off, and none may be looked at."""
    tree = edited(lambda line: {**line, "token_ids": [*line["token_ids"], 9], "logps": -1.0})
    summary, lines, notes = _score(tmp_path, model, tree)
    assert (summary["engine_logps"], notes) == (0, [])
    assert all(_same(line, plain[id]) for id, line in lines.items())


def test_log_probs_of_an_answer_that_scoring_cuts_are_not_taken(world, model, tmp_path) -> None:
    """Catches the full answer's log-prob for the part of it that max_length leaves."""
    short = 14  # the prompts have 9 to 12 tokens, nearly all answers 8
    own = _score(tmp_path / "own", model, world / "pairs" / "out", max_length=short, engine_logps=False)[1]
    summary, lines, notes = _score(tmp_path / "engine", model, world / "pairs" / "out", max_length=short)
    assert summary["engine_logps"] == 0 and all(_same(line, own[id]) for id, line in lines.items())
    assert all("lose their end" in note for note in notes)


def test_log_probs_under_another_model_are_not_taken(world, model, plain, tmp_path) -> None:
    """Catches the previous iteration's pairs under this iteration's model: after a small step both nearly agree."""
    summary, lines, notes = _score(tmp_path, model, world / "pairs" / "out", digest="2" * 64)
    assert (summary["engine_logps"], notes) == (0, [])
    assert all(_same(line, plain[id]) for id, line in lines.items())


def test_pairs_without_the_file_are_bad_input(world, model, tmp_path) -> None:
    """Catches a setting that does nothing without a word."""
    tree = tmp_path / "pairs"
    shutil.copytree(world / "pairs" / "out", tree, ignore=shutil.ignore_patterns(FILE))
    with pytest.raises(BadInput, match=r"engine_logps\.jsonl: .* `generate\.logprobs: true`"):
        _score(tmp_path, model, tree)


@pytest.mark.parametrize("change", [{"logps": float("nan")}, {"logps": None}, {"token_ids": "", "split": []}])
def test_damaged_line_is_named(edited, model, tmp_path, change) -> None:
    """Catches a log-prob that is not one in the training's data."""
    with pytest.raises(BadInput, match=r"engine_logps\.jsonl, line 1: not readable"):
        _score(tmp_path, model, edited(lambda line: {**line, **change}))


@pytest.mark.parametrize(
    ("settings", "template", "why"),
    [
        ({"precision": "bfloat16"}, "model", "bfloat16"),
        ({"collation": "reference"}, "model", "reference"),
        ({}, "paper", "paper"),
    ],
)
def test_settings_under_which_the_numbers_differ_fall_back(world, model, tmp_path, settings, template, why) -> None:
    """Catches log-probs of another precision, tokenisation or prompt that a lucky sample lets pass."""
    chat = ChatSection(max_prompt_length=48, template=template)
    summary, _, notes = _score(tmp_path, model, world / "pairs" / "out", chat=chat, **settings)
    assert summary["engine_logps"] == 0
    assert any(note.startswith("score: no log-prob is taken from the engine") and why in note for note in notes)
    nf4 = score.Score(max_length=9, precision="float32", collation="exact", quantize="nf4", engine_logps=True)
    assert "nf4" in engine_logps_unusable(nf4, CHAT)


def test_sample_is_a_twentieth_and_no_fewer_than_32() -> None:
    """Catches a check of the first answers (one shard), one that grows with nothing, and one that changes."""
    pairs = [("train", f"{i:05}") for i in range(2000)]
    drawn = sample(pairs, range(2000))
    assert len(drawn) == 100 and drawn == sorted(set(drawn)) == sample(pairs, range(1999, -1, -1))
    assert 20 < sum(i < 1000 for i in drawn) < 80
    assert len(sample(pairs, range(0, 200, 2))) == CHECKED and sample(pairs, [4, 7]) == [4, 7]


def test_finetune_takes_scores_of_this_setting_only(world, model, tmp_path) -> None:
    """Catches a setting that is not recorded: log-probs from an engine for a training that requested computed ones."""
    pairs = world / "pairs" / "out"
    _score(tmp_path / "s", model, pairs)

    def run(name: str, **changes: Any) -> dict:
        part = Finetune(lr=1e-3, schedule_epochs=1, global_batch=50, max_length=100, **changes)
        job = job_at(tmp_path / name, {"model": MODEL, "pairs": [PAIRS], "logps": ["s"]})
        config = finetune.Config(finetune=part, seed=1)
        return finetune.run({"model": model, "pairs": [pairs], "logps": [tmp_path / "s" / "out"]}, config, job)

    assert run("with", engine_logps=True)["steps"] == 2
    with pytest.raises(BadInput, match=r"scores\.json: `score` is .*run score again"):
        run("without")


def test_evaluation_keeps_its_key() -> None:
    """Catches evaluations that are computed anew because the opponent's log-probs came from elsewhere."""
    parts = [score_settings(Finetune(engine_logps=on)) for on in (False, True)]
    assert parts[0] != parts[1]
    configs = [evaluate.Config(evaluate=evaluate.Evaluate(), chat=CHAT, score=part, seed=1) for part in parts]
    assert configs[0] == configs[1]


LEAST = {"model": {"path": "m"}, "dataset": {"path": "d"}}
ON = {"finetune": {"engine_logps": True}, "generate": {"logprobs": True}}


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"finetune": ON["finetune"]}, "needs generate.logprobs: true in iteration 0"),
        ({"overrides": {2: ON}}, r"engine_logps \(iteration 2\) needs generate.logprobs: true in iteration 1"),
        ({**ON, "chat": {"template": "paper"}}, "the prompt that is scored is not the one"),
        ({**ON, "finetune": {"engine_logps": True, "precision": "bfloat16"}}, "set `precision: float32`"),
    ],
)
def test_profile_that_cannot_use_them_is_refused(profile, message) -> None:
    """Catches a run that generates for hours and then has no log-probs to take."""
    with pytest.raises(BadInput, match=message):
        parse({**LEAST, **profile}, "p")


def test_profile_that_can_use_them_is_taken() -> None:
    """Catches a check that refuses the setting as it is meant, or looks further back than the pairs trained on."""
    parse({**LEAST, **ON}, "p")
    parse({**LEAST, "history": 1, "overrides": {2: ON}}, "p")
    parse({**LEAST, "overrides": {1: {"generate": ON["generate"]}, 2: ON}}, "p")
