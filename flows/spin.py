"""SPIN (arXiv 2401.01335) as a DAG of cached steps. This file is the picture; README's is drawn from it.

dataset ─► reformat ─► rows ───────────────────────────────┐
base model ─► (sft) ─► θ_0                                 │
                        │                                  │
    ┌───────────── iteration t ────────────────────────────┼─────────────┐
    │  generate[shard 1..n](θ_t, prompts) ─► gather ─► pairs_t           │
    │  score(θ_t, pairs_t), score(θ_t, pairs_{t−1}) ─► opponent's logps  │
    │  finetune(θ_t, pairs_t, pairs_{t−1}, logps) ─► θ_{t+1}             │
    │  evaluate, harness(θ_{t+1}) ─► metrics ─► gate: go on, stop, best  │
    └────────────────────────────────────────────────────────────────────┘
                                └──► report
"""

from __future__ import annotations

from flows.approval import approved
from tasks.demo import demo_model, demo_rows
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.gate import gate, goes_on
from tasks.gather import gather
from tasks.generate import generate
from tasks.harness import harness
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
    table.add("θ_0", "start", **measured(run, "θ_0", theta, rows), finetune=start if cfg.sft else None)
    pairs: list = []
    controls: list = []
    for t in range(cfg.iterations):
        if t and not (goes_on(run, table.inputs["gate"][-1]) and approved(run, t, table)):
            break
        if cfg.control:  # needs θ_0 only, so with runtime.workers above 1 it runs beside the iteration
            controls.append(sft_instead(run, start, rows, t + 1))
        theta = iteration(run, t, theta, rows, pairs, table, start)
    for n, instead in enumerate(controls, 1):
        label = f"SFT instead of {n} iter"
        table.add(label, "control", **measured(run, label, instead, rows), finetune=instead)
    return report(run, table.lines, table.inputs)


def iteration(run: Run, t: int, opponent, rows, pairs: list, table: Table, start):
    """θ_t plays against itself and becomes θ_{t+1}. `pairs` holds the pair sets of all iterations so far and gets
    this one's."""
    answers = generate(run, t, opponent, run.shards(rows))
    pairs.append(gather(run, t, rows, answers))
    first = max(0, t + 1 - run.config.history)
    recent = pairs[first:]
    logps = [score(run, t, opponent, p, of=first + i) for i, p in enumerate(recent)]
    theta = finetune(run, t, opponent, recent, logps)
    made = measured(run, f"θ_{t + 1}", theta, rows, t, pairs=recent[-1], logps=logps[-1], start=start if t else None)
    decision = gate(run, t, table.players(**made))
    table.add(f"θ_{t + 1}", "iteration", **made, finetune=theta, gather=recent[-1], gate=decision, iteration=t)
    return theta


def measured(run: Run, label: str, model, rows, t: int = 0, **game) -> dict:
    """A model on the held-out rows, and on the harness's tasks if the profile has some."""
    made = {"evaluate": evaluate(run, label, model, rows, t, **game)}
    return made | ({"harness": harness(run, label, model)} if run.config.harness else {})


class Table:
    """The lines of the report and what they read."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.inputs: dict[str, list] = {name: [] for name in ("evaluate", "harness", "finetune", "gather", "gate")}

    def add(self, label: str, kind: str, iteration: int = -1, **made) -> None:
        line = {"label": label, "kind": kind, "iteration": iteration}
        for name, read in self.inputs.items():
            line[name] = -1 if made.get(name) is None else len(read)
            read += [] if made.get(name) is None else [made[name]]
        self.lines.append(line)

    def players(self, **newest) -> dict[str, list]:
        """What was made of θ_0 and its successors, not of the controls, and at the end of the newest."""
        lines = [line for line in self.lines if line["kind"] != "control"]
        return {name: [*(self.inputs[name][line[name]] for line in lines), one] for name, one in newest.items()}


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
