"""SPIN (arXiv 2401.01335) as a DAG of cached steps. This file is the picture; README's is drawn from it.

dataset ─► reformat ─► rows ─► tokenize ─► tokens ─────────┐
base model ─► (sft(tokens)) ─► θ_0                         │
                        │                                  │
    ┌───────────── iteration t ────────────────────────────┼─────────────┐
    │  generate[shard 1..n](θ_t, prompts) ─► gather ─► pairs_t           │
    │  score(θ_t, pairs_t), score(θ_t, pairs_{t−1}) ─► opponent's logps  │
    │  finetune(θ_t, pairs_t, pairs_{t−1}, logps) ─► θ_{t+1}             │
    │  evaluate, harness(θ_{t+1}) ─► metrics ─► gate: go on, stop, best  │
    └────────────────────────────────────────────────────────────────────┘
                                └──► report

A run may begin at a later θ_t, and have pairs_t imported (`start:` in a profile): these are steps of their own. Pairs
that come as text are tokenized once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows.approval import approved
from spin_core.config.dataset import Source
from spin_core.job import Place
from spin_core.sources.resolve import SourceKind
from spin_core.stages.reformat import inputs_of
from tasks.builtin_rows import builtin_rows
from tasks.demo_model import demo_model
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.gate import gate, goes_on
from tasks.gather import gather
from tasks.generate import generate
from tasks.harness import harness
from tasks.import_model import import_model
from tasks.import_pairs import import_pairs
from tasks.reformat import reformat
from tasks.report import Table, report
from tasks.runner.run import Run
from tasks.score import score
from tasks.sft import sft, sft_instead
from tasks.tokenize import tokenize, tokenize_pairs


def dag(run: Run):
    """The steps in order. `run` executes them, or in a plan only looks them up; a step's result is a future, or in a
    plan a reference."""
    cfg, first = run.config, run.config.start.iteration
    dataset, model, published = sources(run)
    rows = Rows(reformat(run, dataset), run.tokenizer(model))
    rows.tokens = tokenize(run, rows.texts, rows.tokenizer)
    theta = start = import_model(run, first, model) if first else sft(run, model, rows.tokens) if cfg.sft else model
    table = Table()
    begun = measured(run, f"θ_{first}", Place("start", model=first), theta, rows)
    table.add(f"θ_{first}", "start", **begun, finetune=start if cfg.sft else None)
    read = (rows.texts, rows.tokens, rows.tokenizer)
    pairs = {t: import_pairs(run, t, source, *read) for t, source in published.items()}
    controls: list = []
    for t in range(first, cfg.iterations):
        if t > first and not (goes_on(run, table.inputs["gate"][-1]) and approved(run, t, table)):
            break
        if cfg.control:  # needs θ_0 only, so with runtime.workers above 1 it runs beside the iteration
            controls.append(sft_instead(run, start, rows.tokens, t + 1))
        theta = iteration(run, t, theta, rows, pairs, table, start)
    for n, instead in enumerate(controls, 1):
        label, place = f"SFT instead of {n} iter", Place("control", first + n - 1)
        table.add(label, "control", **measured(run, label, place, instead, rows), finetune=instead)
    return report(run, table)


@dataclass
class Rows:
    """What every iteration reads: the rows as text, the tokenizer's files, and the rows' tokens."""

    texts: Any
    tokenizer: Any
    tokens: Any = None


def iteration(run: Run, t: int, opponent, rows: Rows, pairs: dict, table: Table, start):
    """θ_t plays against itself and becomes θ_{t+1}. `pairs` holds the pair sets of all iterations so far and those that
    are imported, and gets this one's."""
    if t not in pairs:
        pairs[t] = gather(run, t, rows.texts, rows.tokens, generate(run, t, opponent, run.shards(rows.tokens)))
    seen = range(max(0, t + 1 - run.config.history), t + 1)
    recent = [tokens_of(run, t, pairs[i], rows, of=i) for i in seen]
    logps = [score(run, t, opponent, tokens, of=i) for i, tokens in zip(seen, recent, strict=True)]
    theta = finetune(run, t, opponent, recent, logps)
    game = {"pairs": recent[-1], "logps": logps[-1], "start": start if t > run.config.start.iteration else None}
    made = measured(run, f"θ_{t + 1}", Place("iteration", t, model=t + 1), theta, rows, t, **game)
    decision = gate(run, t, table.players(**made))
    table.add(
        f"θ_{t + 1}", "iteration", **made, finetune=theta, gather=pairs[t], gate=decision, score=logps[-1], iteration=t
    )
    return theta


def tokens_of(run: Run, t: int, pairs, rows: Rows, of: int):
    """The tokens of the pairs of iteration `of`, as iteration `t` reads them: those that were sampled; but of imported
    pairs, of answers that were sampled under another prompt, and for the published code's way, those of their text."""
    cfg = run.config.at(t)
    exact = cfg.chat.template == "model" and cfg.finetune.collation == "exact"
    sampled = exact and (of not in run.config.start.pairs or run.has_tokens(pairs))
    return pairs if sampled else tokenize_pairs(run, t, pairs, rows.tokenizer, of)


def measured(run: Run, label: str, place: Place, model, rows: Rows, t: int = 0, **game) -> dict:
    """A model on the held-out rows, and on the harness's tasks if the profile has some."""
    made = {"evaluate": evaluate(run, label, place, model, rows.texts, rows.tokens, t, **game)}
    return made | ({"harness": harness(run, label, place, model)} if run.config.harness else {})


def sources(run: Run) -> tuple[dict, Any, dict]:
    """The dataset's sets (and their own held-out sets), the model that all starts from, imported pairs by iteration."""
    start, first = run.config.model, run.config.start
    parts = run.config.dataset.parts.items()
    dataset = dict(one for name, part in parts for one in zip(inputs_of(name), rows_of(run, part), strict=False))
    published = {t: run.source(place, "pairs") for t, place in sorted(first.pairs.items())}
    kind: SourceKind = "checkpoint" if first.iteration else "model"
    model = demo_model(run) if start.path == "builtin:tiny-llama" else run.source(start.path, kind, start.revision)
    run.deployed = run.deployment(model)
    return dataset, model, published


def rows_of(run: Run, part: Source) -> list:
    """One set, and its held-out set where that is one of its own."""
    return builtin_rows(run, part.path) or [
        run.source(path, "dataset", part.revision, split, part.config) for path, split in part.places
    ]
