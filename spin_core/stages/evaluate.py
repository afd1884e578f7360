"""Is the new model better? Its likelihood of held-out answers, its answers to held-out prompts, its margin over its
opponent.

Is not: a benchmark suite, nor a decision. Every figure comes with the rows that it is the mean of.

inputs   `model`: a model directory (θ_{t+1}, or θ_0) · `rows`: a rows tree (its test set is read) · for a model that
         came out of an iteration also `pairs` (that iteration's, whose test set is read) and `logps` (the opponent
         θ_t's scores of them)
outputs  `metrics.json`: name → number · `rows.jsonl`: what each held-out row contributed
metrics  `nll/real`: nats per token of the real answers (all tokens weigh alike) · `logps/real`: nats per answer (both
         unquantised, also where the margins are of quantised models, as `finetune.lora.quantize` trains) ·
         `exact_match/greedy`, `exact_match/sampled` (temperature 1, as pairs are drawn by default) ·
         `exact_match/too_long` (prompts over the model's context, no match; only where there are some) ·
         `length/greedy_tokens` · with pairs: `rewards/real`, `rewards/generated` (β times the log-ratio to θ_t),
         `spin/margin`, `spin/accuracy` (a tie counts half: an unchanged model has 0.5), `spin/loss`
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from spin_core.answers import Limits
from spin_core.chat import Chat, ChatSection
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.rows import TEST_FILE, Row, read_pairs, read_rows
from spin_core.section import Section
from spin_core.stages.generate import request, sampling
from spin_core.stages.score import Score, logps_of, read_scores

VERSION = 1


class Evaluate(Section):
    """`evaluate:` in a profile."""

    exact_match: str = Field(
        "",
        description="'answer': the whole answer must equal the real one. A regular expression: its first group must be "
        "equal in both (GSM8K: '#### (.+)'). Empty: no generation, no exact match.",
    )
    sampled: bool = Field(True, description="Exact match of an answer drawn at temperature 1 beside the greedy one.")
    max_new_tokens: int = Field(256, ge=1, description="Tokens of answer when generating for exact match.")

    @field_validator("exact_match")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error})") from None
        if value not in ("", "answer") and not groups:
            raise ValueError("needs a group, as in '#### (.+)', or the word answer")
        return value


class Config(Section):
    """What the metrics depend on besides model, rows, pairs and opponent log-probs."""

    evaluate: Evaluate
    chat: ChatSection
    score: Score
    beta: float | None = None
    """None, as `loss`, for a model without an opponent: its figures do not depend on them."""
    loss: Literal["sigmoid", "hinge"] | None = None
    length_normalised: bool = Field(False, json_schema_extra={"omit_default": True})
    """As in `finetune:`, so that rewards and loss are what the model was trained by."""
    seed: int

    @field_validator("score")
    @classmethod
    def _computes_its_own(cls, value: Score) -> Score:
        """Where the opponent's log-probs came from is score's matter: the same figures keep their key."""
        return value.model_copy(update={"engine_logps": False})


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Write metrics.json and rows.jsonl; give the metrics. Raises BadInput where rows, pairs and scores do not belong
    together."""
    from spin_core.models import load_chat

    model = cast(Path, inputs["model"])
    rows = read_rows(cast(Path, inputs["rows"]) / TEST_FILE)
    chat = load_chat(model, config.chat)
    lines: dict[str, dict[str, Any]] = {
        row.id: {"id": row.id, "prompt": row.prompt[-1]["content"], "real": row.answer} for row in rows
    }
    metrics: dict[str, float] = {"rows": len(rows)}
    metrics |= _likelihood(model, rows, chat, config, job, lines)
    if config.evaluate.exact_match:
        metrics |= _exact_match(model, rows, chat, config, job, lines)
    if "pairs" in inputs:
        metrics |= _against_opponent(model, chat, inputs, config, job, lines)
    (job.out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    with (job.out / "rows.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
    return metrics


def _likelihood(model: Path, rows: list[Row], chat: Chat, config: Config, job: Job, lines: dict) -> dict[str, float]:
    from spin_core.collate import encode_answer

    length = config.score.max_length
    tokens = [encode_answer(chat, row.prompt, row.answer, True, length, f"row {row.id}") for row in rows]
    settings = config.score.model_copy(update={"quantize": "none"})  # of the model that is published
    logps = logps_of(model, [[one] for one in tokens], chat, settings, job, "likelihood")
    for row, logp, encoded in zip(rows, logps, tokens, strict=True):
        lines[row.id]["nll"] = -logp / max(encoded.targets, 1)
    return {"nll/real": -sum(logps) / max(sum(t.targets for t in tokens), 1), "logps/real": fmean(logps)}


def _exact_match(model: Path, rows: list[Row], chat: Chat, config: Config, job: Job, lines: dict) -> dict[str, float]:
    from spin_core.engines.transformers_engine import sample

    part, metrics = config.evaluate, dict[str, float]()
    requests = [request(chat, row.id, row.prompt, config.seed, "evaluate") for row in rows]
    context = Limits.of(model).context
    fitting = [one for one in requests if context is None or len(one.prompt) + part.max_new_tokens <= context]
    if left_out := len(requests) - len(fitting):
        metrics["exact_match/too_long"] = left_out
        job.note(
            f"{left_out} held-out prompts leave no room for {part.max_new_tokens} new tokens in the model's context of "
            f"{context} and count as not matched; lower chat.max_prompt_length or evaluate.max_new_tokens."
        )
    for name, temperature in [("greedy", 0.0)] + [("sampled", 1.0)] * part.sampled:
        how = sampling(chat, temperature, 1.0, part.max_new_tokens)
        answers = {answer.id: answer.token_ids for answer in sample(model, fitting, how, job, name)}
        for row in rows:
            text = chat.clean(answers.get(row.id, []))
            match = row.id in answers and _equal(part.exact_match, row.answer, text)
            lines[row.id] |= {name: text, f"{name}_match": match}
        metrics[f"exact_match/{name}"] = fmean(lines[row.id][f"{name}_match"] for row in rows)
        metrics[f"length/{name}_tokens"] = fmean(map(len, answers.values())) if answers else 0.0
    return metrics


def _equal(rule: str, real: str, text: str) -> bool:
    """Whether the two say the same by the `exact_match` rule. A real answer that the expression does not find is bad
    input."""
    if rule == "answer":
        return text.strip() == real.strip()
    expected, got = re.search(rule, real), re.search(rule, text)
    if expected is None:
        raise BadInput(
            f"evaluate.exact_match: {rule!r} is not found in the real answer {real[:60]!r}; mend the "
            "expression, or leave it out for rows that have no one right answer."
        )
    return got is not None and got.group(1).strip() == expected.group(1).strip()


def _against_opponent(
    model: Path, chat: Chat, inputs: Inputs, config: Config, job: Job, lines: dict
) -> dict[str, float]:
    """SPIN's own measures: log-ratios of the new model to its opponent on held-out pairs (paper, eq. 4.7).

    They are defined as the training's are: with `length_normalised` the log-ratios are per token. `spin/loss` is the
    training's loss without the anchor that `sft_weight` adds (its held-out counterpart is `nll/real`).
    """
    import torch

    from spin_core.collate import encode_pairs
    from spin_core.loss import per_label, spin_loss

    pairs = read_pairs(cast(Path, inputs["pairs"]) / TEST_FILE)
    if not pairs:
        return {}
    theirs = torch.tensor(read_scores(cast(Path, inputs["logps"]), "test", [pair.id for pair in pairs])).double()
    encoded = encode_pairs(pairs, chat, config.score, job)
    ours = torch.tensor(logps_of(model, encoded, chat, config.score, job, "margins")).double().view(-1, 2)
    if config.length_normalised:
        labels = torch.tensor([[tokens.targets for tokens in pair] for pair in encoded])
        ours, theirs = per_label(ours, labels), per_label(theirs, labels)
    assert config.beta is not None and config.loss is not None
    losses, real, generated = spin_loss(ours[:, 0], ours[:, 1], theirs[:, 0], theirs[:, 1], config.beta, config.loss)
    margins = real - generated
    for pair, margin in zip(pairs, margins.tolist(), strict=True):
        lines[pair.id]["margin"] = margin
    return {
        "spin/loss": losses.mean().item(),
        "spin/margin": margins.mean().item(),
        "spin/accuracy": ((margins > 0).double() + 0.5 * (margins == 0).double()).mean().item(),
        "rewards/real": real.mean().item(),
        "rewards/generated": generated.mean().item(),
    }
