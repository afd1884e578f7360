"""Functions, calls and what tools answered reach the model through its chat template, or the row is rejected."""

from __future__ import annotations

import json

import pytest

from spin_core.config.chat import ChatSection
from spin_core.data.column_mapping import Reject, examples
from spin_core.data.rows import Row
from spin_core.modeling.chat import Chat
from spin_core.modeling.encoding import Conversation, Encoded, encode, encode_paper
from tests.tokens.families import tokenizer
from tests.tokens.templates import TEMPLATES

FUNCTION = {"name": "weather", "description": "Says it.", "parameters": {"type": "object", "properties": {}}}
CALL = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "weather", "arguments": '{"place": "Çorum \\"x\\""}'}}],
}
TALK = [
    {"role": "user", "content": "How is it?"}, CALL, {"role": "tool", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "It is blue."},
]  # fmt: skip
OPEN, CLOSE = "{{ '<|im_start|>' + m.role + '\\n' + m.content }}", "{{ '<|im_end|>\\n' }}"
CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + c.function.arguments | tojson + '</call>' }}"
    "{% endfor %}"
)
FUNCTIONS = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
)
LOOP, END = "{% for m in messages %}", "{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TURNS = LOOP + OPEN + CALLS + CLOSE + END + ASK
WHOLE = FUNCTIONS + TURNS
SOURCES = {
    "whole": WHOLE,
    "answers of tools as JSON": WHOLE.replace(
        "+ m.content", "+ (m.content | tojson if m.role == 'tool' else m.content)"
    ),
    "no functions": TURNS,
    "no calls": WHOLE.replace(CALLS, ""),
    "no tool": FUNCTIONS + LOOP + "{% if m.role != 'tool' %}" + OPEN + CALLS + CLOSE + "{% endif %}" + END + ASK,
    "refused": "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + TURNS,
}
DROPPED = {
    "no functions": "template drops tools",
    "no calls": "template drops tools",
    "no tool": "template drops a turn",
    "refused": "template fails",
}


def row_of(tools: object = (FUNCTION,)) -> Row:
    made = examples({"messages": TALK, "tools": list(tools)}, {}, "last")[0]
    assert isinstance(made, Row), made
    return made


def encoded(
    source: str | dict[str, str], row: Row, name: str = "byte-level BPE", most: int = 400
) -> tuple[Chat, Encoded | Reject]:
    made = tokenizer(name)
    made.chat_template = source
    chat = Chat(made, ChatSection(max_prompt_length=most), "m")
    return chat, encode(chat, [Conversation(row.prompt, (row.answer,), (True,))])[0]


@pytest.mark.parametrize("case", SOURCES)
def test_tools_are_rendered_as_transformers_does_or_the_row_is_rejected(case: str) -> None:
    """Catches a row whose functions, calls or tools' answers the template leaves out, without a word, and arguments
    that are escaped twice."""
    row = row_of()
    chat, made = encoded(SOURCES[case], row)
    if case in DROPPED:
        assert isinstance(made, Reject) and made.reason == DROPPED[case], made
        return
    assert isinstance(made, Encoded) and not made.rewritten
    call = {"name": "weather", "arguments": {"place": 'Çorum "x"'}}
    turns = [
        TALK[0],
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        *TALK[2:],
    ]
    tools = [{"type": "function", "function": FUNCTION}]
    whole = chat.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    assert chat.ids([str(whole).removesuffix("\n")])[0] == [*made.prompt, *made.answers[0]]
    asked = chat.tokenizer.apply_chat_template(turns[:3], tools=tools, tokenize=False, add_generation_prompt=True)
    assert chat.ids([str(asked)])[0] == made.prompt


def test_a_template_for_tools_is_used_for_them_alone() -> None:
    """Catches rows with functions under the default of several templates, which knows none, and the reverse."""
    sources = {"default": TEMPLATES["ChatML"].source, "tool_use": WHOLE.replace("<call>", "<tool>")}
    chat, made = encoded(sources, row_of())
    assert isinstance(made, Encoded) and "<tool>weather" in chat.tokenizer.decode(made.prompt)
    plain = encode(chat, [Conversation(TALK[:1], ("Well.",), (True,))])[0]
    assert isinstance(plain, Encoded) and "weather" not in chat.tokenizer.decode(plain.prompt)


def test_a_prompt_that_is_cut_keeps_its_functions() -> None:
    """Catches oldest turns that go with the functions, which the first of them has."""
    row = row_of()
    long = [{**row.prompt[0], "content": "Before. " * 40}, {"role": "assistant", "content": "Yes."}, *TALK[:1]]
    chat, made = encoded(WHOLE, Row("x", long, "So."), most=200)
    text = chat.tokenizer.decode(made.prompt) if isinstance(made, Encoded) else made
    assert (
        isinstance(made, Encoded) and made.cut and "weather" in text and "Before" not in text and "How is it?" in text
    )


def test_special_tokens_in_functions_and_no_room_for_them() -> None:
    """Catches a function whose description ends the turn, and the published runs' prompt without its functions."""
    _, made = encoded(WHOLE, row_of([{**FUNCTION, "description": "<|im_end|>"}]))
    assert isinstance(made, Reject) and made.reason == "special token in the text" and "tools" in made.detail
    chat, _ = encoded(WHOLE, row_of())
    asked = {**TALK[0], "tools": json.dumps([{"type": "function", "function": FUNCTION}])}
    assert [isinstance(one, Reject) for one in encode_paper(chat, [[asked], TALK[:1]])] == [True, False]
