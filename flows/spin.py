"""SPIN (arXiv 2401.01335) as a DAG of cached steps. This file is the picture; README's is drawn from it.

dataset ─► reformat ─► rows ───────────────────────────────┐
base model ─► (sft) ─► θ_0                                 │
                        │                                  │
    ┌───────────── iteration t ────────────────────────────┼─────────────┐
    │  generate[shard 1..n](θ_t, prompts) ─► gather ─► pairs_t           │
    │  score(θ_t, pairs_t), score(θ_t, pairs_{t−1}) ─► opponent's logps  │
    │  finetune(θ_t, pairs_t, pairs_{t−1}, logps) ─► θ_{t+1}             │
    │  evaluate(θ_{t+1}) ─► metrics                                      │
    └────────────────────────────────────────────────────────────────────┘
                                └──► report
"""

from __future__ import annotations

from flows.approval import approved
from tasks.demo import demo_model, demo_rows
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.gather import gather
from tasks.generate import generate
from tasks.reformat import reformat
from tasks.report import report
from tasks.run import Run
from tasks.score import score
from tasks.sft import sft, sft_instead


def dag(run: Run):
    """The steps in order. `run` executes them, or in a plan only looks them up; a step's result is a future, or in a
    plan a reference."""
    cfg = run.config
    dataset, model = sources(run)
    rows = reformat(run, *dataset)
    theta = start = sft(run, model, rows) if cfg.sft else model
    table = Table()
    table.add("θ_0", "start", evaluate(run, "θ_0", theta, rows), trained=start if cfg.sft else None)
    # Submitted before the iterations: they need θ_0 only, so with runtime.workers above 1 they run beside them.
    controls = [sft_instead(run, start, rows, n + 1) for n in range(cfg.iterations) if cfg.control]
    pairs: list = []
    for t in range(cfg.iterations):
        if t and not approved(run, t, table):
            break
        theta = iteration(run, t, theta, rows, pairs, table)
    for n, instead in enumerate(controls, 1):
        label = f"SFT instead of {n} iter"
        table.add(label, "control", evaluate(run, label, instead, rows), trained=instead)
    return report(run, table.lines, table.inputs)


def iteration(run: Run, t: int, opponent, rows, pairs: list, table: Table):
    """θ_t plays against itself and becomes θ_{t+1}. `pairs` holds the pair sets of all iterations so far and gets
    this one's."""
    answers = generate(run, t, opponent, run.shards(rows))
    pairs.append(gather(run, t, rows, answers))
    first = max(0, t + 1 - run.config.history)
    recent = pairs[first:]
    logps = [score(run, t, opponent, p, of=first + i) for i, p in enumerate(recent)]
    theta = finetune(run, t, opponent, recent, logps)
    metrics = evaluate(run, f"θ_{t + 1}", theta, rows, recent[-1], logps[-1], t)
    table.add(f"θ_{t + 1}", "iteration", metrics, trained=theta, pairs=recent[-1], iteration=t)
    return theta


class Table:
    """The lines of the report and what they read."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.inputs: dict[str, list] = {"evaluate": [], "finetune": [], "gather": []}

    def add(self, label: str, kind: str, metrics, trained=None, pairs=None, iteration: int = -1) -> None:
        line = {"label": label, "kind": kind, "iteration": iteration}
        for name, made in (("evaluate", metrics), ("finetune", trained), ("gather", pairs)):
            line[name] = -1 if made is None else len(self.inputs[name])
            self.inputs[name] += [] if made is None else [made]
        self.lines.append(line)


def sources(run: Run) -> tuple[list, object]:
    """The dataset (with its held-out set, where that is one of its own) and the model that everything starts from."""
    part, start = run.config.dataset, run.config.model
    if part.path == "builtin:tasks":
        dataset = [demo_rows(run, "train"), demo_rows(run, "test")]
    else:
        held_out = part.test_path or (part.path if part.test_split else "")
        paths = [(part.path, part.split), (held_out, part.test_split)]
        dataset = [run.source(path, "dataset", part.revision, split=split) for path, split in paths if path]
    builtin = start.path == "builtin:tiny-llama"
    return dataset, demo_model(run) if builtin else run.source(start.path, "model", start.revision)
