"""The part of a report that only its run knows, put where the stage left its mark: what ran and what it cost, lineage,
software and sources, what differs from the paper's preset, and every step.

Is not: in any key. It is made from the ledger and the records when a run ends, so the same artifacts, cached another
time, have another page. All text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spin_core.analysis.columns import RUN
from spin_core.analysis.costs import Costs, StageCosts, costs
from spin_core.analysis.format import NONE, count_text, hours_text, plain, plural, short, time_text
from spin_core.analysis.profile_diff import DEFAULT, differences, preset, sentence
from spin_core.config.stage_table import DRAWN
from spin_core.job import Entry
from spin_core.report.html import rendered
from spin_core.report.lineage import graph
from spin_core.report.tables import ReportTable, TableLine
from spin_core.report.watch import Seen, pictures, tables
from spin_core.store.record import Record

Records = Callable[[Entry], Record | None]
COSTS = (
    ("seconds", "time of all steps", time_text),
    ("gpu_hours", "GPU hours", hours_text),
    ("cpu_hours", "hours on CPU", hours_text),
    ("generated", "tokens generated", count_text),
    ("trained", "tokens trained on", count_text),
)
"""What a run cost, by the names in `costs`: each with its title, and how a figure of it is written."""


def sections(
    steps: Sequence[Entry], records: Records, sources: Sequence[Mapping] = (), seen: Seen | None = None
) -> str:
    """The sections as HTML. `steps`: ledger entries in the order of the DAG; `records` looks up the record of one;
    `sources`: `{kind, hub, commit, digest}` of what was downloaded (runs/<name>/sources.json); `seen`: what is new in
    the dataset."""
    by_step = {id(step): records(step) for step in steps}

    def record(step: Entry) -> Record | None:
        return by_step[id(step)]

    made = costs(steps, lambda step: facts_of(record(step)))
    software, downloaded = _software([one for one in by_step.values() if one], sources)
    return rendered(
        "run.html.j2",
        total=made["total"],
        gpus=made["gpus"],
        new=_new(seen),
        tiles=_tiles(made),
        costs=_cost_table(made),
        unused=_said("unused", [record(step) for step in steps if step.stage == "reformat"]),
        left_out=_said("left_out", [record(step) for step in steps if step.stage == "gather"]),
        nodes=_lineage(steps, record, sources),
        software=software,
        downloaded=downloaded,
        **_ledger([one for step in steps if step.stage == "report" and (one := record(step))]),
        steps=steps,
        heads=[(head, RUN[head]) for head in ("step", "state", "took", "key", "artifact")],
    )


def _new(seen: Seen | None) -> dict[str, Any] | None:
    """None for a first run, which has nothing to compare its dataset with."""
    if seen is None or seen.since is None:
        return None
    said = [plain(text, 1000) for text in (seen.sentence, *seen.notes)]
    return {"said": said, "tables": tables(seen), "charts": pictures(seen)}


def facts_of(record: Record | None) -> dict:
    """The facts of a record, with the step's own config, as `costs` takes them."""
    return {**record.facts, "config": record.payload.get("config")} if record else {}


def _cost_table(made: Costs) -> ReportTable:
    total = made["total"]
    columns = ["steps", "cached", "took", "time, cached", "tokens"]
    gpu = bool(total["used"]["gpu_hours"] or total["saved"]["gpu_hours"])
    columns += ["GPU hours", "GPU hours, cached"] if gpu else []
    lines = [TableLine(line["stage"], _cost_cells(line, gpu)) for line in made["lines"]]
    lines.append(TableLine("all", _cost_cells(total, gpu), "total"))
    return ReportTable("cost-table", "What ran and what it cost", "", "stage", columns, lines, RUN)


def _tiles(made: Costs) -> list[tuple[str, str, str]]:
    """Name, figure and small print of what a run used, and of what was cached; time is always there."""
    used, saved = made["total"]["used"], made["total"]["saved"]
    return [
        (title, describe(used[name]), f"cached: {describe(saved[name])}")
        for name, title, describe in COSTS
        if name == "seconds" or used[name] or saved[name]
    ]


def _cost_cells(line: StageCosts, gpu: bool) -> list[tuple[str, str]]:
    used, saved = line["used"], line["saved"]
    done = {"generated": "generated", "trained": "trained on", "scored": "scored"}
    tokens = [(count_text(used[name] + saved[name]), word) for name, word in done.items() if used[name] + saved[name]]
    if line["stage"] == "total" or not tokens:
        tokens = [("", "")]
    ran = line["steps"] - line["cached"]
    cells = [
        (f"{line['steps']:,}", ""),
        (f"{line['cached']:,}", ""),
        (time_text(used["seconds"]) if ran else NONE, ""),
        (time_text(saved["seconds"]) if line["cached"] else NONE, ""),
        tokens[0],
    ]
    return cells + ([(hours_text(used["gpu_hours"]), ""), (hours_text(saved["gpu_hours"]), "")] if gpu else [])


def _lineage(steps: Sequence[Entry], record: Records, sources: Sequence[Mapping]) -> list[dict]:
    def inputs(step: Entry) -> Mapping:
        known = record(step)
        return known.payload.get("inputs", {}) if known else {}

    shown = [step for step in steps if step.stage in (*DRAWN, "evaluate")]
    nodes, edges = graph(steps, shown, inputs)
    hub = {one.get("digest"): f"{one.get('hub')}@{one.get('commit')}" for one in sources if one.get("hub")}
    is_digest = re.compile("[0-9a-f]{12,64}").fullmatch
    anchors = {n: f"made-{node.digest[:12]}" if is_digest(node.digest) else f"node-{n}" for n, node in nodes.items()}
    return [
        {
            "id": anchors[name],
            "node": node,
            "hub": hub.get(node.digest, ""),
            "from": [(anchors[start], nodes[start].title) for start, end in edges if end == name],
        }
        for name, node in nodes.items()
    ]


def _software(records: Sequence[Record], sources: Sequence[Mapping]) -> tuple[list[tuple[str, str]], list[str]]:
    """What computed the steps, several values where it was not the same for all; and what was downloaded."""
    seen: dict[str, dict[str, int]] = {}

    def add(name: str, value: object) -> None:
        if value not in (None, ""):
            values, text = seen.setdefault(short(name), {}), plain(str(value), 160)
            values[text] = values.get(text, 0) + 1

    downloaded = {f"{one.get('kind')}: {one.get('hub')}@{one.get('commit')}" for one in sources if one.get("hub")}
    for one in records:
        made = one.facts.get("provenance")
        made = made if isinstance(made, dict) else {}
        if commit := made.get("commit"):
            add("spinloop's commit", f"{str(commit)[:12]}{' and changes not in it' if made.get('dirty') else ''}")
        add("Python", made.get("python"))
        for name, version in sorted((made.get("versions") or {}).items()):
            add(name, version)
        summary = one.facts.get("summary")
        add("engine", summary.get("engine") if isinstance(summary, dict) else "")
        add("lm-evaluation-harness", summary.get("lm_eval") if isinstance(summary, dict) else "")
        machine = made.get("machine") or {}
        add("machine", ", ".join(str(v) for v in (machine.get("system"), machine.get("arch")) if v))
        for name, hubs in (one.facts.get("sources") or {}).items():
            downloaded |= {f"{name}: {hub}" for hub in hubs if not any(hub in known for known in downloaded)}
    lines = []
    for name, values in seen.items():
        counted = [f"{value} ({plural(count, 'step')})" for value, count in values.items()]
        lines.append((name, ", ".join((counted if len(values) > 1 else list(values))[:6])))
    return lines, [plain(one, 240) for one in sorted(downloaded)]


def _said(name: str, records: Sequence[Record | None]) -> list[str]:
    """The sentences of a summary: what text of the dataset no row has, or which answers are in no pair."""
    made = []
    for one in filter(None, records):
        summary = one.facts.get("summary")
        listed = summary.get(name) if isinstance(summary, dict) else None
        label = f"{plain(str(one.facts.get('label') or ''), 60)}: " if name == "left_out" else ""
        made += [f"{label}{plain(text, 1500)}" for text in (listed if isinstance(listed, list) else [])[:20]]
    return made


def _ledger(reports: Sequence[Record]) -> dict[str, Any]:
    """What differs from the paper's preset, the first setting first."""
    profile = reports[-1].payload.get("config", {}).get("profile") if reports else None
    if not isinstance(profile, dict):
        return {"ledger": None}
    differing = differences(profile, preset(DEFAULT))
    lines = [TableLine(one.setting, [(one.here, ""), (one.there, "")]) for one in differing]
    columns = ["this run", f"preset {DEFAULT}"]
    table = ReportTable("ledger", "Reproduction ledger", "", "setting", columns, lines, RUN)
    return {"ledger": table, "first_difference": sentence(differing, DEFAULT)}
