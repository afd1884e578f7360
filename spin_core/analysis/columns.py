"""What each column of the pages' tables says, in a newcomer's words: the tooltips and keys of the pages, and the lists
at the end of docs/metrics.md, are made from here.

Is not: the definition of a figure (`spin_core.analysis.definitions`, whose names stand in backticks here).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NAME = "NAME"
"""Stands for a column that is named after a model, a run or a task."""
DECODER = re.compile(r",? (?:at )?T = [\d.]+$|,? as deployed$|, greedy$")

COLUMNS = {
    "model": "θ_0 is the model that SPIN starts from; iteration 0 makes θ_1 of it, iteration 1 makes θ_2 of that. The "
    "other lines are controls: what SPIN is compared with, for example the same number of further SFT steps.",
    "model, decoder": "A model, and how its answers were drawn: greedy (always the likeliest token), or sampled at a "
    "temperature. The real answers are there to compare with.",
    "model, set": "A model, and one of the sets that the dataset is a mix of.",
    "EM greedy": "Exact match: share of the held-out prompts whose answer is right, that is agrees with the real one "
    "by `evaluate.exact_match`, when the model always takes the likeliest token. More is better; small print: 95 % "
    "interval. `exact_match/greedy`",
    "EM sampled": "Exact match of answers that are sampled at temperature 1. More is better; small print: 95 % "
    "interval. `exact_match/sampled`",
    "EM": "Exact match: share of the held-out prompts whose answer is right, that is agrees with the real one by "
    "`evaluate.exact_match`. More is better; small print: 95 % interval. `exact_match/KIND`",
    "Δ EM": "Change of exact match since θ_0. Small print: held-out rows that were wrong at θ_0 and are right now "
    "(gained), the reverse (lost), and the change's 95 % interval over the same rows.",
    "NLL": "How surprised the model is by the held-out real answers: negative log-likelihood per token, in nats. Less "
    "is better, but SPIN does not train for it and may raise it a little. `nll/real`",
    "Δ NLL": "Change of NLL since θ_0. Small print: 95 % interval over the same rows; it holds 0 where chance alone "
    "would do.",
    "decision": "What the gate decided when the iteration had ended: continue, stop (nothing moves any more), keep "
    "best (it got worse) or alarm (signs of a collapse). Small print: the change against the best model before, in the "
    "metric that the gate goes by, with its interval.",
    "margin": "How much more the model prefers the real answers to the generated ones than the model that it was "
    "trained from does, on held-out prompts. 0: did not move; more is better. Small print: 95 % interval. "
    "`spin/margin`",
    "accuracy": "Share of held-out pairs in which it prefers the real answer more than the model that it was trained "
    "from does. 0.5: did not move; 1: tells all apart; where the loss is near 0, too, little is left to learn. "
    "Small print: 95 % interval. `spin/accuracy`",
    "margin, θ_0": "The same as margin, but against θ_0 instead of the model that it was trained from. "
    "`spin/margin_start`",
    "accuracy, θ_0": "The same as accuracy, but against θ_0 instead of the model that it was trained from. "
    "`spin/accuracy_start`",
    "reward, real": "The part of the margin that is of real answers: above 0, the model has made them likelier. Often "
    "a little below 0; far below, the model is losing the real answers too. `rewards/real`",
    "reward, generated": "The part of the margin that is of the opponent's answers: below 0, the model has made them "
    "less likely, as SPIN wants. `rewards/generated`",
    "loss": "The loss of the training on held-out pairs. With SPIN's own loss 0.693 is a model that did not move; near "
    "0 there is nothing left to learn from such pairs. `spin/loss`",
    "same answers": "Share of the held-out prompts that the model answers, greedily, word for word as the model before "
    "it did. Near 100 %: the iteration changed little.",
    "length": "Mean tokens of an answer. Small print: the change since θ_0 on the same rows, with its 95 % interval. "
    "`length/KIND_tokens`",
    "of real": "The length of the answers as a multiple of that of the real answers: 1 is as long. Small print: 95 % "
    "interval. `length/KIND_ratio`",
    "never ends": "Share of the answers that were still going on at `evaluate.max_new_tokens`. Less is better; small "
    "print: 95 % interval. `truncated/KIND`",
    "empty": "Share of the answers without text. Small print: 95 % interval; of training pairs, the further rows that "
    "were rejected, as their prompt leaves no room for an answer. `empty/KIND`",
    "loops": "Share of the answers that go round in circles: over a fifth of their pairs of neighbouring words were "
    "there before. Less is better; small print: 95 % interval. `loops/KIND`",
    "repetition": "Share of an answer's runs of four tokens (4-grams) that it had already; the mean over answers. Less "
    "is better; small print: 95 % interval. `repetition/KIND`",
    "distinct runs": "Share of all runs of three words that differ from one another, over all answers: low where "
    "answers are alike. Compare with the real answers. Small print: 95 % interval. `distinct_runs/KIND`",
    "distinct 1 · 2": "Different tokens, and different pairs of neighbouring tokens, as shares of all: low where "
    "answers are alike. It falls with the number of answers, so compare models, not runs. `distinct_1/KIND`, "
    "`distinct_2/KIND`",
    "answers": "Answers generated for the training prompts. Small print: further ones that were not picked.",
    "pairs": "Pairs of a real and a generated answer that were trained on.",
    "no wrong answer": "Share of the prompts to which every generated answer is right by `gather.verifier`: they give "
    "no pair. Small print: prompts whose answers it cannot judge.",
    "identical": "Share of the generated answers that are the real answer: such a pair teaches nothing. High: the "
    "model has learnt what these answers can teach, or `generate.temperature` is low.",
    "truncated": "Share of the generated answers that were still going on at `generate.max_new_tokens`. High: raise "
    "that, or the model learns from answers that were cut.",
    "repeated": "Share of the generated answers whose text another prompt got too. High: the model answers without "
    "looking at the prompt.",
    "tokens": "Where the ids of the generated answers are from: `sampled` as the model wrote them, or `of "
    "the text` where they were made again from it, which may split it in another way.",
    "cut": "Share of the rows that were too long and lost a part: prompts by `chat.max_prompt_length`, real and "
    "generated answers by `finetune.max_length`.",
    "length, real": "Mean characters of the real answers.",
    "length, generated": "Mean characters of the generated answers. Far from the real ones: length alone tells the two "
    "apart.",
    "held out": "Held-out rows of this set of the mix. Sets differ in how hard they are: compare a set with itself.",
}
"""The report's tables of models. `margin, θ_0` is named after the run's start. In small print: an interval."""
TASKS = {
    "task": "A task of lm-evaluation-harness. Small print: its metric, the solved examples before each question "
    "(shots), and how many questions were asked.",
    NAME: "This model's score on each task ± its standard error, as the harness reports both; average: the plain mean "
    "of the tasks.",
}
"""The report's table of harness."""
RUN = {
    "stage": "A kind of step: docs/stages.md says what each does.",
    "steps": "Steps of this stage in the run.",
    "cached": "Steps whose result was in the store already, so that they were not computed again.",
    "took": "Time of the steps that were computed now; steps side by side count each their own.",
    "time, cached": "Time that the cached steps took when they were computed.",
    "tokens": "Tokens generated, trained on or scored, of cached steps too.",
    "GPU hours": "GPU time of the steps that were computed now.",
    "GPU hours, cached": "GPU time that the cached steps took when they were computed.",
    "step": "A step of the run, and its stage.",
    "state": "ran: computed now; cached: its result was in the store already.",
    "key": "What the step depends on, as a hash: settings, inputs, the stage's version. The same key is the same step. "
    "`spinloop store show KEY` prints the record behind it.",
    "artifact": "Hash of the step's output: the same hash is the same bytes.",
    "setting": "A setting of the profile: docs/settings.md says what each does.",
    "iteration": "Number of the iteration, from 0.",
    "all others": "The setting in all other iterations.",
    "this one": "The setting in this iteration.",
    "this run": "The setting in this run.",
    NAME: "The setting in the preset that the run is compared with.",
}
"""The report's part on its run: costs, steps, settings."""
WATCH = {
    "rows": "Rows of the dataset by what they are for, or what became of them.",
    "text": "The text whose length it is: prompts or answers.",
    "before": "As the last run that trained had it.",
    "now": "As the dataset is now.",
    "new": "Prompts that were not there before.",
    "gone": "Prompts that are there no more.",
    "edited": "Prompts that were there, with another answer.",
}
LENGTHS = {
    "min": "The shortest text.",
    "10 %": "One text in ten is at most this long.",
    "median": "Half of the texts are at most this long.",
    "90 %": "Nine texts in ten are at most this long.",
    "99 %": "99 texts in a hundred are at most this long.",
    "max": "The longest text.",
}
"""With WATCH and DATA: lengths of texts."""
COMPARE = {
    "metric": "The figure that is compared: the columns of a run's report explain each.",
    "difference": "The second run less the first, over the held-out rows that both answered. ▲ clearly better, ▼ "
    "clearly worse, ≈ within what chance gives. Small print: 95 % interval (bootstrap over rows), and the number of "
    "rows.",
    "setting": "A setting that differs: docs/settings.md says what each does.",
    "cost": "What all steps took when they were computed, and how much of it was cached and so not computed again.",
    NAME: "This run.",
}
SWEEP = {
    "variant": "The settings in which this variant differs from the others. Small print: the model that is compared.",
    "variants": "Two variants; the better one stands first.",
    "harness": "Average of the tasks of lm-evaluation-harness. More is better.",
    **{name: COLUMNS[name] for name in ("NLL", "EM greedy", "EM sampled", "EM", "repetition")},
    "to the best": "The variant's first figure less that of the best one. `clearly` is said where the "
    "gate's test on the same rows says so at a confidence raised for the number of pairs, and every seed agrees.",
    "alarms": "Runs of this variant, one for each seed, whose gate raised an alarm (signs of a collapse): read its "
    "report.",
    "difference": "The first less the second by the first figure, over the same held-out rows. Small print: its "
    "interval.",
    "seeds that agree": "Training seeds with which the first is the better one, of those that both ran with.",
    "better": "Whether the difference is clear, or within what chance gives.",
    "setting": "A setting of the sweep and one of its values.",
    "mean": "The mean over all variants with that value, whatever their other settings.",
}
"""Small print of a figure: 95 % intervals over rows, and over seeds."""
EVALUATION = {
    "run, model": "A run, and one of its models.",
    "made": "The day on which the model came into the store (UTC).",
    **{name: COLUMNS[name] for name in ("EM", "NLL", "margin", "accuracy", "never ends", "loops", "repetition")},
    "tokens": "Mean tokens of an answer. `length/KIND_tokens`",
    "harness": "Plain mean of the tasks of lm-evaluation-harness. More is better.",
    NAME: "Score on this task, as lm-evaluation-harness reports it. Small print: 95 % interval, questions asked.",
}
COSTS = {
    "profile": "Name of a profile: all of its runs.",
    "stage": "A kind of step: docs/stages.md says what each does.",
    "week of": "The Monday on which the week begins (UTC).",
    "executions": "How often runs were started. An execution counts for each stage that it has.",
    "steps ran": "Steps that were computed.",
    "cached": "Steps whose result was in the store already, so that they were not computed again.",
    "GPU hours": "GPU time of what was computed.",
    "hours on CPU": "Hours on CPU of what was computed.",
    "hours saved": "What the cached steps took when they were computed, each time anew. Small print: their share of "
    "what all steps would have taken.",
    "tokens": "Tokens generated, trained on and scored, together.",
    "tokens saved": "The same of the cached steps.",
    "disk": "Bytes in the store of the outputs that the profile's runs lead to.",
}
DATA = {
    "text": WATCH["text"],
    "set": "One of the sets that the dataset is a mix of.",
    "to train on": "Rows of the set that are trained on.",
    "held out": "Rows of the set that are kept for evaluation and never trained on.",
    "not drawn": "Rows that the set's share of the mix leaves over.",
    "column": "A column of the files.",
    "used as": "What spinloop reads the column as.",
    "filled": "Rows in which the column holds something.",
    "as dataset.columns says it": "The layout in which rows were read, as the setting would name it.",
    "rows": "How many rows.",
    "file": "A file of the dataset.",
    "use": "What its rows are for.",
    "rows, or why not read": "How many rows it holds; of a file that is not read, why.",
}
MARKS = {"–": "Not measured, or not a finite number.", "★": "The best model of the run, by the gate."}
"""Signs in the lines."""
PAGES = {
    "report, figures of the models": COLUMNS,
    "report, harness": TASKS,
    "report, the run": RUN,
    "report, what is new in the dataset": WATCH | LENGTHS,
    "spinloop compare": COMPARE,
    "spinloop sweep": SWEEP,
    "spinloop evaluate": EVALUATION,
    "spinloop costs": COSTS,
    "spinloop data": DATA | LENGTHS,
}
"""Page → its columns, in the order of docs/metrics.md."""


def column_text(head: str, texts: Mapping[str, str]) -> str:
    """What the column says, by its head without the name of a decoder; empty where no text is there."""
    return next((texts[name] for name in (head, DECODER.sub("", head), NAME) if name in texts), "")
