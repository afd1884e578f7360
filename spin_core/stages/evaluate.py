"""Is the new model better? Its likelihood of held-out answers, its answers to held-out prompts, its margin over its
opponent and over the start.

Is not: a benchmark suite (`harness` is), nor a decision (`gate` is). The answers come from the engine that generate
has (`held_out`), the likelihoods from score's own code, whatever the engine is. Every figure comes with the rows that
it is the mean of, so that two models can be compared row by row.

inputs   `model`: a model directory (θ_{t+1}, or θ_0) · `rows`: a rows tree and `tokens`: its tokens (their test sets
         are read) · for a model that came out of an iteration also `pairs` (the tokens of that iteration's, whose test
         set is read) and `logps` (the opponent θ_t's scores of them) · from iteration 1 on also `start`: θ_0
outputs  `metrics.json`: name → number · `rows.jsonl`: what each held-out row contributed
metrics  their names and what each means: `spin_core.analysis.definitions` (docs/metrics.md). Likelihoods are those of
         the unquantised model, also where the margins are of quantised ones, as `finetune.lora.quantize` trains
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, ValidationInfo, field_validator

from spin_core.analysis import by_source
from spin_core.analysis.answer_style import distinct_runs, loops, repetition, style, words
from spin_core.analysis.decoders import measured
from spin_core.config.base import Section, added_field
from spin_core.config.chat import ChatSection
from spin_core.config.choices import EngineName, Loss
from spin_core.config.evaluate import Evaluate
from spin_core.config.finetune import Score
from spin_core.config.generate import Decoding
from spin_core.config.right_answer import declared, is_right
from spin_core.config.runtime import Runtime
from spin_core.data import token_file
from spin_core.data.rows import TEST_FILE, Row, read_rows, row_of
from spin_core.data.token_file import TokenFile
from spin_core.engines import Answer, held_out
from spin_core.engines.answer_checks import Limits
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.modeling.chat import Chat
from spin_core.runtime.part import Part
from spin_core.stages.score import logps_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from spin_core.modeling.collate import Groups

NAME = "evaluate"
VERSION = 4
"""2: prompts without a right answer are answered too (length, repetition, distinct n-grams); margins against θ_0.
3: reads the ids of `tokenize`.
4: every decoder is measured (greedy, temperature 1, as deployed, `evaluate.temperatures`); loops, empty answers,
distinct runs."""

Lines = dict[str, dict[str, Any]]
"""Row id → its line of rows.jsonl."""


class Config(Section):
    """What the metrics depend on besides model, rows, pairs and opponent log-probs."""

    evaluate: Evaluate
    chat: ChatSection
    score: Score
    beta: float | None = None
    """None, as `loss`, for a model without an opponent: its figures do not depend on them."""
    loss: Loss | None = None
    length_normalised: bool = Field(False, json_schema_extra={"omit_default": True})
    """As in `finetune:`, so that rewards and loss are what the model was trained by."""
    deployed: Decoding | None = Field(None, json_schema_extra={"omit_default": True})
    """Of the model that all are made from, where it draws otherwise than `evaluate` does anyway."""
    engine: EngineName = added_field("transformers")
    """What answers the held-out prompts. Likelihoods are computed by score's own code whatever it is."""
    seed: int

    @field_validator("score")
    @classmethod
    def _computes_its_own(cls, value: Score) -> Score:
        """Where the opponent's log-probs came from is score's matter: the same figures keep their key."""
        return value.model_copy(update={"engine_logps": False})

    @field_validator("engine")
    @classmethod
    def _answers_with_it(cls, value: EngineName, info: ValidationInfo) -> EngineName:
        """Without answers it computes nothing: the same figures keep their key."""
        return value if "evaluate" not in info.data or info.data["evaluate"].answers else "transformers"


def elsewhere(config: Config, runtime: Runtime) -> Part | None:
    """The answers, where their engine has an interpreter of its own; `run` then reads them in its scratch."""
    part = _answering(config)
    return Part(held_out, part) if held_out.environment(part, runtime) and part.decoders else None


def _answering(config: Config) -> held_out.Config:
    return held_out.Config(
        decoders=measured(config.evaluate, config.deployed), max_new_tokens=config.evaluate.max_new_tokens,
        engine=config.engine, chat=config.chat, seed=config.seed,
    )  # fmt: skip


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write metrics.json and rows.jsonl; give the metrics. Raises BadInput where rows, pairs and scores do not belong
    together."""
    from spin_core.modeling.loading import load_chat

    model, tree = cast(Path, inputs["model"]), cast(Path, inputs["tokens"])
    tokens = TokenFile(tree / token_file.FILES["test"])
    there = set(tokens.ids)
    rows = [row for row in read_rows(cast(Path, inputs["rows"]) / TEST_FILE) if row.id in there]
    chat = load_chat(model, config.chat)
    lines: Lines = {row.id: {"id": row.id, "prompt": row.prompt[-1]["content"], "real": row.answer} for row in rows}
    for row in rows:
        lines[row.id] |= {"source": row.source} if row.source else {}
    metrics: dict[str, float] = {"rows": len(rows)}
    metrics |= _likelihood(model, tree, config, job, lines)
    if config.evaluate.answers:
        metrics |= _answers(model, rows, tokens, chat, config, job, lines)
    if "pairs" in inputs:
        metrics |= _against_opponent(model, inputs, config, job, lines)
    metrics |= by_source.metrics(lines)
    (job.out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with (job.out / "rows.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
    return metrics


def _likelihood(model: Path, tree: Path, config: Config, job: Job, lines: Lines) -> dict[str, float]:
    from spin_core.modeling.collate import note_cuts, read_groups

    groups = read_groups([tree], "test", config.score.max_length, ["answer"])
    note_cuts(groups, "test", "finetune.max_length", job)
    settings = config.score.model_copy(update={"quantize": "none"})  # of the model that is published
    logps = logps_of(model, groups, settings, job, "likelihood").values
    labels = [tokens.targets for (tokens,) in groups]
    for id, logp, count in zip(groups.ids, logps, labels, strict=True):
        lines[id] |= {"nll": -logp / max(count, 1), "tokens": count}
    return {"nll/real": -sum(logps) / max(sum(labels), 1), "logps/real": fmean(logps)}


def _answers(
    model: Path, rows: list[Row], tokens: TokenFile, chat: Chat, config: Config, job: Job, lines: Lines
) -> dict[str, float]:
    part, metrics = config.evaluate, dict[str, float]()
    requests = held_out.requests(tokens, config.seed)
    if left_out := len(requests) - len(held_out.fitting(requests, model, part.max_new_tokens)):
        metrics["exact_match/too_long"] = left_out
        job.note(
            f"{left_out} held-out prompts leave no room for {part.max_new_tokens} new tokens in the model's context of "
            f"{Limits.of(model).context} and count as not matched; lower chat.max_prompt_length or "
            "evaluate.max_new_tokens."
        )
    if elsewhere(config, job.runtime):
        given = held_out.read(job.scratch, [*measured(part, config.deployed)])
    else:
        given = held_out.answers(model, requests, chat, _answering(config), job)
    for kind, drawn in given.items():
        metrics |= _read({answer.id: answer for answer in drawn}, kind, rows, chat, part.exact_match, lines)
    if config.deployed:
        metrics |= {f"deployed/{field}": value for field, value in config.deployed}
    return metrics | _real(rows, lines)


def _read(
    answers: dict[str, Answer], name: str, rows: list[Row], chat: Chat, exact_match: str, lines: Lines
) -> dict[str, float]:
    """The figures of one kind of answers, and what each row has in them."""
    metrics = dict[str, float]()
    for row in rows:
        answer, line = answers.get(row.id), lines[row.id]
        tokens = answer.token_ids if answer else []
        line |= {name: chat.clean(tokens), f"{name}_tokens": len(tokens), f"{name}_repetition": repetition(tokens)}
        if answer:
            line |= {f"{name}_cut": answer.finish == "length", f"{name}_empty": not line[name].strip()}
        if exact_match:
            line[f"{name}_match"] = answer is not None and _equal(exact_match, row.answer, line[name])
    if exact_match:
        metrics[f"exact_match/{name}"] = fmean(lines[row.id][f"{name}_match"] for row in rows)
    read = style([answer.token_ids for answer in answers.values()])
    count = max(1, len(answers))
    metrics[f"length/{name}_tokens"] = read.pop("length")
    metrics |= {f"{what}/{name}": value for what, value in read.items()}
    metrics[f"truncated/{name}"] = sum(one.finish == "length" for one in answers.values()) / count
    metrics[f"empty/{name}"] = sum(lines[id][f"{name}_empty"] for id in answers) / count
    metrics |= _words({id: lines[id][name] for id in answers}, name, lines)
    if real := sum(lines[id]["tokens"] for id in answers):
        metrics[f"length/{name}_ratio"] = sum(lines[id][f"{name}_tokens"] for id in answers) / real
    return metrics


def _real(rows: list[Row], lines: Lines) -> dict[str, float]:
    """What the real answers have of the figures that mean something only beside theirs."""
    return _words({row.id: row.answer for row in rows}, "real", lines)


def _words(texts: dict[str, str], name: str, lines: Lines) -> dict[str, float]:
    """Loops, and what is distinct among runs of three words."""
    said = {id: words(text) for id, text in texts.items()}
    own = dict(zip(said, distinct_runs([*said.values()]), strict=True))
    for id, (share, runs) in own.items():
        lines[id] |= {f"{name}_loops": loops(said[id]), f"{name}_runs": runs}
        lines[id] |= {f"{name}_distinct": share} if runs else {}
    figures = {f"loops/{name}": sum(lines[id][f"{name}_loops"] for id in own) / max(1, len(own))}
    if total := sum(runs for _, runs in own.values()):
        figures[f"distinct_runs/{name}"] = sum(share * runs for share, runs in own.values()) / total
    return figures


def _equal(rule: str, real: str, text: str) -> bool:
    """Whether the two say the same by the `exact_match` rule. A real answer that the expression does not find is bad
    input."""
    right = declared(rule, real)
    if right is None:
        raise BadInput(
            f"evaluate.exact_match: {rule!r} is not found in the real answer {real[:60]!r}; correct "
            "the expression, or leave it out for rows that have no one right answer."
        )
    return is_right(rule, right, text)


def _against_opponent(model: Path, inputs: Inputs, config: Config, job: Job, lines: Lines) -> dict[str, float]:
    """SPIN's own measures: log-ratios of the new model to its opponent on held-out pairs (paper, eq. 4.7).

    They are defined as the training's are: with `length_normalised` the log-ratios are per token. `spin/loss` is the
    training's loss without the anchor that `sft_weight` adds (its held-out counterpart is `nll/real`).
    """
    import torch

    from spin_core.modeling.collate import read_groups
    from spin_core.modeling.loss import per_label, spin_loss
    from spin_core.modeling.scores import read_scores

    pairs = read_groups([cast(Path, inputs["pairs"])], "test", config.score.max_length)
    if not len(pairs):
        return {}
    theirs = torch.tensor(read_scores(cast(Path, inputs["logps"]), "test", pairs.ids)).double()
    ours = torch.from_numpy(_pair_logps(model, pairs, config, job, "margins"))
    labels = torch.tensor([[tokens.targets for tokens in pair] for pair in pairs])
    assert config.beta is not None and config.loss is not None
    beta, kind = config.beta, config.loss

    def rewarded(against: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Losses, rewards of real and of generated answers."""
        if config.length_normalised:
            ratios = per_label(ours, labels), per_label(against, labels)
        else:
            ratios = ours, against
        (real, generated), (real_then, generated_then) = (side.unbind(1) for side in ratios)
        return spin_loss(real, generated, real_then, generated_then, beta, kind)

    losses, real, generated = rewarded(theirs)
    margins = first = real - generated
    if "start" in inputs:
        begun = _pair_logps(cast(Path, inputs["start"]), pairs, config, job, "margins against θ_0")
        _, *rewards = rewarded(torch.from_numpy(begun))
        first = rewards[0] - rewards[1]
    of_row: dict[str, list[tuple[float, float]]] = {}
    for id, *both in zip(pairs.ids, margins.tolist(), first.tolist(), strict=True):
        of_row.setdefault(id if id in lines else row_of(id), []).append((both[0], both[1]))
    for id, values in of_row.items():  # of a row with several answers their mean
        lines[id] |= {
            name: sum(v) / len(v) for name, v in zip(("margin", "margin_start"), zip(*values, strict=True), strict=True)
        }
    return {
        "spin/loss": losses.mean().item(),
        "spin/margin": margins.mean().item(),
        "spin/accuracy": _accuracy(margins),
        "spin/margin_start": first.mean().item(),
        "spin/accuracy_start": _accuracy(first),
        "rewards/real": real.mean().item(),
        "rewards/generated": generated.mean().item(),
    }


def _pair_logps(model: Path, pairs: Groups, config: Config, job: Job, label: str) -> np.ndarray:
    """log p of (real, generated) of each pair in nats, float64 [N, 2]; the pairs of a row are one group, so its prompt
    and real answer are computed once, however many answers were generated."""
    from spin_core.modeling.pair_logps import PairLogps

    made = PairLogps(pairs)
    missing = made.missing(job.runtime.score_tokens)
    made.put(missing, logps_of(model, missing, config.score, job, label).values)
    return made.values


def _accuracy(margins: Tensor) -> float:
    """Share of pairs whose real answer gained more; a tie counts half."""
    return ((margins > 0).double() + 0.5 * (margins == 0).double()).mean().item()
