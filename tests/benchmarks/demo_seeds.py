"""The demos on several seeds, beside SFT: README's and docs/demos.md's tables.

`make demo-seeds` runs the profile `demo` on five seeds (a seed changes what is held out, initial weights, draws and
order), each with the control at three learning rates, and writes demo_seeds.md and demo_seeds.json beside this file.
`make demo-seeds DEMO=demo-tasks` (or demo-bland) does it for another: exact match, on three seeds. What the store has
is not run again. SFT stands in each line of the table as the checkpoint of its sweep (learning rates × one or two
iterations' steps) that is best by that very figure on that seed's held-out rows, which favours SFT.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from spin_core.data.rows import FILES, read_rows

HERE = Path(__file__).parent
RATES = ("3.0e-4", "1.0e-3", "3.0e-3")
KINDS = {"greedy": "greedy", "t0.3": "T = 0.3", "t0.5": "T = 0.5", "sampled": "T = 1"}
Figures = dict[str, float]
BEST = "the gate's best"
SHOWN = {  # of a demo: figure → what it is called
    "demo": {
        "loops": "loops", "ended": "ended", "distinct": "distinct runs of three words",
        "real_words": "only real words", "good": "ended, no loop, real words",
    },
    "demo-tasks": {"exact_match": "exact match", "ended": "ended"},
    "demo-bland": {"exact_match": "exact match", "bland": "\"No idea.\"", "ended": "ended"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("demo", nargs="?", default="demo", choices=SHOWN)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--set", action="append", default=[], help="a setting for every run")
    given = parser.parse_args()
    seeds = given.seeds or ((1, 2, 3, 4, 5) if given.demo == "demo" else (1, 2, 3))
    figures = {seed: of_seed(given.demo, seed, given.set) for seed in seeds}
    file = HERE / f"{given.demo.replace('-', '_')}_seeds"
    file.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    file.with_suffix(".md").write_text(table(given.demo, figures))
    print(table(given.demo, figures))


def of_seed(demo: str, seed: int, settings: list[str]) -> dict[str, Figures]:
    """Model → its figures on the held-out rows of this seed; of the controls, each rate's."""
    models: dict[str, Figures] = {}
    for rate in RATES:
        for label, made in run(demo, [f"seed={seed}", f"control.lr={rate}", *settings]).items():
            models[f"{label}, lr {rate}" if label.startswith("SFT") else label] = made
    return models


def run(demo: str, settings: list[str]) -> dict[str, Figures]:
    """Model → its figures, of one run."""
    command = [sys.executable, "-m", "flows.cli", "run", demo, "--json"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, cwd=HERE.parents[1], env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    folder = Path(json.loads(done.stdout)["folder"])
    trees = folder.parents[1] / "trees"
    steps = json.loads((folder / "steps.json").read_text())
    rows = next(trees / step["digest"] for step in steps if step["stage"] == "reformat")
    known = {word for file in FILES.values() for row in read_rows(rows / file) for word in words(row_text(row))}
    models = {step["label"]: measured(trees / step["digest"], known) for step in steps if step["stage"] == "evaluate"}
    gate = [step["digest"] for step in steps if step["stage"] == "gate"][-1]
    best = json.loads((trees / gate / "decision.json").read_text())["best"]
    return {**models, BEST: models[f"θ_{best}"]}


def row_text(row: Any) -> str:
    return f"{row.prompt[-1]['content']} {row.answer}"


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def measured(evaluate: Path, known: set[str]) -> Figures:
    """evaluate's figures, and of its answers what only a set of single sentences can tell: which loop (a pair of
    words twice, as 2 % of the real ones; evaluate's own `loops` is for answers of any length and wants more), which
    have only words of the rows (but the last, where an answer was cut), and which do so, ended and do not loop."""
    metrics = json.loads((evaluate / "metrics.json").read_text())
    lines = [json.loads(line) for line in (evaluate / "rows.jsonl").read_text().splitlines()]
    figures = {"nll": metrics["nll/real"]}
    for kind in (kind for kind in KINDS if f"loops/{kind}" in metrics):
        said, cut = [words(line[kind]) for line in lines], [line[f"{kind}_cut"] for line in lines]
        loop = [len({*pairwise(one)}) < len(one) - 1 for one in said]
        real = [known.issuperset(one[:-1] if is_cut else one) for one, is_cut in zip(said, cut, strict=True)]
        good = [is_real and not (loops or is_cut) for is_real, loops, is_cut in zip(real, loop, cut, strict=True)]
        figures |= {
            f"loops/{kind}": fmean(loop), f"ended/{kind}": 1 - metrics[f"truncated/{kind}"],
            f"real_words/{kind}": fmean(real),
            f"good/{kind}": fmean(good), f"bland/{kind}": fmean(line[kind] == "No idea." for line in lines),
        }  # fmt: skip
        for metric, name in (("exact_match", "exact_match"), ("distinct_runs", "distinct")):
            if f"{metric}/{kind}" in metrics:  # answers of two words have no run of three
                figures[f"{name}/{kind}"] = metrics[f"{metric}/{kind}"]
    return figures


def table(demo: str, figures: dict[int, dict[str, Figures]]) -> str:
    """Markdown: a line for each figure and way to draw, mean ± standard deviation over seeds; then the first figure by
    seed, where one sees how many of the seeds agree."""
    every = list(figures.values())
    played = [label for label in ("θ_0", "θ_1", "θ_2", BEST) if all(label in models for models in every)]
    columns = [*played, "SFT, best checkpoint"]  # where the gate ended a run, there is no θ_2
    names = {
        f"{figure}/{kind}": f"{name}, {how}" for figure, name in SHOWN[demo].items() for kind, how in KINDS.items()
    }
    names = {figure: name for figure, name in names.items() if figure in every[0]["θ_0"]}
    lines = [f"| {len(figures)} seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for figure, name in {**names, "nll": "NLL per token"}.items():
        cells = zip(*(cells_of(models, figure, played) for models in every), strict=True)
        lines.append(f"| {name} | {' | '.join(map(spread, cells))} |")
    for figure, name in [*names.items()][:2]:
        lines += ["", f"| {name} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for seed, models in figures.items():
            lines.append(f"| seed {seed} | {' | '.join(f'{cell:.3f}' for cell in cells_of(models, figure, played))} |")
    return "\n".join(lines) + "\n"


def cells_of(models: dict[str, Figures], figure: str, played: list[str]) -> list[float]:
    """One seed's line: SPIN's models, and the control that is best by this figure."""
    controls = [made[figure] for label, made in models.items() if label.startswith("SFT")]
    best = min if figure.startswith(("loops", "bland", "nll")) else max
    return [*(models[label][figure] for label in played), best(controls)]


def spread(values: Iterable[float]) -> str:
    """`0.605 ± 0.154`; of one value only that."""
    held = [*values]
    return f"{fmean(held):.3f}" + (f" ± {stdev(held):.3f}" if len(held) > 1 else "")


if __name__ == "__main__":
    main()
