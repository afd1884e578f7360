"""Where the wall time of a whole second iteration goes.

`python -m tests.benchmarks.bench_iteration --model DIR --data FILE` runs the profile gsm8k-smollm2 for one iteration,
which is not timed, then for two, of which the second is: a new process of `spinloop run`, as a schedule or a person
starts it. Each stage's process writes when it was at a stage and when at model arithmetic (spans/sitecustomize.py).
*Host* is the wall time in which no process was at model arithmetic: start, Prefect, tokenizing, hashing, publishing,
reading, the choice of each sampled token. Prints a Markdown table and a line of JSON. With `--against DIR`, another
checkout with an environment of its own, the two run in turn, A B A B, each `--repeats` times.

Is not: the speed of training or sampling (bench_train, bench_generate).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
SPANS = Path(__file__).parent / "spans"
Spans = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, help="GSM8K's train.jsonl; without it the hub's")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout, with a .venv")
    parser.add_argument("--set", action="append", default=[], help="a setting of both runs")
    given = parser.parse_args()
    places = {"this": ROOT, **({"against": given.against} if given.against else {})}
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
    with TemporaryDirectory(prefix="spinloop-bench-") as folder:
        for name, place in places.items():
            run(place, Path(folder) / name, settings(given, 1))
        for repeat in range(given.repeats):
            for name, place in places.items():
                store = Path(folder) / f"{name}-{repeat}"
                shutil.copytree(Path(folder) / name, store, symlinks=True)
                spans = Path(folder) / f"spans-{name}-{repeat}"
                made[name].append(measured(place, store, spans, settings(given, 2)))
                shutil.rmtree(store)
    for name, figures in made.items():
        print(f"\n{name}, {given.prompts:,} prompts, median of {given.repeats}\n\n{table(figures)}")
    print(json.dumps(made))


def settings(given: argparse.Namespace, iterations: int) -> list[str]:
    data = [f"dataset.path={given.data}", "dataset.test_split="] if given.data else []
    return [
        f"model.path={given.model}", *data, f"dataset.limit={given.prompts}", f"iterations={iterations}", "history=2",
        f"dataset.shard_rows={max(16, given.prompts // 2)}", *given.set,
    ]  # fmt: skip


def run(place: Path, store: Path, settings: list[str], **more: str) -> None:
    command = [
        str(place / ".venv/bin/python"),
        "-m",
        "flows.cli",
        "run",
        "gsm8k-smollm2",
        "--store",
        str(store),
        "--json",
    ]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(command, cwd=place, env={**os.environ, **more}, stdout=subprocess.DEVNULL, check=True)


def measured(place: Path, store: Path, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Wall seconds of the run, of them those with model arithmetic, and both by stage; seconds of each kind."""
    folder.mkdir()
    began = time.time()
    run(place, store, settings, PYTHONPATH=str(SPANS), SPINLOOP_SPANS=str(folder))
    ended = time.time()
    lines = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    model = [line for line in lines if line["kind"] == "model"]
    stages: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(
        line["name"] for line in sorted(lines, key=lambda line: line["began"]) if line["kind"] == "stage"
    ):
        own = [line for line in lines if line["kind"] == "stage" and line["name"] == name]
        stages[name] = {"wall": covered(own), "model": sum(covered(clipped(model, one)) for one in own)}
    kinds = {
        name: covered([line for line in model if line["name"] == name]) for name in ("forward", "backward", "optimiser")
    }
    inside = [line for line in lines if line["kind"] == "stage"]
    return {"wall": ended - began, "model": covered(model), "in a stage": covered(inside), "stages": stages, **kinds}


def covered(spans: Spans) -> float:
    """Seconds in which at least one of them was under way."""
    total, until = 0.0, 0.0
    for one in sorted(spans, key=lambda one: one["began"]):
        total += max(0.0, one["ended"] - max(one["began"], until))
        until = max(until, one["ended"])
    return total


def clipped(spans: Spans, to: dict[str, Any]) -> Spans:
    cut = [{**one, "began": max(one["began"], to["began"]), "ended": min(one["ended"], to["ended"])} for one in spans]
    return [one for one in cut if one["ended"] > one["began"]]


def table(figures: list[dict[str, Any]]) -> str:
    def median(*path: str) -> float:
        values = []
        for one in figures:
            for name in path:
                one = one.get(name, {}) if isinstance(one, dict) else one
            values.append(one or 0.0)
        return statistics.median(values)

    wall, model = median("wall"), median("model")
    lines = [
        f"| second iteration | wall s | model s | host s |\n|---|---|---|---|\n"
        f"| **whole run** | {wall:.1f} | {model:.1f} | {wall - model:.1f} ({(wall - model) / wall:.1%}) |"
    ]
    for name in figures[0]["stages"]:
        own, busy = median("stages", name, "wall"), median("stages", name, "model")
        lines.append(f"| {name} | {own:.1f} | {busy:.1f} | {own - busy:.1f} |")
    lines.append(f"| outside of every stage | {wall - median('in a stage'):.1f} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
