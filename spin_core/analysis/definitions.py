"""What each figure means: of metrics.json (evaluate), results.json (harness), metrics.jsonl (sft, finetune).
docs/metrics.md is generated from here.

Is not: how a figure is computed (the stages do), which decides (`gate_metric`), nor the columns of the pages' tables
(`spin_core.analysis.columns`). Tests hold the names to those that the stages write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A figure by its name in its file. In a name KIND is a kind of answer (`greedy`, `sampled`, `t0.3`, `deployed`),
    NAME a set of a mix, and METRIC another metric. `better`: what is better, all else equal; empty: neither."""

    name: str
    unit: str
    text: str
    better: Literal["", "more", "less"] = ""

    def fits(self, name: str) -> bool:
        """Whether it is the figure of this name."""
        pattern = re.escape(self.name)
        for part, what in (("KIND", "[^/_]+"), ("NAME", "[^/]+"), ("METRIC", "(?!rows$).+")):
            pattern = pattern.replace(part, what)
        return re.fullmatch(pattern, name) is not None


EVALUATE = (
    Metric("rows", "rows", "Held-out rows that were measured."),
    Metric(
        "nll/real", "nats per token",
        "Negative log-likelihood of the held-out real answers: how surprised the model is by them. All tokens weigh "
        "alike, so a long answer counts more.",
        "less",
    ),
    Metric("logps/real", "nats per answer", "Mean log-probability of a real answer: the sum over its tokens.", "more"),
    Metric(
        "exact_match/KIND", "share",
        "Answers that say the same as the real answer by the rule `evaluate.exact_match`. A prompt that was too long "
        "to be answered counts as not matched.",
        "more",
    ),
    Metric(
        "exact_match/too_long", "prompts",
        "Held-out prompts that leave no room for `evaluate.max_new_tokens` in the model's context, so that they got no "
        "answer; there only where there are some.",
    ),
    Metric("length/KIND_tokens", "tokens", "Mean length of the answers."),
    Metric("length/KIND_ratio", "ratio", "Tokens of the answers to tokens of the real answers to the same prompts."),
    Metric("truncated/KIND", "share", "Answers that reached `evaluate.max_new_tokens`, so never ended.", "less"),
    Metric("empty/KIND", "share", "Answers without text.", "less"),
    Metric(
        "loops/KIND", "share",
        "Answers that loop: over a fifth of their pairs of neighbouring words were there before in the answer.",
        "less",
    ),
    Metric("loops/real", "share", "Real answers that loop by the same rule: what to compare `loops/KIND` with."),
    Metric(
        "repetition/KIND", "share",
        "Of an answer's runs of four tokens, those that it had before; the mean over answers.",
        "less",
    ),
    Metric("distinct_1/KIND", "share", "Different tokens, of all tokens of all answers: low where answers are alike."),
    Metric("distinct_2/KIND", "share", "Different pairs of neighbouring tokens, of all pairs of all answers."),
    Metric(
        "distinct_runs/KIND", "share",
        "Different runs of three words, of all such runs of all answers. It is of words, so it means the same under "
        "every tokenizer.",
    ),
    Metric("distinct_runs/real", "share", "The same of the real answers: what to compare `distinct_runs/KIND` with."),
    Metric("deployed/temperature", "", "Temperature of the answers as deployed, from generation_config.json."),
    Metric("deployed/top_p", "", "top_p of the answers as deployed."),
    Metric("deployed/top_k", "", "top_k of the answers as deployed (0: off)."),
    Metric(
        "rewards/real", "β · nats",
        "On held-out pairs, β times how much likelier the model makes the real answer than its opponent, the model "
        "that it was trained from, does.",
    ),
    Metric("rewards/generated", "β · nats", "The same of the opponent's own answer."),
    Metric(
        "spin/margin", "β · nats",
        "`rewards/real` less `rewards/generated`: how far the model moved from the opponent's answers to the real "
        "ones. 0 of an unchanged model.",
        "more",
    ),
    Metric(
        "spin/accuracy", "share",
        "Held-out pairs whose margin is above 0; a tie counts half, so an unchanged model has 0.5. It says that the "
        "model tells real from generated answers, not that its own are good.",
        "more",
    ),
    Metric("spin/loss", "nats", "The training's loss on held-out pairs, without the anchor of `finetune.sft_weight`."),
    Metric("spin/margin_start", "β · nats", "`spin/margin` on the same pairs against θ_0.", "more"),
    Metric("spin/accuracy_start", "share", "`spin/accuracy` on the same pairs against θ_0.", "more"),
    Metric("source/NAME/rows", "rows", "Of a mix: held-out rows of this set."),
    Metric("source/NAME/METRIC", "as METRIC", "Of a mix: NLL, exact match, margin, accuracy over its held-out rows."),
)  # fmt: skip
"""Of evaluate's metrics.json."""
TRAINING = (
    Metric("step", "", "Optimiser step, from 1."),
    Metric("epoch", "epochs", "Passes over the training examples so far."),
    Metric("lr", "", "Learning rate of the step."),
    Metric("pairs", "pairs", "finetune: pairs in the step's global batch; the last step of an epoch may have fewer."),
    Metric("rows", "rows", "sft: rows in the step's global batch."),
    Metric(
        "loss", "",
        "finetune: the mean of `finetune.loss` over the step's pairs, with `finetune.sft_weight` times `nll/real`. "
        "sft: nats per token of the answers.",
        "less",
    ),
    Metric("grad_norm", "", "Norm of the gradient over all trained weights, before it is clipped."),
    Metric(
        "rewards/real", "β · nats",
        "Mean of what the loss weighs of real answers: with SPIN's own losses β times the log-ratio of model to "
        "opponent (others: docs/objectives.md). Below 0 the real answers have become less likely.",
    ),
    Metric("rewards/generated", "β · nats", "The same of the generated answers."),
    Metric(
        "rewards/accuracies", "share",
        "Pairs whose real answer has the greater reward. A tie counts as wrong here, as in the published code.",
    ),
    Metric("rewards/margins", "β · nats", "Mean of `rewards/real` less `rewards/generated`."),
    Metric("logps/real", "nats per answer", "Mean log-probability of real answers under the model in training."),
    Metric("logps/generated", "nats per answer", "Mean log-probability of generated answers under it."),
    Metric("nll/real", "nats per token", "What `finetune.sft_weight` adds to the loss, where it is set.", "less"),
)  # fmt: skip
"""Of a line of metrics.jsonl, one for each optimiser step. Over which pairs each is a mean: `SpinPairs`."""
HARNESS = (
    Metric("value", "as the task says", "The task's metric as lm_eval gives it.", "more"),
    Metric("metric", "", "Which of the task's metrics it is, with its filter: `acc_norm,none`."),
    Metric("stderr", "as `value`", "lm_eval's standard error; of a group that of the weighted mean of its tasks."),
    Metric("higher_is_better", "", "false: less is better, and the task keeps the average out of `gate.metric`."),
    Metric("rows", "items", "Items that were asked."),
    Metric("of", "items", "Items that the task has; more than `rows` under a `limit`."),
    Metric("num_fewshot", "examples", "Solved examples before each question; none where the tasks of a group differ."),
    Metric("version", "", "The task's version in lm_eval: figures of two versions do not go together."),
    Metric("prompts_sha256", "", "Hash of the prompts that were asked."),
    Metric("dataset", "", "Where the task's items came from, with the revision."),
    Metric("mean", "", "Of a group: how its tasks are averaged, by items or each alike (`subtasks`)."),
    Metric("subtasks", "", "Of a group: its tasks, each with these figures."),
)  # fmt: skip
"""Of a task in harness's results.json, under `tasks`; `average` beside it is the plain mean of the values."""


def undefined(names: Sequence[str], among: Sequence[Metric] = EVALUATE) -> list[str]:
    """Those of the names that no definition fits."""
    return [name for name in names if not any(one.fits(name) for one in among)]
