"""From a list of messages, as sets write it, to turns with a role and a text, and from turns to rows.

Not a choice of columns (`spin_core/data/column_mapping.py`). What is read of a message: `role` or `from`, `content` or
`value` (text, or a list of parts of text, which are joined), `weight` or `loss_weight` (0: a turn that is not trained
on), and tool calls with what the tools answered (`spin_core/data/tools.py`): both are parts of the prompt. What cannot
be kept as it is meant (a call as the answer, reasoning apart from the answer) is a Reject.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from spin_core.config.choices import Turns
from spin_core.data.rows import Messages, Row, prompt_id
from spin_core.data.tools import CALLS, TOOLS, NoTools, calls, functions, together

ROLES = {
    "human": "user", "prompter": "user", "developer": "system",
    "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
TOOL_ROLES = ("tool", "function", "observation", "ipython", "tool_response")
CALL_ROLES = ("function_call", "tool_call")
TOOL_CALLS = (CALLS, "function_call")
OF_A_TOOL = ("tool_call_id", "name")
CALL_IS_TEXT = "a call is learnt as text: write it into content as the model does"
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
    """A message; `apart`: the field that has its reasoning; `trained`: whether it may be an answer; `tools`: its fields
    of tools (`tools.BESIDE_CONTENT`)."""

    role: str
    content: str
    apart: str = ""
    trained: bool = True
    tools: dict[str, str] = field(default_factory=dict)

    def as_message(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content, **self.tools}


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
    apart = next((name for name in REASONING if says(message.get(name))), "")
    content, reasoned, called = _apart(_first(message, *ALIASES[1]))
    own = {TOOLS: tool_list(message[TOOLS], f"{where}.{TOOLS}")} if holds(message.get(TOOLS)) else {}
    if named := next((name for name in TOOL_CALLS if holds(message.get(name))), ""):
        own[CALLS] = call_list(message[named], f"{where}.{named}")
    elif role in CALL_ROLES:
        own[CALLS], content = call_list(content, where), ""
    for part in called:
        own[CALLS] = together(own.get(CALLS, ""), call_list(_first(part, *TEXT_OF_PART), f"{where}, a part"))
    if role in TOOL_ROLES:
        own |= {name: string(message[name], where) for name in OF_A_TOOL if holds(message.get(name))}
    role = "tool" if role in TOOL_ROLES else "assistant" if role in CALL_ROLES else ROLES.get(role, role)
    own = {name: text for name, text in own.items() if text}
    apart = apart or "a part with it" * bool(reasoned)
    return Turn(role, content_text(content, where), apart, is_trained(message, where), own)


def _apart(content: Any) -> tuple[Any, list[Any], list[Any]]:
    """A list of parts without those that are reasoning, or calls, and these two."""
    if not isinstance(content, list):
        return content, [], []
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    reasoned, called = (
        [p for p, kind in zip(content, kinds, strict=True) if kind in of] for of in (REASONING, CALL_ROLES)
    )
    return (
        [p for p, kind in zip(content, kinds, strict=True) if kind not in (*REASONING, *CALL_ROLES)],
        reasoned,
        called,
    )


def calls_tool(message: dict[Any, Any]) -> bool:
    """Whether a message calls a tool, in a field, a part or as a turn of its own."""
    in_field = any(holds(message.get(name)) for name in TOOL_CALLS)
    return (
        in_field
        or any(message.get(name) in CALL_ROLES for name in ALIASES[0])
        or bool(_apart(_first(message, *ALIASES[1]))[2])
    )


def reasoning_parts(message: dict[Any, Any]) -> list[Any]:
    """Those parts of its content that are reasoning."""
    return _apart(_first(message, *ALIASES[1]))[1]


def tools_first(turns: list[Turn], given: str) -> list[Turn]:
    """The functions that a turn has, or a column (`given`, JSON text or empty), in the first turn. Raises Reject for
    different ones."""
    different = {text for text in (given, *(turn.tools.get(TOOLS, "") for turn in turns)) if text}
    if not turns or not different:
        return turns
    if len(different) > 1:
        raise Reject("tools not understood", "the conversation has several lists of tools")
    bare = [replace(turn, tools={name: turn.tools[name] for name in turn.tools if name != TOOLS}) for turn in turns]
    return [replace(bare[0], tools={TOOLS: different.pop(), **bare[0].tools}), *bare[1:]]


def tool_list(value: Any, where: str) -> str:
    """The functions of a conversation, as JSON text. Raises Reject."""
    try:
        return functions(value)
    except NoTools as error:
        raise Reject("tools not understood", f"{where} {error}") from None


def call_list(value: Any, where: str) -> str:
    """The calls of a turn, as JSON text. Raises Reject where there are none."""
    try:
        if made := calls(value):
            return made
    except NoTools as error:
        raise Reject("tools not understood", f"{where} {error}") from None
    raise Reject("tools not understood", f"{where} is no call")


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
    named = {next((name for name in names if message.get(name) is not None), "") for names in ALIASES}
    by_tool = any(message.get(name) in TOOL_ROLES for name in ALIASES[0])
    return named | {*FLAGS, TOOLS, *TOOL_CALLS} | (set(OF_A_TOOL) if by_tool else set())


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
    """The rows of a conversation: `which` of its answers, assistant turns that are trained on and call no tool. Raises
    Reject for another."""
    turns = _calls_together(turns)
    _check_order(turns[1:] if turns and turns[0].role == "system" else turns)
    ends = [position for position, turn in enumerate(turns) if turn.role == "assistant"]
    trained = [position for position in ends if turns[position].trained]
    if not trained:
        raise Reject("no answer", "every assistant turn has weight 0" if ends else "there is no assistant turn")
    answers = [position for position in trained if CALLS not in turns[position].tools]
    if not answers:
        raise Reject("no answer but a tool call", CALL_IS_TEXT)
    messages = [turn.as_message() for turn in turns]
    chosen = {"first": answers[:1], "last": answers[-1:], "all": answers}[which]
    return [_row(messages, end, turns[end].apart) for end in chosen]


def _calls_together(turns: list[Turn]) -> list[Turn]:
    """Calls that follow each other are of one turn (some sets write a turn each)."""
    made: list[Turn] = []
    for turn in turns:
        if made and CALLS in made[-1].tools and CALLS in turn.tools:
            last = made.pop()
            text = "\n\n".join(part for part in (last.content, turn.content) if part)
            both = together(last.tools[CALLS], turn.tools[CALLS])
            turn = replace(turn, content=text, apart=last.apart or turn.apart, tools={**last.tools, CALLS: both})
        made.append(turn)
    return made


def _check_order(body: list[Turn]) -> None:
    """Raise Reject unless user and assistant take turns, tools answer calls, and every user says something."""
    expected: tuple[str, ...] = ("user",)
    for position, turn in enumerate(body):
        if turn.role not in expected:
            raise Reject("bad role order", f"turn {position} is by {turn.role!r}, not by the {' or '.join(expected)}")
        if turn.role == "user" and not turn.content.strip():
            raise Reject("empty prompt", f"turn {position} is empty")
        if CALLS in turn.tools and turn.role != "assistant":
            raise Reject("tools not understood", f"turn {position} is by {turn.role!r} and calls a tool")
        if turn.role == "assistant":
            expected = ("tool",) if CALLS in turn.tools else ("user",)
        else:
            expected = ("assistant",) if turn.role == "user" else ("tool", "assistant")
    if not body:
        raise Reject("empty prompt", "there is no user turn")


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
