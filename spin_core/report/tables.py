"""The tables of the report, one for each question, each narrow enough for a phone: is it better, does it win its game,
how does it write, what did it learn from, what does the harness say.

Text only: every figure comes from `measures.measured`. A column that no line has a figure for is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from spin_core.analysis.figures import NONE, percent, show, starred

Cell = tuple[str, str]  # figure, small print


@dataclass(frozen=True)
class Line:
    """A line of a table; `kind` and `best` are how it is shown. Small print is of parts with "; " between them, and
    each part stays on one line."""

    label: str
    cells: list[Cell]
    kind: str = ""
    best: bool = False
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table under a heading; `head` names the first column, `key` says what the columns mean."""

    id: str
    title: str
    text: str
    head: str
    columns: list[str]
    lines: list[Line]
    key: list[tuple[str, str]] = field(default_factory=list)


def tables(rows: Sequence[dict]) -> list[Table]:
    """Every table that has a figure, in reading order; the first is there always."""
    made = [_models(rows), _opponents(rows), _style(rows), _pairs(rows), _harness(rows)]
    return [table for i, table in enumerate(made) if i == 0 or table.lines]


def interval(figure: dict | None, digits: int = 3, signed: bool = False) -> str:
    """`0.630 to 0.689`, or nothing."""
    if not figure or figure.get("low") is None or figure.get("high") is None:
        return ""
    return f"{show(figure['low'], digits, signed)} to {show(figure['high'], digits, signed)}"


def _models(rows: Sequence[dict]) -> Table:
    def line(row: dict) -> dict[str, Cell]:
        delta, made = row["delta"], row.get("decision") or {}
        change = delta["greedy"] or delta["sampled"] or {}
        moved = "" if change.get("gained") is None else f"{change['gained']:,} gained, {change['lost']:,} lost"
        small = "; ".join(part for part in (moved, interval(change, signed=True)) if part)
        gate = interval(made.get("change"), signed=True)
        gate = f"change {show(made['change']['value'], signed=True)}; {gate}" if gate else ""
        return {
            "EM greedy": _valued(row["greedy"]),
            "EM sampled": _valued(row["sampled"]),
            "Δ EM": (show(change.get("value"), signed=True), small),
            "NLL": (show(row["nll"]), ""),
            "Δ NLL": (show(delta["nll"], signed=True), interval(delta.get("nll_interval"), signed=True)),
            "decision": (made.get("outcome") or NONE, gate),
        }

    key = [
        (
            "EM",
            "Exact match: share of held-out prompts whose generated answer agrees with the real one; greedy decoding, "
            "or sampled at temperature 1. Small print: 95 % Wilson interval.",
        ),
        (
            "Δ",
            "Difference from the start. Small print: held-out rows that became right (gained) and wrong (lost), "
            "and the 95 % interval of the change on the same rows.",
        ),
        (
            "NLL",
            "Mean negative log-likelihood per token of the real answers; lower is better. SPIN does not optimise it "
            "and may raise it.",
        ),
        (
            "decision",
            "What the gate said after the iteration; small print: the change of its metric against the best model "
            "before, with its bootstrap interval. ★ marks the best model of the run.",
        ),
        ("–", "Not measured in this run, or not finite."),
    ]
    return _made("models", "Models", "", rows, line, key, keep=("EM greedy", "NLL"))


def _opponents(rows: Sequence[dict]) -> Table:
    start = next((row["label"] for row in rows if row["kind"] == "start"), "θ_0")

    def line(row: dict) -> dict[str, Cell]:
        of = row.get("opponents") or {}
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

    key = [
        (
            "margin, accuracy",
            "β times the gap of log-ratios between real and generated answers against the iteration's opponent, the "
            "previous model, and the share of held-out rows where it is positive (a tie counts half); with "
            f"{start} against the start instead. Small print: 95 % intervals.",
        ),
        ("reward", "β times the log-ratio of the new model to its opponent: of real, and of generated answers."),
        ("loss", "The training's loss on held-out pairs; 0.693 (sigmoid) is a model that did not move."),
        ("same answers", "Share of held-out prompts that the model answers, greedily, as the model before it did."),
    ]
    return _made("opponents", "Against the opponents", "Held-out pairs of each iteration.", rows, line, key)


def _style(rows: Sequence[dict]) -> Table:
    def line(row: dict) -> dict[str, Cell]:
        of = row.get("style") or {}
        greedy, sampled = ((of.get(kind) or {}) for kind in ("greedy", "sampled"))
        change = greedy.get("change") or {}
        moved = f"{show(change['value'], 1, True)}, {interval(change, 1, True)}" if interval(change, 1) else ""
        length, drawn = show(greedy.get("tokens"), 1), show(sampled.get("tokens"), 1)
        smalls = [moved, "" if drawn == NONE else f"sampled {drawn}"]
        return {
            "length": (length, "; ".join(small for small in smalls if small)),
            "repetition": _two(*(percent(part.get("repetition")) for part in (greedy, sampled))),
            "distinct 1 · 2": _two(_distinct(greedy), _distinct(sampled)),
            "cut": _two(*(percent(part.get("truncated")) for part in (greedy, sampled))),
            "real length": (show(of.get("real_tokens"), 1), ""),
        }

    key = [
        (
            "length",
            "Mean tokens of a greedy answer. Small print: change since the start on the same rows, with its 95 % "
            "interval, and the length of answers sampled at temperature 1, as in the other columns.",
        ),
        ("repetition", "Mean share of an answer's 4-grams that it had already: loops."),
        ("distinct 1 · 2", "Different words and pairs of neighbours over all answers, as a share; low is monotonous."),
        ("cut", "Share of the answers that reached the length cap."),
    ]
    made = _made("style", "Style of the answers", "Answers to the held-out prompts.", rows, line, key)
    return made if set(made.columns) - {"real length"} else _made(made.id, made.title, "", [], line, key)


def _distinct(part: dict) -> str:
    values = [part.get(f"distinct_{n}") for n in (1, 2)]
    return " · ".join(show(one, 2) for one in values) if any(one is not None for one in values) else NONE


def _two(greedy: str, sampled: str) -> Cell:
    return greedy, "" if sampled == NONE else f"sampled {sampled}"


def _pairs(rows: Sequence[dict]) -> Table:
    def line(row: dict) -> dict[str, Cell]:
        of = row.get("quality") or {}
        count = of.get("rows")

        def share(name: str) -> Cell:
            return percent(of[name] / count if count and name in of else None), ""

        def length(name: str) -> Cell:
            return show(of.get(f"{name}_mean"), 1), ""

        return {
            "answers": _count(count),
            "pairs": _count(of.get("pairs")),
            "identical": share("identical_to_real"),
            "truncated": share("truncated"),
            "empty": (share("empty")[0], f"{of['rejected']:,.0f} rejected" if of.get("rejected") else ""),
            "repeated": share("duplicate_answers"),
            "length, real": length("real_characters"),
            "length, generated": length("generated_characters"),
        }

    key = [
        (
            "identical, truncated, empty, repeated",
            "Shares of the generated answers, before any is dropped, that equal the real one (they teach nothing), "
            "were cut at the length cap, are empty, or are another prompt's answer too. Small print: further rows "
            "without an answer, as their prompt does not fit into the model's context (rejected).",
        ),
        ("length", "Mean characters of real and of generated answers."),
    ]
    text = "The generated answers that each model learnt from (training rows)."
    return _made("pairs", "Pair quality", text, rows, line, key)


def _harness(rows: Sequence[dict]) -> Table:
    """Tasks down, models across."""
    shown = [row for row in rows if (row.get("harness") or {}).get("tasks")]
    names = list(dict.fromkeys(name for row in shown for name in row["harness"]["tasks"]))
    lines = []
    for name in names:
        found = [row["harness"]["tasks"].get(name) or {} for row in shown]
        told = _task(next(task for task in found if task))
        lines.append(Line(name, [_score(task) for task in found], small=told))
    if len(names) > 1:
        lines.append(Line("average", [(show(row["harness"]["average"]), "") for row in shown], "total"))
    versions = sorted({row["harness"]["lm_eval"] for row in shown} - {""})
    presets = sorted({row["harness"]["preset"] for row in shown} - {""})
    text = f"lm-evaluation-harness {', '.join(versions)}" + (f", preset {', '.join(presets)}" if presets else "")
    key = [
        ("figures", "The task's metric ± its standard error, as the harness reports both."),
        ("average", "Plain mean of the tasks, as leaderboards take it."),
    ]
    return Table("harness", "Harness", f"{text}." if shown else "", "task", [starred(row) for row in shown], lines, key)


def _task(task: dict) -> str:
    shots = "" if task["num_fewshot"] is None else f"{task['num_fewshot']:.0f}-shot"
    version = "" if task["version"] is None else f"version {task['version']:g}"
    rows = "" if task["rows"] is None else f"{task['rows']:,.0f} rows"
    parts = (
        task["metric"].partition(",")[0],
        shots,
        rows,
        version,
        "" if task["higher_is_better"] else "lower is better",
    )
    return ", ".join(part for part in parts if part)


def _score(task: dict) -> Cell:
    error = task.get("stderr")
    return show(task.get("value")), "" if error is None else f"± {show(error)}"


def _made(id: str, title: str, text: str, rows: Sequence[dict], line, key: list, keep: Sequence[str] = ()) -> Table:
    """A table of models without the columns and lines that have no figure (with `keep` every line stays)."""
    found = [(row, line(row)) for row in rows]
    names = list(found[0][1]) if found else []
    columns = [name for name in names if name in keep or any(cells[name][0] != NONE for _, cells in found)]
    lines = [
        Line(starred(row), [cells[name] for name in columns], row["kind"], bool(row.get("best")))
        for row, cells in found
        if keep or any(cells[name][0] != NONE for name in columns)
    ]
    return Table(id, title, text, "model", columns, lines, key)


def _valued(figure: dict | None) -> Cell:
    return (NONE, "") if figure is None else (show(figure["value"]), interval(figure))


def _count(value: float | None) -> Cell:
    return NONE if value is None else f"{value:,.0f}", ""
