"""From one record of any SFT set to prompt and answer: column conventions, roles, turns, and the reasons to reject.

Conventions, the first that fits: `messages` or `conversations` (role/content or from/value), the reference's `real`,
`prompt` + `response | completion | answer | output`, `question` + `answer | response`,
`instruction` (+ `input`) + `output | response`; with the last three also `system` or `system_prompt`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from spin_core.config.choices import Turns
from spin_core.data.rows import Messages, Row, prompt_id
from spin_core.errors import BadInput

Columns = dict[str, str]

PROMPTS = {
    "prompt": ("response", "completion", "answer", "output"),
    "question": ("answer", "response"),
    "instruction": ("output", "response"),
}
LAYOUTS: list[Columns] = [
    *({"messages": name} for name in ("messages", "conversations", "real")),
    *({"prompt": prompt, "answer": answer} for prompt, answers in PROMPTS.items() for answer in answers),
]
SYSTEM = ("system", "system_prompt")
MAPPED = ("messages", "prompt", "input", "answer", "system")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of a turn in which some sets keep an answer's reasoning apart from its text. How the two become one is each
chat template's own, and what is scored must be what the model writes, so such an answer is rejected with the remedy."""
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}


@dataclass(eq=False)
class Reject(Exception):
    """Why (a part of) a record is no row: a reason that is counted, and what was seen, in 200 characters. Raised where
    it ends the reading of the record."""

    reason: str
    detail: str

    def __post_init__(self) -> None:
        self.detail = self.detail[:200]


def reasons(counts: Counter[str]) -> str:
    """Reasons to reject with how often each was met, the most frequent first."""
    return ", ".join(f"{reason}: {n:,}" for reason, n in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def check_columns(columns: Columns) -> None:
    """Raise BadInput for a `dataset.columns` that names no prompt and answer."""
    unknown = sorted(set(columns) - set(MAPPED))
    if unknown:
        raise BadInput(f"dataset.columns.{unknown[0]}: not one of {', '.join(MAPPED)}; write {{prompt: …, answer: …}}.")
    if "messages" in columns and len(columns) > 1:
        raise BadInput("dataset.columns: `messages` stands alone; remove the other columns or `messages`.")
    if columns and "messages" not in columns and not {"prompt", "answer"} <= set(columns):
        raise BadInput("dataset.columns: give both `prompt` and `answer`, or `messages`.")


def layout(fields: dict[str, Any]) -> Columns | None:
    """The columns of the convention that the record follows, in the form of `dataset.columns`; None where none fits."""
    found = next((one for one in LAYOUTS if fields.keys() >= set(one.values())), None)
    if found is None or "messages" in found:
        return found
    columns = dict(found)
    if system := next((name for name in SYSTEM if name in fields), None):
        columns["system"] = system
    if found["prompt"] == "instruction" and "input" in fields:
        columns["input"] = "input"
    return columns


def examples(fields: dict[str, Any], columns: Columns, turns: Turns) -> list[Row | Reject]:
    """The rows of one record, with their prompt's id: one, or one for each assistant turn under `turns: all`; what
    cannot be used as Reject."""
    used = columns or layout(fields)
    if used is None or any(used[part] not in fields for part in ("messages", "prompt", "answer") if part in used):
        names = ", ".join(map(str, fields)).encode("utf-8", "backslashreplace").decode()
        return [Reject("wrong columns", f"the columns are {names}")]
    try:
        if "messages" in used:
            return _from_conversation(_conversation(fields.get(used["messages"]), used["messages"]), turns)
        return _from_conversation(_from_columns(fields, used), turns)
    except Reject as reject:
        return [reject]


def _from_columns(fields: dict[str, Any], used: Columns) -> Messages:
    """A conversation from flat columns; a prompt that is a message list (as in TRL) is the conversation so far."""
    prompt, answer = fields.get(used["prompt"]), fields.get(used["answer"])
    if isinstance(prompt, list):
        so_far = _conversation(prompt, used["prompt"])
    else:
        text = _string(prompt, used["prompt"])
        extra = _string(fields.get(used.get("input", "")), used.get("input", ""))
        so_far = [{"role": "user", "content": f"{text}\n\n{extra}" if extra.strip() else text}]
    system = _string(fields.get(used.get("system", "")), used.get("system", ""))
    if system:
        so_far = [{"role": "system", "content": system}, *so_far]
    if isinstance(answer, list):
        return [*so_far, *_conversation(answer, used["answer"])]
    return [*so_far, {"role": "assistant", "content": _string(answer, used["answer"])}]


def _conversation(value: Any, column: str) -> Messages:
    if not isinstance(value, list):
        raise Reject("wrong type", f"{column} is a {type(value).__name__}, not a list of messages")
    turns = []
    for number, turn in enumerate(value):
        where = f"{column}[{number}]"
        if not isinstance(turn, dict):
            raise Reject("wrong type", f"{where} is a {type(turn).__name__}, not a message")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str):
            raise Reject("wrong type", f"{where} has no role")
        turns.append({"role": ROLES.get(role, role), "content": _string(content, where)})
        if apart := next((name for name in REASONING if _says(turn.get(name))), None):
            turns[-1]["apart"] = apart  # until `_from_conversation` knows whether this turn is an answer
    return turns


def _says(value: Any) -> bool:
    """Whether a field holds reasoning: text or a list, not a flag (`thinking: true`)."""
    return bool(value.strip() if isinstance(value, str) else isinstance(value, list) and value)


def _string(value: Any, where: str) -> str:
    """`value` as text; None (an empty cell) is the empty text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Reject("wrong type", f"{where} is a {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Reject("not text", f"{where} has a lone surrogate at character {error.start}") from None
    return value


def _from_conversation(turns: Messages, which: Turns) -> list[Row | Reject]:
    apart = [turn.pop("apart", "") for turn in turns]
    body = turns[1:] if turns and turns[0]["role"] == "system" else turns
    for position, turn in enumerate(body):
        expected = ("user", "assistant")[position % 2]
        if turn["role"] != expected:
            raise Reject("bad role order", f"turn {position} is by {turn['role']!r}, not by the {expected}")
        if expected == "user" and not turn["content"].strip():
            raise Reject("empty prompt", f"turn {position} is empty")
    if not body:
        raise Reject("empty prompt", "there is no user turn")
    ends = [position for position, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not ends:
        raise Reject("no answer", "there is no assistant turn")
    chosen = {"first": ends[:1], "last": ends[-1:], "all": ends}[which]
    return [_row(turns, end, apart[end]) for end in chosen]


def _row(turns: Messages, end: int, apart: str) -> Row | Reject:
    answer = turns[end]["content"]
    if apart:
        remedy = "write both into content as the model does (<think>…</think> and the answer), or remove the field"
        return Reject("reasoning apart from the answer", f"turn {end} has {apart}; {remedy}")
    if not answer.strip():
        return Reject("no answer", f"turn {end} is empty")
    return Row(prompt_id(turns[:end]), turns[:end], answer)
