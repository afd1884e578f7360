"""One thin Prefect task per stage, in the order of the DAG: what it reads, its label, its retries. How a stage computes
is in spin_core/stages/."""

from __future__ import annotations

import json
from typing import Any

from spin_core.config.score import score_settings
from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.sources.references import Ref, is_here, origin
from spin_core.sources.resolve import is_local
from spin_core.stages import demo_model as demo_model_stage
from spin_core.stages import demo_rows as demo_rows_stage
from spin_core.stages import evaluate as evaluate_stage
from spin_core.stages import finetune as finetune_stage
from spin_core.stages import gate as gate_stage
from spin_core.stages import gather as gather_stage
from spin_core.stages import generate as generate_stage
from spin_core.stages import harness as harness_stage
from spin_core.stages import import_model as import_model_stage
from spin_core.stages import import_pairs as import_pairs_stage
from spin_core.stages import reformat as reformat_stage
from spin_core.stages import report as report_stage
from spin_core.stages import score as score_stage
from spin_core.stages import sft as sft_stage
from spin_core.store import keys
from tasks.runner.planning import Pending
from tasks.runner.pools import Batch
from tasks.runner.run import Run
from tasks.runner.shards import per_task, submit
from tasks.runner.stage import stage

BATCH = 1000  # shards of one flow run at most: Prefect takes 512 kB of parameters, and a shard is 400 bytes of them


@stage
def demo_rows(run: Run, split: str):
    """The demo's dataset of small tasks, one split."""
    return Step(demo_rows_stage, split, demo_rows_stage.Config(seed=run.config.seed, split=split)), {}


@stage
def demo_model(run: Run):
    """The untrained model that the demo starts from."""
    return Step(demo_model_stage, "", demo_model_stage.Config(seed=run.config.seed), Place("start", model=0)), {}


@stage
def reformat(run: Run, source, test_source=None):
    """The dataset to rows and shards of prompts."""
    config = reformat_stage.Config(dataset=reformat_stage.anonymous(run.config.dataset), seed=run.config.seed)
    reads = {"source": source} | ({"test_source": test_source} if test_source else {})
    return Step(reformat_stage, "", config), reads


def import_model(run: Run, t: int, source: Ref):
    """θ_t from outside the store, for a run that begins at iteration t: the artifact that `source` names, or a copy."""
    return copied(run, t, source) if source.path else source


@stage
def copied(run: Run, t: int, source: Ref):
    label, place = f"θ_{t}, {origin(source)}", Place("import", model=t)
    return Step(import_model_stage, label, import_model_stage.Config(), place), {"source": source}


@stage
def import_pairs(run: Run, t: int, source, rows):
    """A published pair set, in place of an iteration's own."""
    label, place = f"iter {t}, {origin(source)}", Place("import", t)
    return Step(import_pairs_stage, label, import_pairs_stage.Config(), place), {"source": source, "rows": rows}


@stage
def sft(run: Run, base, rows):
    """A base model to θ_0."""
    cfg = run.config
    config = sft_stage.Config(sft=cfg.sft, chat=cfg.chat, seed=cfg.seed)
    return Step(sft_stage, "θ_0", config, Place("start", model=0)), {"model": base, "rows": rows}


@stage
def sft_instead(run: Run, start, rows, iterations: int):
    """To compare, θ_0 trained on by SFT instead of SPIN: as many passes as SPIN's first `iterations` took over each
    row's pairs, in batches of the same size.

    So as many optimiser steps, up to the rounding of a last partial batch (the report says when the two differ).
    """
    cfg = run.config
    assert cfg.control
    passes = sum(cfg.epochs(t) * min(t + 1, cfg.history) for t in range(iterations))
    part = cfg.control.model_copy(update={"epochs": passes, "global_batch": cfg.finetune.global_batch})
    config = sft_stage.Config(sft=part, chat=cfg.chat, seed=cfg.seed)
    step = Step(sft_stage, f"instead of {iterations} iter", config, Place("control", iterations - 1))
    return step, {"model": start, "rows": rows}


def generate(run: Run, t: int, opponent, prompts: list) -> list:
    """Shards of prompts to the opponent's answers. On a work pool the shards are dealt out to `runtime.generate_runs`
    flow runs."""
    cfg, n = run.config.at(t), len(prompts)
    config = generate_stage.Config(generate=cfg.generate, chat=cfg.chat, seed=cfg.seed)
    every = Step(generate_stage, f"iter {t}", config, Place("iteration", t))
    steps = [
        Step(generate_stage, f"iter {t}, shard {i}/{n}", config, Place("iteration", t, shard=(i, n)))
        for i in range(1, n + 1)
    ]
    shards = list(zip(steps, prompts, strict=True))
    count = max(run.config.runtime.generate_runs, -(-n // BATCH))
    if per_task(n) > 1 and not run.planning:
        return submit(run, every, opponent, shards, count)
    there = all(isinstance(prompt, Ref) for prompt in prompts)  # in a plan the rows may still be to be made
    batches = [Batch(shards[i::count]) for i in range(count)] if there else [None]
    return [
        answers(run, opponent, step, prompt, batch=batches[i % len(batches)]) for i, (step, prompt) in enumerate(shards)
    ]


@stage
def answers(run: Run, opponent, step: Step, prompt):
    return step, {"model": opponent, "prompts": prompt}


@stage
def gather(run: Run, t: int, rows, answers: list):
    """The shards of answers to one pair set."""
    step = Step(gather_stage, f"iter {t}", gather_stage.Config(gather=run.config.at(t).gather), Place("iteration", t))
    return step, {"rows": rows, "answers": answers}


@stage
def score(run: Run, t: int, opponent, pairs, of: int):
    """The opponent's log-probs of one pair set."""
    cfg = run.config.at(t)
    config = score_stage.Config(score=score_settings(cfg.finetune), chat=cfg.chat)
    step = Step(score_stage, f"iter {t}, pairs {of}", config, Place("iteration", t, pairs=of))
    return step, {"model": opponent, "pairs": pairs}


@stage
def finetune(run: Run, t: int, opponent, pairs: list, logps: list):
    """θ_t to θ_{t+1}."""
    cfg = run.config.at(t)
    config = finetune_stage.Config(finetune=cfg.finetune, chat=cfg.chat, seed=cfg.seed)
    step = Step(finetune_stage, f"iter {t}", config, Place("iteration", t, model=t + 1))
    return step, {"model": opponent, "pairs": pairs, "logps": logps}


@stage
def evaluate(run: Run, label: str, place: Place, model, rows, t: int = 0, pairs=None, logps=None, start=None):
    """A model's metrics on the held-out rows; with the pairs it was trained on, against its opponent."""
    cfg = run.config.at(t)
    part = cfg.finetune
    against = part.model_dump(include={"beta", "loss", "length_normalised"}) if pairs else {}
    how = score_settings(part) if pairs else score_settings(part).model_copy(update={"quantize": "none"})
    config = evaluate_stage.Config(evaluate=cfg.evaluate, chat=cfg.chat, score=how, seed=cfg.seed, **against)
    game = {"pairs": pairs, "logps": logps, "start": start}
    reads = {"model": model, "rows": rows} | {name: one for name, one in game.items() if one is not None}
    return Step(evaluate_stage, label, config, place), reads


@stage
def harness(run: Run, label: str, place: Place, model):
    """A model on benchmark tasks of lm-evaluation-harness."""
    part = run.config.harness
    assert part
    # Once for all models of the run: a folder that is edited meanwhile would give them different questions.
    first = next((ref for kind, ref, _ in run.sources if kind == "tasks"), None)
    local = {"tasks": first or run.source(part.include_path, "tasks")} if part.include_path else {}
    return Step(harness_stage, label, harness_stage.Config(harness=part), place), {"model": model, **local}


@stage
def gate(run: Run, t: int, players: dict[str, list]):
    """The decision after an iteration. The one step whose output the DAG itself reads."""
    config = gate_stage.Config(gate=run.config.gate, seed=run.config.seed, first=run.config.start.iteration)
    return Step(gate_stage, f"iter {t}", config, Place("iteration", t)), players


def goes_on(run: Run, decision) -> bool:
    """Whether the next iteration is to run. Waits for the decision only if there is a policy that stops."""
    how = run.config.gate
    if "stop" not in (how.fixed_point, how.worse, how.alarm) or isinstance(decision, Pending):
        return True
    ref = decision if run.planning else decision.result()
    made = json.loads((run.store.tree(ref.digest) / "decision.json").read_text(encoding="utf-8"))
    if not made["go_on"] and not run.planning:
        run.stopped = made["reason"]
        run.progress.step(f"stops   after “{made['outcome']}”, as the profile's gate has it", None)
    return made["go_on"]


class Table:
    """The lines of the report and what they read, collected while the DAG is laid out."""

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


@stage
def report(run: Run, table: Table, label: str = ""):
    """The table of iterations, the curves and sample answers."""
    profile: dict[str, Any] = keys.config_payload(run.config)
    del profile["runtime"]
    # A path of this machine would be in the key and in a page that people send on; a hub id is worth showing.
    places = (("model", "path"), ("dataset", "path"), ("dataset", "test_path"), ("harness", "include_path"))
    for section, field in places:
        place = (profile.get(section) or {}).get(field)
        if place and is_local(place, run.base_dir):
            profile[section][field] = "(local)"
    for t, place in profile.get("start", {}).get("pairs", {}).items():
        profile["start"]["pairs"][t] = "(local)" if is_here(place, run.base_dir) else place
    rows = [report_stage.RowInputs(**line) for line in table.lines]
    config = report_stage.Config(name=run.config.name, profile=profile, rows=rows)
    return Step(report_stage, label, config), table.inputs
