"""Made-up evaluate, model and pair-set artifacts with the files that the stages write, for the report's tests and for
looking at it by eye."""

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


def harness_tree(root: Path, values: dict[str, float], rows: int = 100) -> Path:
    """A harness tree: of each task its value, and so many of `rows` items right."""
    root.mkdir(parents=True)
    tasks = {
        name: {
            "metric": "acc,none", "value": value, "stderr": 0.01, "rows": rows, "num_fewshot": 5, "version": 1.0,
            "higher_is_better": True, "prompts_sha256": "ab" * 32, "dataset": {"path": name, "revision": ""},
        }
        for name, value in values.items()
    }  # fmt: skip
    average = sum(values.values()) / len(values)
    about = {"lm_eval": "0.4.13", "preset": "open-llm-leaderboard-v1", "backend": "hf"}
    (root / "results.json").write_text(json.dumps({**about, "average": average, "tasks": tasks}))
    items = [
        {"id": f"{name}/{i}", "task": name, "value": float(i < round(value * rows))}
        for name, value in values.items()
        for i in range(rows)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return root


def gate_tree(
    root: Path, outcome: str, best: int, reason: str, alarms: list[str] | None = None, metric: str = "harness"
) -> Path:
    """A gate tree's decision.json."""
    root.mkdir(parents=True)
    change = {"value": 0.05, "low": 0.02, "high": 0.08, "rows": 1000}
    decision = {
        "outcome": outcome, "reason": reason, "best": best, "previous_best": 0, "models": best + 1,
        "metric": metric, "higher_is_better": True, "go_on": True, "change": change,
        "margin": {"value": 0.4, "low": 0.3, "high": 0.5, "rows": 1000}, "identical_to_previous": 0.41,
        "alarms": alarms or [],
    }  # fmt: skip
    (root / "decision.json").write_text(json.dumps(decision))
    return root


def measured(tree: Path, tokens: float = 1.0) -> Path:
    """Adds to an evaluate tree what issue 6 measures beside exact match and NLL."""
    lines = [json.loads(line) for line in (tree / "rows.jsonl").read_text().splitlines()]
    for i, row in enumerate(lines):
        row |= {"tokens": 5 + i % 3, "margin": 0.1 * (i % 7) - 0.1, "margin_start": 0.1 * (i % 5)}
        for kind in ("greedy", "sampled"):
            row |= {f"{kind}_tokens": round((5 + i % 4) * tokens), f"{kind}_repetition": 0.1 * (i % 2)}
            row |= {f"{kind}_cut": i % 10 == 0, f"{kind}_empty": False, f"{kind}_loops": i % 4 == 0}
            row |= {f"{kind}_distinct": 0.5, f"{kind}_runs": 4}
    (tree / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    figures = json.loads((tree / "metrics.json").read_text())
    for kind in ("greedy", "sampled"):
        lengths = [row[f"{kind}_tokens"] for row in lines]
        figures |= {f"length/{kind}_tokens": sum(lengths) / len(lengths), f"repetition/{kind}": 0.05}
        figures |= {f"distinct_1/{kind}": 0.31, f"distinct_2/{kind}": 0.62, f"truncated/{kind}": 0.1}
        figures |= {
            f"empty/{kind}": 0.0,
            f"loops/{kind}": 0.25,
            f"distinct_runs/{kind}": 0.5,
            f"length/{kind}_ratio": 1.5,
        }
    figures |= {"loops/real": 0.03, "distinct_runs/real": 0.9}
    if "spin/margin" in figures:
        figures |= {"spin/margin_start": 0.9, "spin/accuracy_start": 0.7}
        figures |= {"rewards/real": -0.1, "rewards/generated": -0.5}
    (tree / "metrics.json").write_text(json.dumps(figures))
    return tree


def judged_run(root: Path, metric: str = "harness", best: int = 1, **kwargs) -> tuple[dict, report.Config]:
    """`full_run` with all that issue 6 measures: harness on every model, a gate after every iteration; θ_1 is best."""
    inputs, config = full_run(root, **kwargs)
    for i, tree in enumerate(inputs["evaluate"]):
        measured(tree, 1 + 0.2 * i)
    inputs |= {"harness": [], "gate": []}
    rows = []
    for i, row in enumerate(config.rows):
        inputs["harness"].append(harness_tree(root / f"h{i}", {"arc_challenge": 0.5 + 0.02 * i, "winogrande": 0.6}))
        made = {"harness": i}
        if row.kind == "iteration":
            outcome, alarms = ("continue", []) if row.iteration == 0 else ("alarm", ["answers repeat themselves"])
            reason = f"θ_{row.iteration + 1}: exact match (greedy) went up, θ_1 is best."
            inputs["gate"].append(gate_tree(root / f"g{i}", outcome, best, reason, alarms, metric))
            made["gate"] = row.iteration
        rows.append(row.model_copy(update=made))
    return inputs, config.model_copy(update={"rows": rows})


def repeating(tree: Path, share: float, wobble: float = 0.0, kind: str = "greedy") -> None:
    """Sets how much answers of a kind repeat themselves: every other row `wobble` more, the others as much less."""
    metrics = json.loads((tree / "metrics.json").read_text())
    known = {f"repetition/{kind}": share, f"truncated/{kind}": 0.1}
    (tree / "metrics.json").write_text(json.dumps(metrics | known))
    rows = [json.loads(line) for line in (tree / "rows.jsonl").read_text().splitlines()]
    made = [row | {f"{kind}_repetition": share + wobble * (-1) ** i} for i, row in enumerate(rows)]
    (tree / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def matches(count: int, right: int, flips: int = 0) -> list[bool]:
    """`right` of `count` rows match; with `flips`, that many of them are other rows than without."""
    return [flips <= i < right + flips for i in range(count)]


def full_run(
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
        rows.append(report.RowInputs(label=label, kind=kind, iteration=t - 1, evaluate=t, finetune=t - 1, gather=t - 1))
    for c, right in enumerate(controls):
        inputs["evaluate"].append(evaluate_tree(root / f"c{c}", matches(count, right, 7), 2.0 - 0.02 * c))
        inputs["finetune"].append(model_tree(root / f"s{c}", 240 * (c + 1), spin=False))
        place = {"evaluate": len(inputs["evaluate"]) - 1, "finetune": len(inputs["finetune"]) - 1}
        rows.append(report.RowInputs(label=f"SFT instead, {c + 1}×", kind="control", **place))
    profile = {"model": {"path": "builtin:tiny"}, "iterations": len(rates) - 1, "finetune": {"beta": 0.1, "lr": 5e-7}}
    return inputs, report.Config(name="demo", profile=profile, rows=rows)


def render(root: Path, inputs: dict, config: report.Config) -> tuple[str, str, dict]:
    """Runs the stage into `root`: (html, markdown, figures)."""
    root.mkdir(parents=True)
    report.run(inputs, config, Job(out=root, scratch=root))
    html, markdown = ((root / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    return html, markdown, json.loads((root / "report.json").read_text(encoding="utf-8"))
