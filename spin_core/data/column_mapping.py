"""From one record of any SFT set to prompt and answer: which column is what, and the reasons to reject.

Layouts, the first that fits: `messages` or `conversations` (`spin_core/data/conversations.py`), the reference's `real`,
`prompt` + `response | completion | answer | output`, `question` + `answer | response | answerKey`, `instruction` +
`output | response`, `query` + `response`, each of these prompts also + `chosen`, and `chosen` + `rejected` (or
`chosen_messages` + `rejected_messages`) that have the prompt in them.
Beside them `system`, `system_prompt`, `history`, `tools` or `functions`, `label`, `kto_tag`; with a prompt
`input` (of an instruction), `context`, `choices`; `rejected` beside a `chosen`. A text in any other column is unused,
and `spin_core/data/unused.py` names it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from spin_core.config.choices import Turns
from spin_core.data.conversations import (
    FLAGS,
    REASONING,
    WEIGHTS,
    Turn,
    Unclear,
    exact_text,
    holds,
    is_trained,
    read_turns,
    reasoning_apart,
    rows_of,
    says,
    spoken,
    string,
    tool_list,
    tools_first,
)
from spin_core.data.conversations import Reject as Reject  # who reads records has their rejects from here
from spin_core.data.rows import Row
from spin_core.errors import BadInput

Columns = dict[str, str]
"""What a column is used as → its name, in the form of `dataset.columns`."""

PROMPTS = {
    "prompt": ("response", "completion", "answer", "output"),
    "question": ("answer", "response", "answerKey"),
    "instruction": ("output", "response"),
    "query": ("response",),
}
LAYOUTS: list[Columns] = [
    *({"messages": name} for name in ("messages", "conversations", "real")),
    *({"prompt": prompt, "answer": answer} for prompt, answers in PROMPTS.items() for answer in answers),
    *({"prompt": prompt, "chosen": "chosen"} for prompt in PROMPTS),
    {"chosen": "chosen", "rejected": "rejected"},
    {"chosen": "chosen_messages", "rejected": "rejected_messages"},
]
MAIN = ("messages", "prompt", "answer", "chosen")
LABELS = ("label", "kto_tag")
TRUE_FALSE = {"true": True, "false": False}
NOT_TEXT = ("images", "image", "videos", "video", "audios", "audio")
BESIDE = {
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "label": LABELS,
}
BESIDE_PROMPT = {"context": ("context",), "choices": ("choices",)}
EMPTY: tuple[Any, ...] = (None, "", [], {})
MAPPED = (*MAIN, "system", "input", "context", "history", "choices", "tools", "rejected", "label")
BOTH = (
    "dataset.columns: give both `prompt` and `answer` (or `chosen`), or `messages`, or `chosen` with the prompt in it."
)


def reasons(counts: Counter[str]) -> str:
    """Reasons to reject with how often each was met, the most frequent first."""
    return ", ".join(f"{reason}: {n:,}" for reason, n in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def check_columns(columns: Columns) -> None:
    """Raise BadInput for a `dataset.columns` that names no prompt and answer, or two."""
    unknown = sorted(set(columns) - set(MAPPED))
    if unknown:
        raise BadInput(f"dataset.columns.{unknown[0]}: not one of {', '.join(MAPPED)}; write {{prompt: …, answer: …}}.")
    if "messages" in columns:
        if other := next((part for part in ("prompt", "answer", "input", "choices") if part in columns), None):
            raise BadInput(f"dataset.columns: `messages` holds prompt and answer; remove `{other}` or `messages`.")
    elif {"answer", "chosen"} <= set(columns):
        raise BadInput("dataset.columns: both `answer` and `chosen` would be the answer; remove one of them.")
    elif columns and not {"prompt", "answer"} <= set(columns) and "chosen" not in columns:
        raise BadInput(BOTH)
    elif "prompt" not in columns:
        for extra in ("input", "context", "choices"):
            if extra in columns:
                raise BadInput(f"dataset.columns: `{extra}` is added to a prompt; name the column `prompt`, too.")


def layout(fields: dict[str, Any]) -> Columns | None:
    """The columns of the layout that the record follows, in the form of `dataset.columns`; None where none fits."""
    fitting = [one for one in LAYOUTS if fields.keys() >= set(one.values())]
    filled = (one for one in fitting if all(fields[name] is not None for name in one.values()))
    found = next(filled, fitting[0] if fitting else None)
    if found is None:
        return None
    columns, beside = dict(found), dict(BESIDE)
    if "messages" in found and ends_with_user(fields[found["messages"]]) and fields.get("chosen") not in EMPTY:
        beside["chosen"] = ("chosen",)  # as LLaMA-Factory has it: the two answers are beside the conversation
    if "prompt" in found:
        beside |= BESIDE_PROMPT | ({"input": ("input",)} if found["prompt"] == "instruction" else {})
    for part, names in beside.items():
        if there := [name for name in names if name in fields]:
            columns[part] = next((name for name in there if fields[name] not in EMPTY), there[0])
    if "chosen" in columns and "rejected" in fields:
        columns.setdefault("rejected", "rejected")
    return columns


def ends_with_user(value: Any) -> bool:
    """Whether a list of messages waits for an answer."""
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and any(last.get(name) in ("user", "human") for name in ("role", "from"))


def _cell(fields: dict[str, Any], used: Columns, part: str) -> Any:
    return fields.get(used[part]) if part in used else None


def _text(fields: dict[str, Any], used: Columns, part: str) -> str:
    return string(_cell(fields, used, part), used.get(part, ""))


def examples(fields: dict[str, Any], columns: Columns, turns: Turns) -> list[Row | Reject]:
    """The rows of one record, with their prompt's id: one, or one for each assistant turn under `turns: all`; what
    cannot be used as Reject (an Unclear one is alone, and the whole set is not to be used)."""
    used = columns or layout(fields)
    if used is None or any(used[part] not in fields for part in MAIN if part in used):
        names = ", ".join(map(str, fields)).encode("utf-8", "backslashreplace").decode()
        return [Reject("wrong columns", f"the columns are {names}")]
    try:
        left = {name: value for name, value in fields.items() if name not in used.values()}
        if columns:  # who names columns has said that the others do not count, but for a row that is not to be learnt
            left = {name: 0 for name in WEIGHTS if left.get(name) == 0}
        _check_beside(left, fields)
        _check_label(fields, used, bool(columns))
        tools = _cell(fields, used, "tools")
        given = tool_list(tools, used["tools"]) if holds(tools) else ""
        return rows_of(tools_first(_conversation(fields, used), given), turns)
    except Reject as reject:
        return [reject]


def _check_beside(left: dict[str, Any], fields: dict[str, Any]) -> None:
    """Raise Unclear, or Reject, for columns that nobody named (`left`) and that change what the row means."""
    if name := next((name for name in REASONING if says(left.get(name))), None):
        raise Reject(*reasoning_apart(f"the column {name} has it", "name in dataset.columns what is to be used"))
    if name := next((name for name in NOT_TEXT if holds(left.get(name))), None):
        raise Reject("images or sounds", f"the column {name} has some, which the text is about, and no text has them")
    if left.get("rejected") not in EMPTY and fields.get("chosen") in EMPTY:
        remedy = "name prompt and answer in dataset.columns if there is a real answer"
        raise Unclear("not understood", f"the column rejected without chosen; {remedy}")
    if not is_trained({name: left[name] for name in FLAGS if name in left}, "the row"):
        raise Reject("weight 0", "the row has weight 0, and is not to be trained on")


def _check_label(fields: dict[str, Any], used: Columns, mapped: bool) -> None:
    """Raise Reject for an answer that is labelled as bad, and Unclear for a label that does not say so. A label that
    `dataset.columns` does not name counts where it is true or false."""
    beside = [name for name in LABELS if name not in used.values() and str(fields.get(name)).lower() in TRUE_FALSE]
    for name in [used["label"], *beside] if "label" in used else beside:
        value = fields.get(name)
        if isinstance(value, str):
            value = TRUE_FALSE.get(value.strip().lower(), value)
        if value is False or (mapped and value in (0, "0")):
            raise Reject("label is false", f"{name} is {fields[name]!r:.20}: the answer is not one to learn")
        if value is not None and value is not True and not (mapped and value in (1, "1")):
            remedy = f"write true or false, or use dataset.columns (label: {name} takes 1 and 0, too)"
            raise Unclear("not understood", f"{name} is {value!r:.40} and may say that an answer is bad; {remedy}")


def _conversation(fields: dict[str, Any], used: Columns) -> list[Turn]:
    """System text, history, prompt and answer, in this order."""
    if "messages" in used:
        turns = read_turns(fields.get(used["messages"]), used["messages"])
        first = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
        if (extra := _extra(fields, used)) and first is not None:
            turns[first] = replace(turns[first], content="\n\n".join([turns[first].content, *extra]))
    else:
        turns = _prompt(fields, used) if "prompt" in used else []
    if "chosen" in used:
        turns = _with_chosen(turns, fields, used)
    elif "answer" in used:
        turns = [*turns, *_answer(fields, used)]
    system = _text(fields, used, "system")
    begun = [turns.pop(0)] if turns and turns[0].role == "system" else []
    if system and not begun:
        begun = [Turn("system", system)]
    elif system and begun[0].content != system:
        raise Reject("two system texts", f"{used['system']} says another one than the conversation")
    return [*begun, *_history(_cell(fields, used, "history"), used.get("history", "")), *turns]


def _prompt(fields: dict[str, Any], used: Columns) -> list[Turn]:
    """The prompt, with what belongs to it; one that is a message list (as in TRL) is the conversation so far."""
    prompt, extra = fields.get(used["prompt"]), _extra(fields, used)
    if not isinstance(prompt, list):
        return [Turn("user", "\n\n".join([string(prompt, used["prompt"]), *extra]))]
    turns = read_turns(prompt, used["prompt"])
    if extra and turns:
        turns[-1] = replace(turns[-1], content="\n\n".join([turns[-1].content, *extra]))
    return turns


def _extra(fields: dict[str, Any], used: Columns) -> list[str]:
    """What follows the prompt: input, context, choices; empty ones are none."""
    context = _cell(fields, used, "context")
    each = context if isinstance(context, list) else [context]
    texts = [_text(fields, used, "input"), *(string(text, used.get("context", "")) for text in each)]
    return [text for text in (*texts, "\n".join(_choices(fields, used).values())) if text.strip()]


def _choices(fields: dict[str, Any], used: Columns) -> dict[str, str]:
    """Label → choice with it, `B: B. Paris`; the labels are A, B, … where the record has none."""
    where, value = used.get("choices", ""), _cell(fields, used, "choices")
    labels = None
    if isinstance(value, dict):
        has_lists = isinstance(value.get("text"), list)
        labels, value = (value.get("label"), value["text"]) if has_lists else ([*value], [*value.values()])
    if not holds(value):
        return {}
    if not isinstance(value, list) or not isinstance(labels, list | None) or len(value) != len(labels or value):
        raise Reject("wrong type", f"{where} is no list of texts")
    labels = labels or [chr(ord("A") + number) for number in range(len(value))]
    named = [string(label, where) for label in labels]
    if len(set(named)) < len(named):
        raise Reject("wrong type", f"{where} has a label twice")
    return {label: f"{label}. {exact_text(text, where)}" for label, text in zip(named, value, strict=True)}


def _answer(fields: dict[str, Any], used: Columns) -> list[Turn]:
    value, where = fields.get(used["answer"]), used["answer"]
    if isinstance(value, list):
        return read_turns(value, where)
    if not (choices := _choices(fields, used)):
        return [Turn("assistant", exact_text(value, where))]
    if isinstance(value, int):
        raise Reject("unclear choice", f"{where} is {value}, and choices may count from 0 or from 1; write the text")
    text = exact_text(value, where)
    said = text.strip()
    by_text = [choice for label, choice in choices.items() if said == choice.removeprefix(f"{label}. ").strip()]
    if said in choices and by_text in ([], [choices[said]]):
        return [Turn("assistant", choices[said])]
    if said in choices or (not by_text and (len(said) == 1 or said.isdigit())):
        raise Reject("unclear choice", f"{where} is {text!r}, which is not one of {', '.join(choices)} alone")
    return [Turn("assistant", text)]


def _history(value: Any, where: str) -> list[Turn]:
    """Turns before the prompt, of which none is the row's answer: a list of [user, assistant], or of messages."""
    if not holds(value):
        return []
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [replace(turn, trained=False) for turn in read_turns(value, where)]
    if not isinstance(value, list) or not all(isinstance(one, list) and len(one) == 2 for one in value):
        raise Reject("wrong type", f"{where} is no list of [user, assistant]")
    both = ("user", "assistant")
    return [Turn(who, string(text, where), "", False) for pair in value for who, text in zip(both, pair, strict=True)]


def _with_chosen(so_far: list[Turn], fields: dict[str, Any], used: Columns) -> list[Turn]:
    """The conversation that ends with the chosen answer: a text, a message, or messages, which may have the prompt in
    them. Only its last turn is the answer."""
    where, value, other = used["chosen"], _cell(fields, used, "chosen"), _cell(fields, used, "rejected")
    if isinstance(value, dict | list):
        turns = read_turns([value] if isinstance(value, dict) else value, where)
    else:
        turns = _chosen_text(so_far, string(value, where), other, where)
    if turns and turns[0].role != "assistant":
        said = {turn.content.strip() for turn in turns}
        if any(turn.content.strip() not in said for turn in so_far):
            raise Reject("another prompt", f"{where} holds a conversation that has another prompt than the row")
    else:
        begun = spoken(so_far[0].content) if len(so_far) == 1 else None
        turns = [*(begun or so_far), *turns]
    return [replace(turn, trained=turn.trained and at == len(turns) - 1) for at, turn in enumerate(turns)]


def _chosen_text(so_far: list[Turn], text: str, other: Any, where: str) -> list[Turn]:
    if not so_far:
        if turns := spoken(text):
            return turns
        raise Reject("empty prompt", f"{where} is a text without a prompt; name the column of it in dataset.columns")
    prompt = so_far[-1].content
    if prompt.strip() and isinstance(other, str) and text.startswith(prompt) and other.startswith(prompt):
        text = text.removeprefix(prompt)
    return [Turn("assistant", text.lstrip() if spoken(prompt) else text)]
