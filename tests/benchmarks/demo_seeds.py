"""The demo on three seeds: does SPIN raise exact match, and does it do better than the same number of SFT steps?

`make demo-seeds` runs the demo profile once per seed (a seed changes rows, initial weights, draws and order) and writes
demo_seeds.md and demo_seeds.json beside this file. What the store has is not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)


def main() -> None:
    figures = {seed: run(seed) for seed in SEEDS}
    (HERE / "demo_seeds.json").write_text(json.dumps(figures, indent=1) + "\n")
    (HERE / "demo_seeds.md").write_text(table(figures))
    print(table(figures))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Model → exact match, greedy and sampled, on the held-out prompts of this seed."""
    command = [sys.executable, "-m", "flows.cli", "run", "demo", "--set", f"seed={seed}", "--json"]
    done = subprocess.run(command, cwd=HERE.parents[1], env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    folder = Path(json.loads(done.stdout)["folder"])
    digest = next(s["digest"] for s in json.loads((folder / "steps.json").read_text()) if s["stage"] == "report")
    rows = json.loads((folder.parents[1] / "trees" / digest / "report.json").read_text())["rows"]
    return {row["label"]: {how: row[how]["value"] for how in ("greedy", "sampled")} for row in rows}


def table(figures: dict[int, dict[str, dict[str, float]]]) -> str:
    """Markdown: a line per model, greedy / sampled exact match for each seed, and the mean."""
    head = "| model | " + " | ".join(f"seed {seed}" for seed in figures) + " | mean |\n"
    lines = [head, "|---" * (len(figures) + 2) + "|\n"]
    for label in next(iter(figures.values())):
        cells = [[of[label][how] for of in figures.values()] for how in ("greedy", "sampled")]
        cells = [[*values, sum(values) / len(values)] for values in cells]
        shown = [f"{greedy:.3f} / {sampled:.3f}" for greedy, sampled in zip(*cells, strict=True)]
        lines.append(f"| {label} | {' | '.join(shown)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
