"""What the iterations of a run share: rows, models, pair sets and scores so far; and what the training of one reads.

Is not: the order of the steps, which `flows/spin.py` has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spin_core.config.finetune import own_first, score_settings
from tasks.runner.run import Run
from tasks.score import score
from tasks.tokenize import tokenize_pairs


@dataclass
class Rows:
    """What every iteration reads: the rows as text, the tokenizer's files, and the rows' tokens."""

    texts: Any
    tokenizer: Any
    tokens: Any = None


@dataclass
class Iterations:
    """By iteration: the models so far and their pair sets (these may be imported); and by model, pairs and
    settings what was scored so far: the pairs' tokens, and their score."""

    models: dict[int, Any]
    pairs: dict[int, Any]
    scores: dict[Any, tuple[Any, Any]] = field(default_factory=dict)


def training_inputs(run: Run, t: int, rows: Rows, so_far: Iterations) -> tuple[list, list, Any]:
    """The tokens of the pair sets that iteration `t` trains on, oldest first; the scores that its loss names, each
    computed once in a run; and where it reads θ_0's answers, the tokens of the pairs that have them.

    Of a model's scores that of its own pairs comes first; those of other sets take the real answers from it."""
    cfg = run.config.at(t)
    sets, reads_first = run.config.sets(t), cfg.finetune.wants_first and t > 0
    read = sets if 0 in sets or not reads_first else [0, *sets]
    tokens = {i: tokens_of(run, t, so_far.pairs[i], rows, of=i) for i in read}
    how, wanted = score_settings(cfg.finetune), run.config.scored(t)
    for by, of in own_first(wanted):
        if (by, of, how) not in so_far.scores:
            newest = so_far.scores.get((by, by, how))
            made = score(run, t, so_far.models[by], tokens[of], by=by, of=of, newest=newest)
            so_far.scores[by, of, how] = (tokens[of], made)
    logps = [so_far.scores[by, of, how][1] for by, of in wanted]
    return [tokens[i] for i in sets], logps, tokens[0] if reads_first else None


def tokens_of(run: Run, t: int, pairs, rows: Rows, of: int):
    """The tokens of the pairs of iteration `of`, as iteration `t` reads them: those that were sampled; but of imported
    pairs, of answers that were sampled under another prompt, and for the published code's way, those of their text."""
    cfg = run.config.at(t)
    exact = cfg.chat.template == "model" and cfg.finetune.collation == "exact"
    sampled = exact and (of not in run.config.start.pairs or run.has_tokens(pairs))
    return pairs if sampled else tokenize_pairs(run, t, pairs, rows.tokenizer, of)
