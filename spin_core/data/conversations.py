"""From a list of messages, as sets write it, to turns with a role and a text, and from turns to rows.

Not a choice of columns (`spin_core/data/column_mapping.py`). What is read of a message: `role` or `from`, `content` or
`value` (text, or a list of parts of text, which are joined), and `weight` or `loss_weight` (0: a turn that is not
trained on). What cannot be kept as it is meant (tool calls, reasoning apart from the answer) is a Reject.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from spin_core.config.choices import Turns
from spin_core.data.rows import Messages, Row, prompt_id

ROLES = {
    "human": "user", "prompter": "user", "developer": "system",
    "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
TOOL_ROLES = ("tool", "function", "observation", "function_call", "ipython", "tool_call", "tool_response")
TOOL_CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of a turn, or columns, in which some sets keep an answer's reasoning apart from its text. How the two become
one is each chat template's own, and what is scored must be what the model writes, so such an answer is rejected with
the remedy."""
WEIGHTS = ("weight", "loss_weight")
FLAGS = (*WEIGHTS, "mask", "loss_mask", "train", "loss")
"""Fields of a turn, or columns, that say what is trained on, each set in its own way: only the weights 0 and 1 are
known, and all else ends the run."""
ALIASES = (("role", "from"), ("content", "value"))
"""Fields of a turn that mean the same: the first that is filled counts."""
TEXT_OF_PART = ("text", "value", "content")
SPOKEN = re.compile(r"\n\n(Human|Assistant):")
DIGITS = 15  # of a number that is the same text in every notation of it without exponent


@dataclass(eq=False)
class Reject(Exception):
    """Why (a part of) a record is no row: a reason that is counted, and what was seen, in 200 characters. Raised where
    it ends the reading of the record."""

    reason: str
    detail: str

    def __post_init__(self) -> None:
        self.detail = self.detail[:200]


class Unclear(Reject):
    """Something that changes what a row means, in a form that is not understood: the set is not read, as its other rows
    would be misread, too."""


@dataclass
class Turn:
    """A message; `apart`: the field that has its reasoning; `trained`: whether it may be an answer."""

    role: str
    content: str
    apart: str = ""
    trained: bool = True

    def as_message(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


def read_turns(value: Any, column: str) -> list[Turn]:
    """The turns of a list of messages. Raises Reject."""
    if not isinstance(value, list):
        raise Reject("wrong type", f"{column} is a {type(value).__name__}, not a list of messages")
    return [_turn(message, f"{column}[{number}]") for number, message in enumerate(value)]


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise Reject("wrong type", f"{where} is a {type(message).__name__}, not a message")
    role = _first(message, *ALIASES[0])
    if not isinstance(role, str):
        raise Reject("wrong type", f"{where} has no role")
    if role in TOOL_ROLES or any(holds(message.get(name)) for name in TOOL_CALLS):
        what = next((f"has {name}" for name in TOOL_CALLS if holds(message.get(name))), f"is by {role!r}")
        raise Reject("tool calls", f"{where} {what}; rows with tools are not read")
    apart = next((name for name in REASONING if says(message.get(name))), "")
    content = content_text(_first(message, *ALIASES[1]), where)
    return Turn(ROLES.get(role, role), content, apart, is_trained(message, where))


def _first(message: dict[Any, Any], *names: str) -> Any:
    """The first of the fields that is there and not empty (a table has all of them in every message)."""
    return next((message[name] for name in names if message.get(name) is not None), None)


def is_trained(fields: dict[Any, Any], where: str) -> bool:
    """What `weight` or `loss_weight` says. Raises Unclear for other flags than one of these with 0 or 1."""
    name = next((name for name in FLAGS if fields.get(name) is not None), None)
    if name is None:
        return True
    value = fields[name]
    if name in WEIGHTS and isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    remedy = "write weight 0 where it is not to be, and remove the field"
    raise Unclear("not understood", f"{where} has {name} {value!r:.40}, which says what is trained on; {remedy}")


def fields_read(message: dict[Any, Any]) -> set[str]:
    """The fields of a message that a row has, or that say whether it has them."""
    named = (next((name for name in names if message.get(name) is not None), "") for names in ALIASES)
    return {*named, *FLAGS}


def says(value: Any) -> bool:
    """Whether a field holds reasoning: text or a list, not a flag (`thinking: true`)."""
    return bool(value.strip() if isinstance(value, str) else isinstance(value, list) and value)


def holds(value: Any) -> bool:
    """Whether there is anything in a cell: text of an empty JSON value is nothing."""
    return value.strip() not in ("", "[]", "{}", "null") if isinstance(value, str) else bool(value)


def content_text(value: Any, where: str) -> str:
    """A message's text; a list of parts must be text throughout."""
    if not isinstance(value, list):
        return string(value, where)
    texts = []
    for number, part in enumerate(value):
        at = f"{where}, part {number},"
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if not isinstance(part, dict) or kind not in ("text", None):
            raise Reject("wrong type", f"{at} is {kind!r:.40}, not text")
        texts.append(string(_first(part, *TEXT_OF_PART), at))
    return "".join(texts)


def string(value: Any, where: str) -> str:
    """`value` as text; None (an empty cell) is the empty text. Raises Reject for what is no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Reject("wrong type", f"{where} is a {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Reject("not text", f"{where} has a lone surrogate at character {error.start}") from None
    return value


def exact_text(value: Any, where: str) -> str:
    """As `string`; a number that can be written in one way only is that text."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**DIGITS:
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        if set(text) <= set("-.0123456789") and not text.endswith(".0") and len(text.strip("-0.")) <= DIGITS:
            return text
    if isinstance(value, bool | int | float):
        shown = f"a {type(value).__name__}" if type(value) is int else repr(value)
        raise Reject("wrong type", f"{where} is {shown}, which can be written in several ways; write it as text")
    return string(value, where)


def spoken(text: str) -> list[Turn] | None:
    """The turns of `\\n\\nHuman: …\\n\\nAssistant: …` (as in hh-rlhf); None where a text is none. A last turn that is
    only begun is left out."""
    head, *parts = SPOKEN.split(text)
    if head.strip() or not parts:
        return None
    turns = [
        Turn("user" if who == "Human" else "assistant", said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns


def rows_of(turns: list[Turn], which: Turns) -> list[Row | Reject]:
    """The rows of a conversation: `which` of its assistant turns that are trained on. Raises Reject for another."""
    body = turns[1:] if turns and turns[0].role == "system" else turns
    for position, turn in enumerate(body):
        expected = ("user", "assistant")[position % 2]
        if turn.role != expected:
            raise Reject("bad role order", f"turn {position} is by {turn.role!r}, not by the {expected}")
        if expected == "user" and not turn.content.strip():
            raise Reject("empty prompt", f"turn {position} is empty")
    if not body:
        raise Reject("empty prompt", "there is no user turn")
    ends = [position for position, turn in enumerate(turns) if turn.role == "assistant"]
    trained = [position for position in ends if turns[position].trained]
    if not trained:
        raise Reject("no answer", "every assistant turn has weight 0" if ends else "there is no assistant turn")
    messages = [turn.as_message() for turn in turns]
    chosen = {"first": trained[:1], "last": trained[-1:], "all": trained}[which]
    return [_row(messages, end, turns[end].apart) for end in chosen]


def _row(messages: Messages, end: int, apart: str) -> Row | Reject:
    answer = messages[end]["content"]
    if apart:
        return Reject(*reasoning_apart(f"turn {end} has {apart}", "remove the field"))
    if not answer.strip():
        return Reject("no answer", f"turn {end} is empty")
    return Row(prompt_id(messages[:end]), messages[:end], answer)


def reasoning_apart(what: str, other: str) -> tuple[str, str]:
    """Reason and detail of an answer whose reasoning is elsewhere."""
    remedy = f"write both into content as the model does (<think>…</think> and the answer), or {other}"
    return "reasoning apart from the answer", f"{what}; {remedy}"
