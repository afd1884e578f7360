"""The memory model against measurement: peak bytes of torch's tensors in real steps of small models, each in a process
of its own (`tests/estimate/measured.py` says how). Writes bench_memory.json and bench_memory.md beside this file.

    make bench-memory
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from spin_core.estimate.architecture import Architecture
from tests.estimate.cases import BOUND, CASES, SPREAD, predicted
from tests.estimate.measured import WAYS, Case, measure, peak_of

OUT = Path(__file__).with_suffix("")
RUNS = 5
"""Of a case with several processes: gloo copies what it gathers and reduces, sooner or later. Others are exact."""


def main() -> None:
    """Measure the cases that the table lacks, and write it after each, with what is predicted now."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="measure those that the table has, too")
    again = parser.parse_args().again
    path = OUT.with_suffix(".json")
    before = json.loads(path.read_text())["cases"] if path.is_file() and not again else []
    known = {(line["model"], line["stage"], line["name"]): line["runs"] for line in before}
    for case in [*CASES, *SPREAD]:
        if (key := _key(case)) not in known:
            runs = [int(measure(case)["peak"]) for _ in range(RUNS)] if case.processes > 1 else [_forked(case)]
            known[key] = sorted(runs)
            print(*key, known[key], flush=True)
            _write(path, known)
    _write(path, known)


def _forked(case: Case) -> int:
    """The peak, by a child of this process, which has the libraries already: they take ten times as long as a case."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    with get_context("fork").Pool(1) as one:
        return one.apply(_peak, [case])


def _peak(case: Case) -> int:
    return peak_of(lambda: WAYS[case.stage](case))[0]


def _key(case: Case) -> tuple[str, str, str]:
    return _shape(case.shape), case.stage, case.name


def _line(case: Case, runs: list[int]) -> dict[str, Any]:
    peak, measured = predicted(case), int(median(runs))
    return {
        "model": _shape(case.shape), "stage": case.stage, "name": case.name, "predicted": peak.total,
        "measured": measured, "runs": runs, "error": peak.total / measured - 1, "fullest": peak.phase,
        "activations": peak.activations / peak.total,
    }  # fmt: skip


def _shape(a: Architecture) -> str:
    return f"{a.layers} × {a.hidden}, vocabulary {a.vocab:,}{', tied' if a.tied else ''}"


def _write(path: Path, known: dict[tuple[str, str, str], list[int]]) -> None:
    lines = [_line(case, known[_key(case)]) for case in [*CASES, *SPREAD] if _key(case) in known]
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "peft", "deepspeed")}
    report = {"machine": platform.machine(), "versions": versions, "cases": lines}
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(_table(report))


def _table(report: dict[str, Any]) -> str:
    lines, versions = report["cases"], ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    worst = max(lines, key=lambda line: abs(line["error"]))
    head = ["model (layers × width)", "stage", "case", "predicted", "measured", "error"]
    head += ["of it activations", "fullest at"]
    text = [
        "# Memory: the model of `spinloop plan` against measurement\n",
        f"Peak of what torch had allocated in a process, on CPU ({report['machine']}; {versions}); how it is measured "
        "says `tests/estimate/measured.py`. A GPU's kernels differ (keys repeated for grouped heads, optimiser steps "
        "on all weights at once): the model counts them, this table does not test them.\n",
        f"{len(lines)} cases; largest error {worst['error']:+.1%}, bound {BOUND:.0%}. With several processes "
        f"the median of {RUNS} runs, and their range.\n",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for line in lines:
        sizes = [f"{line[name] / 1e6:,.1f} MB" for name in ("predicted", "measured")]
        if len(runs := line["runs"]) > 1:
            sizes[1] += f" ({runs[0] / 1e6:,.1f}–{runs[-1] / 1e6:,.1f})"
        shares = [f"{line['error']:+.1%}", f"{line['activations']:.0%}"]
        text.append(f"| {' | '.join([line['model'], line['stage'], line['name'], *sizes, *shares, line['fullest']])} |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
