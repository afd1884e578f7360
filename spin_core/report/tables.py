"""The tables of the report, one for each question, each narrow enough for a phone: is it better, does it beat its
opponent, how does it write, what did it learn from, what did the harness measure.

Text only: every figure comes from `summary.model_row`. A column without any figure is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from spin_core.analysis import gate_metric
from spin_core.analysis.columns import COLUMNS, MARKS, TASKS, column_text
from spin_core.analysis.format import NONE, bounds, count, escape_markdown, markdown_table, percent, share_bounds, show
from spin_core.analysis.rows import AnswerStyle, Estimate, HarnessTask, ModelRow
from spin_core.analysis.verdict import figure, judged_by

Cell = tuple[str, str]  # figure, small print
TITLES = (
    "EM greedy", "EM sampled", "Δ EM", "NLL", "Δ NLL", "margin", "accuracy", "identical", "truncated", "empty",
)  # fmt: skip


@dataclass(frozen=True)
class TableLine:
    """A line of a table; `kind` and `best` are how it is shown. Small print is of parts with "; " between them, and
    each part stays on one line."""

    label: str
    cells: list[Cell]
    kind: str = ""
    best: bool = False
    small: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table under a heading; `head` names the first column. `texts`: what the columns say, by their heads."""

    id: str
    title: str
    text: str
    head: str
    columns: list[str]
    lines: list[TableLine]
    texts: Mapping[str, str]

    def says(self, head: str) -> str:
        """What a column says."""
        return column_text(head, self.texts)

    def key(self) -> list[tuple[str, str]]:
        """What all columns and the signs in the lines say."""
        heads = [self.head, *self.columns]
        signs = {"★": any(line.best for line in self.lines)}
        signs[NONE] = any(cell[0] == NONE for line in self.lines for cell in line.cells)
        return [*((head, self.says(head)) for head in heads), *((sign, MARKS[sign]) for sign in signs if signs[sign])]


def tables(rows: Sequence[ModelRow]) -> list[ReportTable]:
    """Every table that has a figure, in reading order; the first is there always."""
    made = [_models(rows), _opponents(rows), _style(rows), _pairs(rows), _sources(rows), _harness(rows)]
    return [table for i, table in enumerate(made) if i == 0 or table.lines]


def figure_cells(row: ModelRow) -> list[Cell]:
    """One model's figures under TITLES, where all stand in a single line."""
    delta = row["delta"]
    change, pairs = delta["greedy"] or delta["sampled"], row["pairs"]
    rejected = pairs.get("rejected") if pairs else None
    return [
        _rate(row["greedy"]),
        _rate(row["sampled"]),
        (show(change["value"] if change else None, signed=True), _moved(row)),
        (show(row["nll"]), ""),
        (show(delta["nll"], signed=True), ""),
        (show(row["margin"]), ""),
        (show(row["accuracy"]), ""),
        (percent(pairs["identical"] if pairs else None), ""),
        (percent(pairs["truncated"] if pairs else None), ""),
        (percent(pairs["empty"] if pairs else None), f"{rejected:,} rejected" if rejected else ""),
    ]


def text_table(rows: Sequence[ModelRow]) -> str:
    """The models as one Markdown table with padded columns, so that it reads in a terminal too."""
    metric, own = own_column(rows)
    lines = [["model", *own, *TITLES]]
    for row in rows:
        greedy, sampled, *others = figure_cells(row)
        figures = [with_small(greedy), with_small(sampled), *(shown for shown, _ in others)]
        lines.append([escape_markdown(starred(row), 80), *(figure(row, metric) for _ in own), *figures])
    return markdown_table(lines)


def own_column(rows: Sequence[ModelRow]) -> tuple[str, list[str]]:
    """The metric that the run is judged by, and the head of its column where no column of TITLES has it."""
    metric = judged_by(rows)
    return metric, [head for head in [gate_metric.column(metric)] if head]


def starred(row: ModelRow) -> str:
    """A model's label; the best model's has a star."""
    return row["label"] + (" ★" if row.get("best") else "")


def start_label(rows: Sequence[ModelRow]) -> str:
    """What the start of the run is called."""
    return next((row["label"] for row in rows if row["kind"] == "start"), "θ_0")


def with_small(cell: Cell) -> str:
    """`figure (small print)`."""
    figure, small = cell
    return f"{figure} ({small})" if small else figure


def _rate(rate: Estimate | None) -> Cell:
    if rate is None:
        return NONE, ""
    return show(rate["value"]), "" if rate["low"] is None else f"{rate['low']:.3f}–{rate['high']:.3f}"


def _moved(row: ModelRow) -> str:
    change = row["delta"]["greedy"] or row["delta"]["sampled"]
    if change is None or change["gained"] is None:
        return ""
    return f"{change['gained']:,} gained, {change['lost']:,} lost"


def _bounds(figure: Estimate | None, digits: int = 3, signed: bool = False) -> str:
    return bounds(figure["low"], figure["high"], digits, signed) if figure else ""


def _models(rows: Sequence[ModelRow]) -> ReportTable:
    metric, own = own_column(rows)

    def line(row: ModelRow) -> dict[str, Cell]:
        delta, decision = row["delta"], row.get("decision") or {}
        change, of_gate = delta["greedy"] or delta["sampled"], decision.get("change")
        small = "; ".join(part for part in (_moved(row), _bounds(change, signed=True)) if part)
        said = partial(gate_metric.moved, decision.get("metric") or "")
        gate = ""
        if of_gate and of_gate["low"] is not None and of_gate["high"] is not None:
            gate = f"change {said(of_gate['value'])}; {said(of_gate['low'], of_gate['high'])}"
        known = gate_metric.measured(row, metric) if own else None
        cell = _shared(known) if metric.startswith("repetition/") else _valued(known)
        return {
            **dict.fromkeys(own, cell),
            "EM greedy": _valued(row["greedy"]),
            "EM sampled": _valued(row["sampled"]),
            "Δ EM": (show(change["value"] if change else None, signed=True), small),
            "NLL": (show(row["nll"]), ""),
            "Δ NLL": (show(delta["nll"], signed=True), _bounds(delta.get("nll_interval"), signed=True)),
            "decision": (decision.get("outcome") or NONE, gate),
        }

    return _made("models", "Models", "", rows, line, keep=("EM greedy", "NLL"))


def _opponents(rows: Sequence[ModelRow]) -> ReportTable:
    start = start_label(rows)

    def line(row: ModelRow) -> dict[str, Cell]:
        of: Any = row.get("opponents") or {}
        return {
            "margin": _valued(of.get("margin")),
            "accuracy": _valued(of.get("accuracy")),
            f"margin, {start}": _valued(of.get("margin_start")),
            f"accuracy, {start}": _valued(of.get("accuracy_start")),
            "reward, real": (show(of.get("real")), ""),
            "reward, generated": (show(of.get("generated")), ""),
            "loss": (show(of.get("loss")), ""),
            "same answers": (percent(of.get("identical")), ""),
        }

    return _made("opponents", "Against the opponents", "Held-out pairs of each iteration.", rows, line)


def _style(rows: Sequence[ModelRow]) -> ReportTable:
    """A line for each model and decoder, and one for the real answers."""
    lines: list[tuple[str, ModelRow | None, dict[str, Cell]]] = []
    for row in rows:
        if style := row.get("style"):
            lines += [(f"{starred(row)}, {of['name']}", row, _of_answers(of)) for of in style["answers"].values()]
    styles = [row["style"] for row in rows if "style" in row]
    real = next((style for style in styles if style["real_tokens"] is not None), None)
    if real and lines:
        loops, runs = percent(real["real_loops"]), percent(real["real_distinct"])
        cells = {"length": (show(real["real_tokens"], 1), ""), "loops": (loops, ""), "distinct runs": (runs, "")}
        lines.append(("real answers", None, {name: (NONE, "") for name in lines[0][2]} | cells))
    names = [name for name in (lines[0][2] if lines else {}) if any(cells[name][0] != NONE for _, _, cells in lines)]
    made = [
        TableLine(label, [cells[one] for one in names], row["kind"] if row else "total", bool(row and row.get("best")))
        for label, row, cells in lines
    ]
    text = "Answers to the held-out prompts, by the way they were drawn."
    return ReportTable("style", "Style of the answers", text, "model, decoder", names, made if names else [], COLUMNS)


def _of_answers(of: AnswerStyle) -> dict[str, Cell]:
    change = of["change"]
    moved = _bounds(change, 1, True)
    return {
        "EM": _valued(of["match"]),
        "length": (show(of["tokens"], 1), f"{show(change['value'], 1, True)}, {moved}" if change and moved else ""),
        "of real": (show(of["ratio"] and of["ratio"]["value"], 2), _bounds(of["ratio"], 2)),
        "never ends": _shared(of["truncated"]),
        "empty": _shared(of["empty"]),
        "loops": _shared(of["loops"]),
        "repetition": _shared(of["repetition"]),
        "distinct runs": _shared(of["distinct_runs"]),
        "distinct 1 · 2": (_distinct(of), ""),
    }


def _shared(figure: Estimate | None) -> Cell:
    """A share in per cent, with its interval."""
    if figure is None:
        return NONE, ""
    return percent(figure["value"]), share_bounds(figure["low"], figure["high"])


def _distinct(part: AnswerStyle) -> str:
    values = (part["distinct_1"], part["distinct_2"])
    return " · ".join(show(one, 3) for one in values) if any(one is not None for one in values) else NONE


def _pairs(rows: Sequence[ModelRow]) -> ReportTable:
    def line(row: ModelRow) -> dict[str, Cell]:
        of = row.get("quality") or {}
        rows = of.get("rows")

        def share(name: str) -> Cell:
            return percent(of[name] / rows if rows and name in of else None), ""

        def length(name: str) -> Cell:
            return show(of.get(f"{name}_mean"), 1), ""

        return {
            "answers": (count(rows), f"{of['not_picked']:,.0f} more not picked" if of.get("not_picked") else ""),
            "pairs": (count(of.get("pairs")), ""),
            "no wrong answer": _verified(of),
            "identical": share("identical_to_real"),
            "truncated": share("truncated"),
            "empty": (share("empty")[0], f"{of['rejected']:,.0f} rejected" if of.get("rejected") else ""),
            "repeated": share("duplicate_answers"),
            **_tokens(row),
            "length, real": length("real_characters"),
            "length, generated": length("generated_characters"),
        }

    text = "The generated answers that each model learnt from (training rows)."
    return _made("pairs", "Pair quality", text, rows, line)


def _verified(of: Mapping[str, float]) -> Cell:
    """The share of prompts to which every answer is right by `gather.verifier`, and how many it cannot say that of."""
    if "no_wrong_answer" not in of or not of.get("prompts"):
        return NONE, ""
    unknown = of.get("not_verified", 0)
    return percent(of["no_wrong_answer"] / of["prompts"]), f"{unknown:,.0f} not verified" if unknown else ""


def _sources(rows: Sequence[ModelRow]) -> ReportTable:
    """A line for each model and set of a mix."""
    lines = []
    for row in rows:
        for name, of in row.get("sources", {}).items():
            shares: Any = of["pairs"] or {}
            cells = {
                "held out": (count(of["rows"] or None), ""),
                "NLL": _valued(of["nll"]),
                "EM greedy": _valued(of["greedy"]),
                "EM sampled": _valued(of["sampled"]),
                "margin": _valued(of["margin"]),
                "accuracy": _valued(of["accuracy"]),
                "answers": (count(shares.get("rows")), ""),
                **{title: (percent(shares.get(title)), "") for title in ("identical", "truncated", "empty")},
            }
            lines.append((row, name, cells))
    names = [name for name in (lines[0][2] if lines else {}) if any(cells[name][0] != NONE for _, _, cells in lines)]
    text = "The held-out rows of each set of the mix, and the answers generated for its training rows."
    made = [
        TableLine(f"{starred(row)}, {name}", [cells[one] for one in names], row["kind"], bool(row.get("best")))
        for row, name, cells in lines
    ]
    return ReportTable("sources", "By set", text, "model, set", names, made, COLUMNS)


def _tokens(row: ModelRow) -> dict[str, Cell]:
    """Where the ids of generated answers are from, and what of the pairs is not scored as it stands in the text."""
    of = row.get("tokens")
    if not of:
        return {"tokens": (NONE, ""), "cut": (NONE, "")}
    rows = max(1, of["rows"])
    seen = [("prompts", of["prompts_cut"]), ("real", of["cut_real"]), ("generated", of["cut_generated"])]
    cut = ", ".join(f"{name} {percent(count / rows)}" for name, count in seen if count)
    rewritten = f"{percent(of['rewritten'] / rows)} rewritten by the template" if of["rewritten"] else ""
    return {"tokens": (of["ids"], rewritten), "cut": (cut or "0", "")}


def _harness(rows: Sequence[ModelRow]) -> ReportTable:
    """Tasks down, models across."""
    shown = [row for row in rows if row.get("harness", {}).get("tasks")]
    lines = []
    for name in dict.fromkeys(name for row in shown for name in row["harness"]["tasks"]):
        tasks = [row["harness"]["tasks"].get(name) for row in shown]
        lines.append(TableLine(name, [_score(task) for task in tasks], small=_task(next(filter(None, tasks)))))
    if len(lines) > 1:
        lines.append(TableLine("average", [(show(row["harness"]["average"]), "") for row in shown], "total"))
    versions = sorted({row["harness"]["lm_eval"] for row in shown} - {""})
    presets = sorted({row["harness"]["preset"] for row in shown} - {""})
    text = f"lm-evaluation-harness {', '.join(versions)}" + (f", preset {', '.join(presets)}" if presets else "")
    title = f"{text}." if shown else ""
    return ReportTable("harness", "Harness", title, "task", [*map(starred, shown)], lines, TASKS)


def _task(task: HarnessTask) -> str:
    parts = (
        task["metric"].partition(",")[0],
        "" if task["num_fewshot"] is None else f"{task['num_fewshot']:.0f}-shot",
        "" if task["rows"] is None else f"{task['rows']:,.0f} rows",
        "" if task["version"] is None else f"version {task['version']:g}",
        "" if task["higher_is_better"] else "lower is better",
    )
    return ", ".join(part for part in parts if part)


def _score(task: HarnessTask | None) -> Cell:
    if task is None:
        return NONE, ""
    return show(task["value"]), "" if task["stderr"] is None else f"± {show(task['stderr'])}"


def _made(
    id: str,
    title: str,
    text: str,
    rows: Sequence[ModelRow],
    line: Callable[[ModelRow], dict[str, Cell]],
    keep: Sequence[str] = (),
) -> ReportTable:
    """A table of models without the columns and lines that have no figure (with `keep` every line stays)."""
    known = [(row, line(row)) for row in rows]
    names = list(known[0][1]) if known else []
    columns = [name for name in names if name in keep or any(cells[name][0] != NONE for _, cells in known)]
    lines = [
        TableLine(starred(row), [cells[name] for name in columns], row["kind"], bool(row.get("best")))
        for row, cells in known
        if keep or any(cells[name][0] != NONE for name in columns)
    ]
    of_start = {head.replace("θ_0", start_label(rows)): said for head, said in COLUMNS.items()}
    return ReportTable(id, title, text, "model", columns, lines, of_start)


def _valued(figure: Estimate | None) -> Cell:
    return (NONE, "") if figure is None else (show(figure["value"]), _bounds(figure))
