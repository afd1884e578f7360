"""Functions that a conversation has, and the calls of them, as sets write them, to the form that chat templates render.

Not a choice of columns, no check of arguments against a function's schema, and nothing is called. The form is that of
transformers: functions are `{"type": "function", "function": {name, description, parameters}}`, calls `{"type":
"function", "function": {name, arguments}}` with arguments as an object (templates write it as JSON themselves). What a
table fills in for other rows (fields that are null) is left out. In a row both are JSON texts, in the set's own order.
"""

from __future__ import annotations

import json
from typing import Any

TOOLS, CALLS = "tools", "tool_calls"
BESIDE_CONTENT = (TOOLS, CALLS, "tool_call_id", "name")
"""Fields of a turn that a row with tools has beside role and content: `tools` of its first turn only, `tool_calls` of
an assistant's, the last two of what a tool answered."""


class NoTools(ValueError):
    """What is not understood of functions or calls."""


def functions(value: Any) -> str:
    """A list of functions, bare or under `function`, or the JSON text of one; empty where there are none. Raises
    NoTools."""
    made = []
    for one in _listed(value):
        inner = one.get("function", one) if one.get("type", "function") == "function" else None
        if not isinstance(inner, dict) or not _is_name(inner.get("name")):
            raise NoTools("is no list of functions with a name each")
        made.append({"type": "function", "function": _without_null(inner)})
    return _text(made)


def calls(value: Any) -> str:
    """A call or a list of calls, bare or under `function`, or the JSON text of either; empty where there are none.
    Arguments are an object or the JSON text of one. Raises NoTools."""
    made = []
    for one in _listed(value):
        function = one.get("function")
        inner = function if isinstance(function, dict) else one
        given = inner.get("arguments")
        if isinstance(given, str):
            given = _parsed(given) if given.strip() else {}
        if not _is_name(inner.get("name")) or not isinstance(given, dict | None):
            raise NoTools("is no call with a name and arguments that are an object")
        own = {"id": one["id"]} if isinstance(one.get("id"), str) else {}
        call = {"name": inner["name"], "arguments": _without_null(given or {})}
        made.append(own | {"type": "function", "function": call})
    return _text(made)


def together(first: str, second: str) -> str:
    """The calls of two texts as one."""
    return _text([*json.loads(first or "[]"), *json.loads(second or "[]")])


def as_rendered(turn: dict[str, str]) -> dict[str, Any]:
    """A turn as templates have it: calls as a list, and without the conversation's functions."""
    if turn.keys() <= {"role", "content"}:
        return dict(turn)
    made: dict[str, Any] = {name: value for name, value in turn.items() if name != TOOLS}
    return made | ({CALLS: json.loads(turn[CALLS])} if CALLS in turn else {})


def names(text: str) -> list[str]:
    """Of the functions, or calls, of a text."""
    return [str(one["function"]["name"]) for one in json.loads(text)]


def _listed(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        value = _parsed(value) if value.strip() else None
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in items):
        raise NoTools("is no list of objects")
    return [one for one in items if one]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NoTools("is no JSON") from None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _without_null(inner) for name, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _text(made: list[dict[str, Any]]) -> str:
    try:
        text = json.dumps(made, ensure_ascii=False, allow_nan=False) if made else ""
        text.encode()
    except (TypeError, ValueError, RecursionError):  # bytes or dates of a table, NaN, half of a surrogate pair
        raise NoTools("holds what is not JSON") from None
    return text
