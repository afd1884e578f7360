"""The lineage of a run's models as a picture and as a table: dataset, rows, θ_0, answers, pairs, θ_1, and so on, by
content.

Is not: the DAG as planned. An edge is an input's digest that another step has put out, as the records say. Left out are
scores, evaluations and controls, which no model is made of; shards are one node, and tokens are the node of what they
are the tokens of. Nothing of a row's text is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spin_core.analysis.format import plural
from spin_core.config.stage_table import DRAWN
from spin_core.job import Entry
from spin_core.report.graph_picture import Box, picture
from spin_core.report.ui_pages import embedded, escape

FIRST, LAST = 2, 3  # iterations that are drawn of a run with more
STYLES = {  # fill, stroke, ink
    "ran": ("#dbeafe", "#2563c9", "#12305f"),
    "cached": ("#e2f4ea", "#17804f", "#0d3f28"),
    "outside": ("#eef0f3", "#7c8798", "#39424f"),
}
LEGEND = "Green: Cached. Blue: ran. Dashed: from outside this run, or not drawn."

Inputs = Callable[[Entry], Mapping[str, str | Sequence[str]]]


@dataclass(frozen=True)
class Node:
    """Something made, or read from outside; `digest` of one step's output, empty for many shards, of which `small` says
    how many. `state`: whether it was cached, empty for what is from outside."""

    title: str
    small: str
    style: str
    digest: str = ""
    state: str = ""


def lineage(steps: Sequence[Entry], inputs: Inputs) -> str:
    """The picture, its legend and the same as a table, from which a digest can be copied. `steps` in the order of the
    DAG; `inputs`: the digests that a step read, by the names of its inputs (asked of one shard only)."""
    shown = [step for step in steps if step.stage in DRAWN and step.place.role != "control"]
    last = max((_iteration(step) for step in shown), default=-1)
    nodes, edges = graph(steps, shown, inputs, range(FIRST, last - LAST + 1))
    if not nodes:
        return "No model has been made yet."
    return f"{_drawn(nodes, edges)}\n\n{LEGEND}\n\n{_table(nodes, edges)}"


def graph(
    steps: Sequence[Entry], shown: Sequence[Entry], inputs: Inputs, gap: range = range(0)
) -> tuple[dict[str, Node], list[tuple[str, str]]]:
    """Nodes by name and the edges between names, of the steps `shown` among all `steps`; iterations in `gap` are one
    node."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for step in shown:
        one = f"iter {step.place.iteration}" if step.place.shard else step.label
        groups.setdefault((step.stage, one), []).append(step)
    names = {group: f"n{i}" for i, group in enumerate(groups)}
    names |= {group: "gap" for group in groups if _iteration(groups[group][0]) in gap}
    owners = {step.digest: names[group] for group, made in groups.items() for step in made}
    for step in steps:
        if step.stage == "tokenize":
            read = inputs(step)
            if owner := owners.get(str(read.get("rows") or read.get("pairs")), ""):
                owners[step.digest] = owner
    hidden = {step.digest for step in steps} - set(owners)
    rows = next((names[group] for group in groups if group[0] == "reformat"), "")
    nodes, edges = dict[str, Node](), dict[tuple[str, str], None]()
    for group, made in groups.items():
        name = names[group]
        node = Node("…", f"iterations {gap.start} to {gap.stop - 1}", "outside") if name == "gap" else _node(made)
        for reads, value in inputs(made[0]).items():
            if group[0] == "gather" and reads in ("rows", "tokens"):
                continue  # the same rows as of its answers; two lines through the whole diagram
            for digest in [value] if isinstance(value, str) else value:
                source = rows if reads == "prompts" else owners.get(digest, "")
                if not source and digest not in hidden:
                    source = owners[digest] = f"o{len(nodes)}"
                    nodes[source] = Node(reads.replace("_", " "), digest[:7], "outside", digest)
                if source and source != name:
                    edges[source, name] = None
        nodes[name] = node
    return nodes, list(edges)


def _node(made: Sequence[Entry]) -> Node:
    """The node of one step, or of all shards of an iteration."""
    first = made[0]
    t = _iteration(first)
    count = first.summary
    title = {
        "demo_rows": f"dataset, {first.label}",
        "docstring_rows": "sentences of docstrings",
        "demo_model": "base model",
        "reformat": f"{_count(count, 'train_rows')} rows, {_count(count, 'test_rows')} held out",
        "import_model": f"θ_{first.place.model}, imported",
        "import_pairs": f"pairs_{t}, {_count(count, 'train_pairs')}, imported",
        "sft": f"SFT {first.label}" if first.place.role == "control" else "θ_0",
        "generate": f"answers of θ_{t}",
        "gather": f"pairs_{t}, {_count(count, 'train_pairs')}",
        "finetune": f"θ_{t + 1}",
        "evaluate": f"held-out answers, {first.label}",
    }[first.stage]
    cached = sum(step.state == "Cached" for step in made)
    state = "Cached" if cached == len(made) else f"{cached:,} Cached" if cached else "ran"
    style = "cached" if cached == len(made) else "ran"
    if first.stage == "generate":
        return Node(title, plural(len(made), "shard"), style, state=state)
    return Node(title, first.digest[:7], style, first.digest, state)


def _iteration(step: Entry) -> int:
    return -1 if step.place.iteration is None else step.place.iteration


def _count(summary: Mapping, name: str) -> str:
    value = summary.get(name)
    return f"{value:,}" if isinstance(value, int) else "–"


def _drawn(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> str:
    boxes = {}
    for name in _forward(nodes, edges):
        node = nodes[name]
        title, small = _shown(node)
        boxes[name] = Box(title, small, *STYLES[node.style], dashed=node.style == "outside")
    return embedded("What each model was made of; the table below has the same.", picture(boxes, edges))


def _forward(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> list[str]:
    """The names in an order in which every edge goes forward. (A source is entered before the first that reads it, and
    the node of the iterations that are not drawn where its first stands.)"""
    left, order = list(nodes), []
    while left:
        ready = next((n for n in left if not any(end == n and start in left for start, end in edges)), left[0])
        left.remove(ready)
        order.append(ready)
    return order


def _table(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> str:
    lines = ["| what | content | made of |", "| :-- | :-- | :-- |"]
    for name, node in nodes.items():
        read = [escape(_shown(nodes[start])[0], 60) for start, end in edges if end == name]
        title, small = (escape(text, 60) for text in _shown(node))
        lines.append(f"| {title} | {small} | {'<br>'.join(read)} |")
    return "\n".join(lines)


def _shown(node: Node) -> tuple[str, str]:
    """A node's two lines."""
    small = f"{node.small} · {node.state}" if node.state else node.small
    title, small = (re.sub(r"[^\w .,:·…–-]", " ", part[:60]) for part in (node.title, small))
    return title, small
