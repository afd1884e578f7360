"""evaluate: figures checked against their definitions on a tiny model, through the stages that feed it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spin_core.analysis import by_source, gate_metric
from spin_core.analysis.decoders import kinds
from spin_core.analysis.definitions import EVALUATE, undefined
from spin_core.config.chat import ChatSection
from spin_core.config.generate import Decoding
from spin_core.config.runtime import Runtime
from spin_core.data.rows import TEST_FILE, TRAIN_FILE, Pair, Row, answer_id, write_pairs, write_rows
from spin_core.engines import held_out
from spin_core.engines.answer_checks import Limits
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.modeling.chat import Chat
from spin_core.modeling.loading import load_chat, load_model
from spin_core.stages import demo_model, evaluate, score, tokenize
from spin_core.store.keys import config_payload

CHAT = ChatSection(max_prompt_length=48)
SCORE = score.Score(max_length=80, precision="float32", collation="exact")


def _prompt(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


ROWS = [Row(f"r{i}", _prompt(f"Say {i}"), f"it is {i}. #### {i}") for i in range(5)]


def _tokens(model: Path, out: Path, shard_rows: int = 0, **tree: Path) -> None:
    out.mkdir()
    config = tokenize.Config(chat=CHAT, max_rejected=0.5, shard_rows=shard_rows)
    tokenize.run({"tokenizer": model, **tree}, config, Job(out, out))


def _pairs(model: Path, out: Path, pairs: list[Pair]) -> None:
    """The tokens of pairs, of which the first is there for training, too."""
    texts = out.with_name(f"{out.name}-texts")
    texts.mkdir()
    write_pairs(texts / TRAIN_FILE, pairs[:1])
    write_pairs(texts / TEST_FILE, pairs)
    _tokens(model, out, pairs=texts)


def _ids(chat: Chat, row: Row, text: str) -> tuple[list[int], list[int]]:
    """The ids of a row's prompt and of an answer to it, by the model's own chat template."""
    turns = [*row.prompt, {"role": "assistant", "content": text}]
    prompt = chat.tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, return_dict=False)
    whole = chat.tokenizer.apply_chat_template(turns, return_dict=False)
    assert whole[: len(prompt)] == prompt
    return prompt, whole[len(prompt) :]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, held-out rows, and pairs of them scored under the first model."""
    root = tmp_path_factory.mktemp("world")
    for seed in (0, 1):
        (root / f"model{seed}").mkdir()
        demo_model.run({}, demo_model.Config(seed=seed), Job(out=root / f"model{seed}", scratch=root))
    for name in ("rows", "logps"):
        (root / name).mkdir()
    write_rows(root / "rows" / TRAIN_FILE, ROWS[:1])
    write_rows(root / "rows" / TEST_FILE, ROWS)
    _tokens(root / "model0", root / "tokens", rows=root / "rows", shard_rows=8)
    pairs = [Pair(row.id, row.prompt, row.answer, f"it is not {i}", "stop") for i, row in enumerate(ROWS)]
    _pairs(root / "model0", root / "pairs", pairs)
    job = Job(root / "logps", root, Runtime(device="cpu"), {"model": "0" * 64, "pairs": "1" * 64})
    score.run({"model": root / "model0", "pairs": root / "pairs"}, score.Config(score=SCORE, chat=CHAT), job)
    return root


def _evaluate(
    world: Path, out: Path, model: int, paired: bool = False, start: int = -1, deployed: Decoding | None = None, **part
) -> tuple[dict, list[dict]]:
    out.mkdir()
    section = evaluate.Evaluate(**{"exact_match": r"#### (\d+)", "max_new_tokens": 6, **part})
    config = evaluate.Config(
        evaluate=section, chat=CHAT, score=SCORE, beta=0.5, loss="sigmoid", deployed=deployed, seed=1
    )
    inputs = {"model": world / f"model{model}", "rows": world / "rows", "tokens": world / "tokens"}
    inputs |= {"pairs": world / "pairs", "logps": world / "logps"} if paired else {}
    inputs |= {"start": world / f"model{start}"} if start >= 0 else {}
    metrics = evaluate.run(inputs, config, Job(out, out, Runtime(device="cpu", threads=1)))
    assert json.loads((out / "metrics.json").read_text()) == metrics and not undefined([*metrics])
    return metrics, [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_nll_is_the_models_own_per_answer_token(world, tmp_path) -> None:
    """Catches prompt tokens in the mean, a missing end-of-turn, and a mean of means: computed here token by token."""
    metrics, rows = _evaluate(world, tmp_path / "out", 0, exact_match="")
    model, chat = load_model(world / "model0", "cpu"), load_chat(world / "model0", CHAT)
    total, tokens = 0.0, 0
    for row, line in zip(ROWS, rows, strict=True):
        prompt, answer = _ids(chat, row, row.answer)
        with torch.no_grad():
            logps = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        own = sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
        assert line["nll"] == pytest.approx(-own / len(answer), rel=1e-5)
        total, tokens = total - own, tokens + len(answer)
    assert metrics["nll/real"] == pytest.approx(total / tokens, rel=1e-5)
    assert "exact_match/greedy" not in metrics


def test_figures_of_each_set_are_those_of_its_rows(world, tmp_path) -> None:
    """Catches figures of all rows under each set's name, a mean over rows where one over tokens is meant, and a changed
    rows.jsonl of one set."""
    mixed = tmp_path / "world"
    mixed.mkdir()
    for name in ("model1", "tokens", "pairs", "logps"):
        (mixed / name).symlink_to(world / name)
    (mixed / "rows").mkdir()
    rows = [replace(row, source="ab"[i > 2]) for i, row in enumerate(ROWS)]
    write_rows(mixed / "rows" / TEST_FILE, rows, sources=True)
    metrics, lines = _evaluate(mixed, tmp_path / "out", 1, paired=True)
    whole, plain = _evaluate(world, tmp_path / "plain", 1, paired=True)
    assert whole.items() <= metrics.items() and "source" not in plain[0]
    assert [{**line, "source": row.source} for line, row in zip(plain, rows, strict=True)] == lines
    for source in "ab":
        own = [line for line in lines if line["source"] == source]
        tokens = sum(line["tokens"] for line in own)
        figures = {
            name.removeprefix(f"source/{source}/"): value for name, value in metrics.items() if f"/{source}/" in name
        }
        assert figures == pytest.approx({
            "rows": len(own),
            "nll/real": sum(line["nll"] * line["tokens"] for line in own) / tokens,
            "exact_match/greedy": sum(line["greedy_match"] for line in own) / len(own),
            "exact_match/sampled": sum(line["sampled_match"] for line in own) / len(own),
            "spin/margin": sum(line["margin"] for line in own) / len(own),
            "spin/accuracy": sum(line["margin"] > 0 for line in own) / len(own),
        })  # fmt: skip


def test_unchanged_model_has_no_margin_and_half_accuracy(world, tmp_path) -> None:
    """Catches margins that are not against the opponent, and ties that count as wins."""
    metrics, rows = _evaluate(world, tmp_path / "out", 0, paired=True, exact_match="")
    assert abs(metrics["spin/margin"]) < 1e-4
    assert metrics["spin/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert all(abs(row["margin"]) < 1e-3 for row in rows)


def _gain(nets: list, chat: Chat, row: Row, text: str) -> float:
    """log p of an answer under the second of two models less that under the first, in nats, token by token."""
    prompt, answer = _ids(chat, row, text)
    with torch.no_grad():
        before, after = (net(torch.tensor([prompt + answer])).logits[0].log_softmax(-1) for net in nets)
    return sum((after - before)[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def test_margin_is_beta_times_the_difference_of_log_ratios(world, tmp_path) -> None:
    """Catches swapped models, swapped answers and a forgotten beta."""
    metrics, rows = _evaluate(world, tmp_path / "out", 1, paired=True, exact_match="")
    nets = [load_model(world / f"model{i}", "cpu") for i in (0, 1)]
    chat = load_chat(world / "model0", CHAT)
    for i, (row, line) in enumerate(zip(ROWS, rows, strict=True)):
        real, generated = (_gain(nets, chat, row, text) for text in (row.answer, f"it is not {i}"))
        assert line["margin"] == pytest.approx(0.5 * (real - generated), abs=2e-4)
    assert metrics["spin/accuracy"] == sum(row["margin"] > 0 for row in rows) / len(rows)


def test_margins_of_several_answers_read_the_real_one_once(world, tmp_path, monkeypatch) -> None:
    """Catches a prompt and real answer that each of a row's pairs computes again, and a row's margin that is not the
    mean of those that its pairs have alone."""
    several, passes = tmp_path / "world", []
    several.mkdir()
    for name in ("model0", "model1", "tokens", "rows"):
        (several / name).symlink_to(world / name)
    texts = ("it is not {}", "or {}", "no {}")
    pairs = [
        Pair(answer_id(row.id, k), row.prompt, row.answer, text.format(i), "")
        for i, row in enumerate(ROWS) for k, text in enumerate(texts)
    ]  # fmt: skip
    _pairs(world / "model0", several / "pairs", pairs)
    (several / "logps").mkdir()
    job = Job(several / "logps", tmp_path, Runtime(device="cpu"), {"model": "0" * 64, "pairs": "1" * 64})
    score.run({"model": world / "model0", "pairs": several / "pairs"}, score.Config(score=SCORE, chat=CHAT), job)
    computed = evaluate.logps_of
    monkeypatch.setattr(
        evaluate, "logps_of", lambda path, groups, *rest: passes.append(groups) or computed(path, groups, *rest)
    )
    _, rows = _evaluate(several, tmp_path / "out", 1, paired=True, exact_match="")
    assert [sorted(map(len, groups)) for groups in passes[1:]] == [[4] * len(ROWS)]  # a real answer and three
    monkeypatch.undo()
    nets = [load_model(world / f"model{i}", "cpu") for i in (0, 1)]
    chat = load_chat(world / "model0", CHAT)
    for i, (row, line) in enumerate(zip(ROWS, rows, strict=True)):
        margins = []
        for text in texts:
            real, generated = (_gain(nets, chat, row, each) for each in (row.answer, text.format(i)))
            margins.append(0.5 * (real - generated))
        assert line["margin"] == pytest.approx(sum(margins) / 3, abs=2e-4)


def test_margin_since_the_start_is_against_theta_0(world, tmp_path) -> None:
    """Catches a margin against θ_0 that is the one against the opponent, and opponent's scores taken for θ_0's. Model 1
    runs against model 0: where θ_0 is model 1 itself, nothing was gained since."""
    plain, _ = _evaluate(world, tmp_path / "plain", 1, paired=True)
    assert plain["spin/margin_start"] == plain["spin/margin"] != 0
    since, rows = _evaluate(world, tmp_path / "same", 1, paired=True, start=1)
    assert since["spin/margin"] == plain["spin/margin"] and abs(since["spin/margin_start"]) < 1e-4
    assert since["spin/accuracy_start"] != plain["spin/accuracy"] or plain["spin/accuracy"] == 0.5
    other, _ = _evaluate(world, tmp_path / "other", 1, paired=True, start=0)
    assert other["spin/margin_start"] == pytest.approx(plain["spin/margin"], abs=1e-4)
    assert [row["margin_start"] for row in rows] != [row["margin"] for row in rows]


def test_answers_are_measured_without_a_right_one(world, tmp_path) -> None:
    """Catches style figures of the text instead of the tokens, of greedy answers reported as sampled, and no
    answers for people where rows declare none right."""
    metrics, rows = _evaluate(world, tmp_path / "out", 0, exact_match="", max_new_tokens=12)
    chat = load_chat(world / "model0", CHAT)
    assert not any(name.startswith("exact_match") for name in metrics) and "greedy_match" not in rows[0]
    for kind in ("greedy", "sampled"):
        assert all(row[f"{kind}_tokens"] <= 12 and isinstance(row[kind], str) for row in rows)
        assert metrics[f"length/{kind}_tokens"] == sum(row[f"{kind}_tokens"] for row in rows) / len(rows)
        assert metrics[f"repetition/{kind}"] == pytest.approx(
            sum(row[f"{kind}_repetition"] for row in rows) / len(rows)
        )
        assert 0 < metrics[f"distinct_1/{kind}"] <= 1 and 0 < metrics[f"distinct_2/{kind}"] <= 1
        cut = [row[f"{kind}_tokens"] == 12 for row in rows]  # an untrained model ends by chance alone
        assert metrics[f"truncated/{kind}"] <= sum(cut) / len(rows) and any(cut)
    assert metrics["repetition/sampled"] < metrics["repetition/greedy"]
    assert all(row["tokens"] == len(_ids(chat, r, r.answer)[1]) for r, row in zip(ROWS, rows, strict=True))
    silent, rows = _evaluate(world, tmp_path / "silent", 0, exact_match="", answers=False)
    assert "length/greedy_tokens" not in silent and "greedy" not in rows[0]
    with pytest.raises(ValueError, match="answers: true"):
        evaluate.Evaluate(exact_match="answer", answers=False)


def test_every_temperature_has_its_figures_and_rows(world, tmp_path) -> None:
    """Catches a temperature that is drawn as another, a deployment that is drawn at its temperature alone, and figures
    that are not the means of what the rows say: cut, empty, loops, distinct runs, the ratio to the real length."""
    out = tmp_path / "out"
    settings = {"exact_match": "", "max_new_tokens": 12, "temperatures": [0.3, 10], "sampled": False}
    metrics, rows = _evaluate(world, out, 0, deployed=Decoding(temperature=10, top_k=1), **settings)
    assert kinds(metrics) == ["greedy", "t0.3", "t10", "deployed"]
    assert [row["deployed"] for row in rows] == [row["greedy"] for row in rows] != [row["t10"] for row in rows]
    assert metrics["deployed/top_k"] == 1 and metrics["deployed/temperature"] == 10
    for kind in kinds(metrics):
        assert metrics[f"truncated/{kind}"] == sum(row[f"{kind}_cut"] for row in rows) / len(rows)
        assert metrics[f"empty/{kind}"] == sum(not row[kind].strip() for row in rows) / len(rows)
        assert metrics[f"loops/{kind}"] == sum(row[f"{kind}_loops"] for row in rows) / len(rows)
        runs = sum(row[f"{kind}_runs"] for row in rows)
        own = sum(row.get(f"{kind}_distinct", 0) * row[f"{kind}_runs"] for row in rows)
        assert metrics.get(f"distinct_runs/{kind}", 0) == pytest.approx(own / max(1, runs))
        tokens = sum(row[f"{kind}_tokens"] for row in rows)
        assert metrics[f"length/{kind}_ratio"] == tokens / sum(row["tokens"] for row in rows)
    assert metrics["loops/real"] == 0 and metrics["distinct_runs/real"] > 0.5


def test_every_figure_is_defined_and_measured(world, tmp_path) -> None:
    """Catches a definition of a figure that evaluate does not write any more, one that fits several, and a name that
    any definition fits. (Each evaluation of this file looks for figures without a definition.)"""
    deployed = Decoding(temperature=0.5, top_p=0.9)
    more = {"deployed": deployed, "temperatures": [0.3], "max_new_tokens": 24}
    metrics, rows = _evaluate(world, tmp_path / "out", 1, paired=True, start=0, **more)
    of_sets = by_source.metrics({row["id"]: {**row, "source": "mine"} for row in rows})
    names = [*metrics, *of_sets, "exact_match/too_long"]  # that one: test_prompt_over_the_context…
    fitting = {name: [one.name for one in EVALUATE if one.fits(name)] for name in names}
    exact = {name: [one for one in of if one == name] or of for name, of in fitting.items()}
    assert all(len(of) == 1 for of in exact.values()), exact
    assert {one for of in exact.values() for one in of} == {one.name for one in EVALUATE}
    assert undefined(["nll", "margin", "source/mine", "exact_match"]) == ["nll", "margin", "source/mine", "exact_match"]
    less = {name for name in names if next(one for one in EVALUATE if one.name == exact[name][0]).better == "less"}
    judged = {name for name in names if gate_metric.kind_of(name) or name == gate_metric.NLL}
    assert {name for name in judged if gate_metric.is_less_better(name)} == judged & less


def test_exact_match_compares_what_the_expression_finds() -> None:
    """Catches a comparison of full answers where only the last number counts, and of nothing with nothing."""
    assert evaluate._equal(r"#### (\d+)", "long way #### 7", "short way #### 7 ")
    assert not evaluate._equal(r"#### (\d+)", "#### 7", "#### 77")
    assert not evaluate._equal(r"#### (\d+)", "#### 7", "seven")
    assert evaluate._equal("answer", " 7", "7 ")
    assert not evaluate._equal("answer", "7", "7.")
    with pytest.raises(BadInput, match=r"evaluate\.exact_match"):
        evaluate._equal(r"#### (\d+)", "no number", "#### 7")


def test_scores_of_other_pairs_are_refused(world, tmp_path) -> None:
    """Catches log-probs that are joined to pairs by position."""
    other = tmp_path / "world"
    other.mkdir()
    for name in ("model1", "rows", "tokens", "logps"):
        (other / name).symlink_to(world / name)
    _pairs(world / "model0", other / "pairs", [Pair("x", ROWS[0].prompt, "a", "b", "stop")])
    with pytest.raises(BadInput, match="run score on these pairs again"):
        _evaluate(other, tmp_path / "out", 1, paired=True, exact_match="")


def test_prompt_over_the_context_is_no_match_and_counted(world, tmp_path) -> None:
    """Catches one long held-out prompt that ends the run, though generate leaves such prompts out."""
    context = Limits.of(world / "model0").context
    chat = load_chat(world / "model0", CHAT)
    lengths = sorted(len(_ids(chat, row, "")[0]) for row in ROWS)
    room = context - lengths[-1] + 1  # one token too many for the longest
    metrics, rows = _evaluate(world, tmp_path / "out", 0, exact_match="answer", max_new_tokens=room)
    out = [row["id"] for row in rows if row["greedy"] == "" and not row["greedy_match"]]
    assert metrics["exact_match/too_long"] == lengths.count(lengths[-1])
    assert len(out) >= metrics["exact_match/too_long"]
    plain, _ = _evaluate(world, tmp_path / "plain", 0, exact_match="answer", max_new_tokens=2)
    assert "exact_match/too_long" not in plain


def test_answers_drawn_in_another_process_give_the_same_figures(world, tmp_path) -> None:
    """Catches a part that draws with other seeds, prompts or decoders than evaluate does by itself, answers that lose
    their end or their kind on the way, and a part that runs where nothing has an interpreter of its own."""
    section = evaluate.Evaluate(exact_match=r"#### (\d+)", max_new_tokens=6, temperatures=[0.3])
    common = {"evaluate": section, "chat": CHAT, "score": SCORE, "beta": 0.5, "loss": "sigmoid", "seed": 1}
    inputs = {"model": world / "model0", "rows": world / "rows", "tokens": world / "tokens"}
    runtime = Runtime(device="cpu", threads=1, vllm_python=sys.executable)
    places = [tmp_path / name for name in ("here", "apart", "scratch")]
    for place in places:
        place.mkdir()
    here, apart, scratch = places
    ours, theirs = (evaluate.Config(**common, engine=name) for name in ("transformers", "vllm"))
    assert evaluate.elsewhere(ours, runtime) is None
    part = evaluate.elsewhere(theirs, runtime)
    assert part is not None and part.module is held_out
    drawing = part.config.model_copy(update={"engine": "transformers"})  # any engine draws the same
    assert held_out.run(inputs, drawing, Job(scratch, scratch, runtime))["engine"].startswith("transformers")
    assert evaluate.run(inputs, theirs, Job(apart, scratch, runtime)) == evaluate.run(inputs, ours, Job(here, here))
    assert (apart / "rows.jsonl").read_bytes() == (here / "rows.jsonl").read_bytes()


def test_engine_is_part_of_the_key_only_where_it_answers() -> None:
    """Catches a field that makes every evaluation stale, and vLLM's answers under the key of transformers'."""
    asked = [(engine, on) for engine in ("transformers", "vllm") for on in (True, False)]
    payloads = [
        config_payload(
            evaluate.Config(evaluate=evaluate.Evaluate(answers=on), chat=CHAT, score=SCORE, engine=engine, seed=1)
        )
        for engine, on in asked
    ]
    assert [one.pop("engine", None) for one in payloads] == [None, None, "vllm", None]
    assert payloads[0] == payloads[2] and payloads[1] == payloads[3]
