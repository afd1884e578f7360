"""Made-up evaluate, model and pairs trees with the files that the stages write, for the report's tests and for looking
at it by eye."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Literal

from spin_core.job import Job
from spin_core.stages import report


def evaluate_tree(root: Path, matches: list[bool] | None, nll: float, **metrics: float) -> Path:
    """An evaluate tree over len(matches) rows (20 where matches is None: no exact match was measured)."""
    root.mkdir(parents=True)
    count = 20 if matches is None else len(matches)
    figures: dict = {"rows": count, "nll/real": nll, "logps/real": -nll * 30, **metrics}
    if matches is not None:
        figures |= {"exact_match/greedy": sum(matches) / count, "exact_match/sampled": sum(matches[::2]) / count}
    (root / "metrics.json").write_text(json.dumps(figures))
    with (root / "rows.jsonl").open("w") as out:
        for i in range(count):
            row: dict = {
                "id": f"{i:016x}",
                "nll": nll + i / 1000,
                "prompt": f"What is {i} + {i + 3}?",
                "real": f"It is {2 * i + 3}.",
            }
            if matches is not None:
                right, wrong = f"It is {2 * i + 3}.", f"It is {2 * i + 4}, because {i} and {i + 3} make that."
                row |= {
                    "greedy": right if matches[i] else wrong,
                    "greedy_match": matches[i],
                    "sampled": wrong,
                    "sampled_match": False,
                }
            out.write(json.dumps(row) + "\n")
    return root


def model_tree(root: Path, steps: int, spin: bool = True, seed: int = 0) -> Path:
    """A model tree's metrics.jsonl: SPIN's keys or SFT's."""
    root.mkdir(parents=True)
    draw = random.Random(seed)
    with (root / "metrics.jsonl").open("w") as out:
        for i in range(steps):
            part = i / max(1, steps - 1)
            line: dict = {
                "step": i + 1,
                "epoch": part,
                "lr": 1e-5 * (1 - part),
                "loss": math.log(2) * math.exp(-part) + draw.gauss(0, 0.02),
                "grad_norm": 1.0,
            }
            if spin:
                real, generated = 0.2 * part + draw.gauss(0, 0.05), -1.4 * part + draw.gauss(0, 0.1)
                line |= {
                    "pairs": 64,
                    "rewards/real": real,
                    "rewards/generated": generated,
                    "rewards/margins": real - generated,
                }
                line |= {
                    "rewards/accuracies": min(1.0, 0.5 + part / 2),
                    "logps/real": -40 + real * 10,
                    "logps/generated": -30 + generated * 10,
                }
            out.write(json.dumps(line) + "\n")
    return root


def pairs_tree(root: Path, rows: int, identical: int, truncated: int, empty: int) -> Path:
    """A pairs tree's quality.json."""
    root.mkdir(parents=True)
    counts = {"rows": rows, "identical_to_real": identical, "truncated": truncated, "empty": empty}
    (root / "quality.json").write_text(json.dumps({"train": counts, "test": {**counts, "rows": rows // 10}}))
    return root


def matches(count: int, right: int, flips: int = 0) -> list[bool]:
    """`right` of `count` rows match; with `flips`, that many of them are other rows than without."""
    return [flips <= i < right + flips for i in range(count)]


def whole_run(
    root: Path, rates: tuple[int, ...] = (580, 630, 660), controls: tuple[int, ...] = (590, 600), count: int = 1000
) -> tuple[dict, report.Config]:
    """Inputs and config of a run: a start, an iteration per further rate, SFT controls with one and two times its
    steps."""
    inputs: dict = {"evaluate": [], "finetune": [], "gather": []}
    rows = []
    for t, right in enumerate(rates):
        margin = {} if t == 0 else {"spin/margin": 0.4 * t, "spin/accuracy": 0.5 + 0.1 * t, "spin/loss": 0.5}
        inputs["evaluate"].append(
            evaluate_tree(root / f"e{t}", matches(count, right, 20 * t), 2.1 + 0.013 * t, **margin)
        )
        if t:
            inputs["finetune"].append(model_tree(root / f"m{t}", 120, seed=t))
            inputs["gather"].append(pairs_tree(root / f"p{t}", 4000, 380 // t, 12, 1))
        label = "θ_0" if t == 0 else f"iteration {t - 1} (θ_{t})"
        kind: Literal["start", "iteration"] = "start" if t == 0 else "iteration"
        rows.append(report.Row(label=label, kind=kind, iteration=t - 1, evaluate=t, finetune=t - 1, gather=t - 1))
    for c, right in enumerate(controls):
        inputs["evaluate"].append(evaluate_tree(root / f"c{c}", matches(count, right, 7), 2.0 - 0.02 * c))
        inputs["finetune"].append(model_tree(root / f"s{c}", 240 * (c + 1), spin=False))
        place = {"evaluate": len(inputs["evaluate"]) - 1, "finetune": len(inputs["finetune"]) - 1}
        rows.append(report.Row(label=f"SFT instead, {c + 1}×", kind="control", **place))
    profile = {"model": {"path": "builtin:tiny"}, "iterations": len(rates) - 1, "finetune": {"beta": 0.1, "lr": 5e-7}}
    return inputs, report.Config(name="demo", profile=profile, rows=rows)


def render(root: Path, inputs: dict, config: report.Config) -> tuple[str, str, dict]:
    """Runs the stage into `root`: (html, markdown, figures)."""
    root.mkdir(parents=True)
    report.run(inputs, config, Job(out=root, scratch=root))
    html, markdown = ((root / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    return html, markdown, json.loads((root / "report.json").read_text(encoding="utf-8"))
