"""The regime map as Markdown, as a picture, and as the rows that `spinloop`'s forecast looks its nearest one up in.

Changes are against θ_0 of the same seed; the interval is Student's of the seeds (95 %), so that with three of them only
what all three agree on is clear. SFT is in each seed the best of six checkpoints by the very figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from spin_core.analysis.format import plural
from tests.benchmarks.regimes import HERE, RATES, SEEDS, SITUATIONS, WAYS, Figures, Situation, file_of

PAGE, PICTURE = HERE.parents[1] / "docs" / "regimes.md", HERE.parents[1] / "docs" / "regimes.svg"
MAP = HERE.parents[1] / "spin_core" / "analysis" / "regimes.json"
BEGIN, END = "<!-- make regimes writes what follows -->\n", "<!-- up to here -->\n"
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % of n − 1 degrees of freedom, by n
Seeds = list[dict[str, Figures]]


def write(work: Path) -> None:
    """Page, picture and map of all that is done in `work`."""
    done = {name: [json.loads(file.read_text()) for file in files(work, name)] for name in SITUATIONS}
    done = {name: seeds for name, seeds in done.items() if seeds}
    lines = [part for name, seeds in done.items() for part in (*table(name, SITUATIONS[name], seeds), "")]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
    draw(done)
    rows = [row for name, seeds in done.items() for row in map_rows(name, SITUATIONS[name], seeds)]
    MAP.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(lines))


def files(work: Path, name: str) -> list[Path]:
    """Of the seeds that are done."""
    return [file for seed in SEEDS if (file := file_of(work, name, seed)).is_file()]


def changes(seeds: Seeds, cell: str, figure: str) -> list[float]:
    """By seed, against θ_0."""
    return [seed[cell][figure] - seed["θ_0"][figure] for seed in seeds]


def sft_changes(seeds: Seeds, figure: str) -> list[float]:
    """By seed, of the checkpoint that is best by this figure."""
    return [
        max(seed[f"sft {rate:g}"][f"{n} {figure}"] for rate in RATES for n in (1, 2)) - seed["θ_0"][figure]
        for seed in seeds
    ]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low, high; of fewer than three values no bounds, as chance alone makes two of them equal."""
    mean = fmean(values)
    half = STUDENT[len(values)] * stdev(values) / math.sqrt(len(values)) if len(values) > 2 else math.inf
    return mean, mean - half, mean + half


def said(values: Sequence[float]) -> str:
    """`+.123 [.050, .196]`, in bold where the interval leaves 0 out."""
    mean, low, high = interval(values)
    text = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if math.isfinite(low) else f"{mean:+.3f}"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(name: str, case: Situation, seeds: Seeds) -> list[str]:
    """Of one situation: what θ_0 is, then what each way changed."""
    first = [f"{label} {fmean(seed['θ_0'][figure] for seed in seeds):.3f}" for figure, label in case.figures.items()]
    columns = [*case.figures.values(), "NLL", "alarms"]
    lines = [
        f"### {name}", "", f"{case.about}. {plural(len(seeds), 'seed')}; θ_0: {', '.join(first)}.", "",
        f"| change against θ_0 | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|",
        f"| SFT, best of six checkpoints | {' | '.join(said(sft_changes(seeds, one)) for one in case.figures)} | | |",
    ]  # fmt: skip
    for decoder, loss in WAYS:
        cell = f"{decoder} | {loss}"
        cells = [said(changes(seeds, cell, figure)) for figure in case.figures]
        nll = f"{fmean(changes(seeds, cell, 'nll')):+.3f}"
        alarms = sum(seed[cell]["alarms"] > 0 or seed[cell]["θ_1 alarms"] > 0 for seed in seeds)
        lines.append(f"| {loss}, {decoder} | {' | '.join(cells)} | {nll} | {alarms} of {len(seeds)} |")
    return lines


def map_rows(name: str, case: Situation, seeds: Seeds) -> list[dict[str, Any]]:
    """One for each decoder and objective: what its first pairs were like, and what it changed."""
    figure, label = next(iter(case.figures.items()))
    rows = []
    for decoder, loss in WAYS:
        cell, pairs = f"{decoder} | {loss}", [seed[f"forecast | {decoder}"] for seed in seeds]
        like = {key: round(fmean(one[key] for one in pairs), 4) for key in ("identical", "preferred", "entropy")}
        gain = [round(value, 4) for value in interval(changes(seeds, cell, figure)) if math.isfinite(value)]
        sft = round(fmean(sft_changes(seeds, figure)), 4)
        row = {"situation": name, "decoder": decoder, "objective": loss, **like}
        rows.append({**row, "figure": label, "gain": gain, "sft": sft})
    return rows


def draw(done: dict[str, Seeds]) -> None:
    """A panel for each situation: the change of both first figures by objective and decoder, beside tuned SFT."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {"svg.hashsalt": "regimes", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    )
    figure, panels = pyplot.subplots(1, len(done), figsize=(3.1 * len(done) + 1.2, 6.2), sharey=True, squeeze=False)
    for panel, (name, seeds) in zip(panels[0], done.items(), strict=True):
        for shift, colour, (key, label) in zip(
            (0.14, -0.14), ("#1f5fa8", "#d2691e"), list(SITUATIONS[name].figures.items())[:2], strict=True
        ):
            panel.axvline(fmean(sft_changes(seeds, key)), color=colour, linestyle=":", label=f"SFT, {label}")
            for place, (decoder, loss) in enumerate(WAYS):
                values = changes(seeds, f"{decoder} | {loss}", key)
                panel.plot([min(values), max(values)], [place + shift] * 2, color=colour, linewidth=1.4)
                shown = label if not place else None
                panel.plot(fmean(values), place + shift, "o", color=colour, markersize=4, label=shown)
        panel.axvline(0, color="#666666", linewidth=0.8)
        for place in (n for n in range(1, len(WAYS)) if WAYS[n][0] != WAYS[n - 1][0]):
            panel.axhline(place - 0.5, color="#bbbbbb", linewidth=0.8)
        panel.set_title(name)
        panel.set_xlabel("change against θ_0")
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13))
        panel.locator_params(axis="x", nbins=4)
        panel.set_ylim(len(WAYS) - 0.4, -0.6)
    panels[0][0].set_yticks(range(len(WAYS)), [f"{loss}, {decoder}" for decoder, loss in WAYS])
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None}, facecolor="white")
    text = "\n".join(line.rstrip() for line in PICTURE.read_text().splitlines()) + "\n"
    PICTURE.write_text(text)
