"""SPIN (arXiv 2401.01335) as a DAG of cached steps. This file is the picture; README's is drawn from it.

dataset ─► reformat ─► rows ─► tokenize ─► tokens ─────────┐
base model ─► (sft(tokens)) ─► θ_0                         │
                        │                                  │
    ┌───────────── iteration t ────────────────────────────┼─────────────┐
    │  generate[shard 1..n](θ_t, prompts) ─► gather ─► pairs_t           │
    │  score(θ_t, pairs_t), score(θ_t, pairs_{t−1}) ─► reference logps   │
    │  finetune(θ_t, pairs_t, pairs_{t−1}, logps) ─► θ_{t+1}             │
    │  evaluate, harness(θ_{t+1}) ─► metrics ─► gate: go on, stop, best  │
    └────────────────────────────────────────────────────────────────────┘
                                └──► report

Which models score which pairs is the loss's matter (here SPIN's; flows/training_inputs.py). A run may begin at a later
θ_t, and have pairs_t imported (`start:` in a profile): these are steps of their own. Pairs that come as text are
tokenized once more.
"""

from __future__ import annotations

from typing import Any

from flows.approval import approved
from flows.training_inputs import Iterations, Rows, training_inputs
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
from tasks.sft import sft, sft_instead
from tasks.tokenize import tokenize


def dag(run: Run):
    """The steps in order. `run` executes them, or in a plan only looks them up; a step's result is a future, or in a
    plan a reference."""
    cfg, first = run.config, run.config.start.iteration
    dataset, model, published = sources(run)
    rows = Rows(reformat(run, dataset), run.tokenizer(model))
    rows.tokens = tokenize(run, rows.texts, rows.tokenizer)
    if not run.worth_training(rows.tokens):
        return rows.tokens
    theta = start = import_model(run, first, model) if first else sft(run, model, rows.tokens) if cfg.sft else model
    table = Table()
    begun = measured(run, f"θ_{first}", Place("start", model=first), theta, rows)
    table.add(f"θ_{first}", "start", **begun, finetune=start if cfg.sft else None)
    read = (rows.texts, rows.tokens, rows.tokenizer)
    so_far = Iterations({first: theta}, {t: import_pairs(run, t, source, *read) for t, source in published.items()})
    controls: list = []
    for t in range(first, cfg.iterations):
        if t > first and not (goes_on(run, table.inputs["gate"][-1]) and approved(run, t, table)):
            break
        if cfg.control:  # needs θ_0 only, so with runtime.workers above 1 it runs beside the iteration
            controls.append(sft_instead(run, start, rows.tokens, t + 1))
        iteration(run, t, rows, so_far, table)
    for n, instead in enumerate(controls, 1):
        label, place = f"SFT instead of {n} iter", Place("control", first + n - 1)
        table.add(label, "control", **measured(run, label, place, instead, rows), finetune=instead)
    return report(run, table)


def iteration(run: Run, t: int, rows: Rows, so_far: Iterations, table: Table):
    """θ_t is trained against its own answers to θ_{t+1}; both the model and the pairs are added to `so_far`."""
    opponent, first = so_far.models[t], run.config.start.iteration
    if t not in so_far.pairs:
        answers = generate(run, t, opponent, run.shards(rows.tokens))
        so_far.pairs[t] = gather(run, t, rows.texts, rows.tokens, answers)
    recent, logps, first_answers = training_inputs(run, t, rows, so_far)
    theta = finetune(run, t, opponent, recent, logps, first_answers)
    own = logps[run.config.scored(t).index((t, t))] if logps else None
    against = {"pairs": recent[-1], "logps": own, "start": so_far.models[first] if t > first else None}
    against = against if logps else {}  # a loss without a reference has no margins
    made = measured(run, f"θ_{t + 1}", Place("iteration", t, model=t + 1), theta, rows, t, **against)
    decision = gate(run, t, table.players(**made))
    table.add(
        f"θ_{t + 1}", "iteration", **made, finetune=theta, gather=so_far.pairs[t], gate=decision, score=own, iteration=t
    )
    so_far.models[t + 1] = theta


def measured(run: Run, label: str, place: Place, model, rows: Rows, t: int = 0, **against) -> dict:
    """A model on the held-out rows, and on the harness's tasks if the profile has some."""
    made = {"evaluate": evaluate(run, label, place, model, rows.texts, rows.tokens, t, **against)}
    return made | ({"harness": harness(run, label, place, model)} if run.config.harness else {})


def sources(run: Run) -> tuple[dict, Any, dict]:
    """The dataset's sets (and their own held-out sets), the model that all starts from, imported pairs by iteration."""
    start, first = run.config.model, run.config.start
    own = start.path == "builtin:tiny-llama"
    if own:
        run.deployed = run.deployment(None)  # and the run says how it decodes, before its first step
    parts = run.config.dataset.parts.items()
    dataset = dict(one for name, part in parts for one in zip(inputs_of(name), rows_of(run, part), strict=False))
    published = {t: run.source(place, "pairs") for t, place in sorted(first.pairs.items())}
    if own:
        return dataset, demo_model(run), published
    kind: SourceKind = "checkpoint" if first.iteration else "model"
    model = run.source(start.path, kind, start.revision)
    run.deployed = run.deployment(model)
    return dataset, model, published


def rows_of(run: Run, part: Source) -> list:
    """One set, and its held-out set where that is one of its own."""
    return builtin_rows(run, part.path) or [
        run.source(path, "dataset", part.revision, split, part.config) for path, split in part.places
    ]
