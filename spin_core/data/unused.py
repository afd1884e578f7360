"""Text that a set holds and no row has: which columns and fields of messages it is in, and how to use it.

What says how a record is meant (a label, a weight, the rejected answer) is used. Tool calls are counted, too, as they
are never what a row learns. Of a record that is rejected nothing counts: its place is among the rejects.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from spin_core.data.column_mapping import MAIN, Columns, ends_with_user, layout
from spin_core.data.conversations import CALL_IS_TEXT, calls_tool, fields_read, reasoning_parts

NAMED = 12  # in the sentence
MESSAGES = ("messages", "prompt", "answer", "chosen", "rejected", "history")


class Unused:
    """Counts them over the records of one source that give rows."""

    def __init__(self) -> None:
        self._names = Counter[str]()
        self._layouts = Counter[tuple[tuple[str, str], ...]]()
        self._calls = 0

    def count(self, fields: dict[str, Any], columns: Columns) -> None:
        """Take a record."""
        used = columns or layout(fields) or {}
        self._layouts[tuple(used.items())] += 1
        self._names.update(unused(fields, used))
        self._calls += any(
            calls_tool(message) for part in ("messages", "answer") for message in _messages(fields, used, part)
        )

    def sentence(self, source: str) -> str:
        """What is unused in how many records, and the `dataset.columns` that would use it; and in how many a turn that
        calls tools is no answer. Empty where nothing is."""
        sentences = [self._unused(source)] if self._names else []
        if self._calls:
            sentences.append(
                f"{source}: tool calls, which are no answers (in {self._calls:,} records); {CALL_IS_TEXT}."
            )
        return " ".join(sentences)

    def _unused(self, source: str) -> str:
        names = sorted(self._names, key=lambda name: (-self._names[name], name))
        listed = [f"{_shown(name)} ({self._names[name]:,})" for name in names[:NAMED]]
        listed += [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        return f"{source}: text that no row has (in how many records): {', '.join(listed)}; {self._remedy(names)}."

    def _remedy(self, names: list[str]) -> str:
        layouts = [dict(one) for one in sorted(self._layouts, key=lambda one: (-self._layouts[one], one))]
        columns = layouts[0]
        for other in layouts[1:]:  # a part that few records fill (an input) is to stay what it is
            if all(columns.get(part) == other.get(part) for part in MAIN):
                columns = other | columns
        wanted = next((name for name in names if "[" not in name and name != "id" and name[-3:] != "_id"), "")
        if not wanted or "context" in columns or not {"messages", "prompt"} & set(columns):
            return "to use it, write it into the prompt"
        mapped = ", ".join(f"{part}: {_shown(name)}" for part, name in (columns | {"context": wanted}).items())
        return f"to add one to the prompt: dataset.columns {{{mapped}}}"


def unused(fields: dict[str, Any], columns: Columns) -> set[str]:
    """Columns, and fields of messages (`messages[].name`), of one record that hold text and that its rows have not."""
    used = columns or layout(fields) or {}
    names = set(used.values())
    left = {str(name) for name, value in fields.items() if name not in names and _has_text(value)}
    if "messages" in used and "chosen" not in used and ends_with_user(fields.get(used["messages"])):
        left.add(f"{used['messages']}[-1]")  # a turn that nobody answers
    for part in MESSAGES:
        for message in _messages(fields, used, part):
            left |= {f"{used[part]}[].{name}" for name in _left_over(message)}
    return left


def _messages(fields: dict[str, Any], used: Columns, part: str) -> list[dict[Any, Any]]:
    """Those of a part that has messages."""
    value = fields.get(used[part]) if part in used else None
    every = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [message for message in every if isinstance(message, dict)]


def _left_over(message: dict[Any, Any]) -> list[str]:
    read = fields_read(message)
    left = [str(name) for name, value in message.items() if name not in read and _has_text(value)]
    return left + ["content, parts of reasoning"] * bool(reasoning_parts(message))


def _has_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(map(_has_text, value.values()))
    return isinstance(value, list) and any(map(_has_text, value))


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()[:60]
