"""Functions, calls and what tools answered, as sets write them, are in the prompt of the row."""

import json

import pytest

from spin_core.config.choices import Turns
from spin_core.config.dataset import Dataset
from spin_core.data.column_mapping import examples
from spin_core.data.rows import FILES, Row, beginning_id, has_tools, prompt_id, read_rows
from spin_core.data.unused import unused
from spin_core.stages import reformat

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}, "y": None}}}
"""As a table gives it: `y` is another row's."""
CALLED = {"name": "f", "arguments": {"x": 1}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": CALLED}]}
TOOL = {"role": "tool", "content": "4", "tool_call_id": "1"}
OF_ROW = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
FUNCTIONS = json.dumps([{"type": "function", "function": OF_ROW}])
TALKED = [{"role": "user", "content": "q", "tools": FUNCTIONS}, {"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [U, CALL, TOOL, A], "tools": [FUNCTION]},
        {"messages": [U, CALL, TOOL, A], "tools": json.dumps([{"type": "function", "function": FUNCTION}])},
        {"messages": [U, CALL, TOOL, A], "functions": [FUNCTION]},
        {"messages": [{**U, "tools": [FUNCTION]}, CALL, TOOL, A]},
        {"messages": [U, {**A, "content": "", "function_call": {"name": "f", "arguments": '{"x": 1}'}}, TOOL, A],
         "tools": [FUNCTION]},
        {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                           {"from": "observation", "value": "4", "tool_call_id": "1"}, GPT],
         "tools": json.dumps([FUNCTION])},
        {"m": [U, CALL, {**TOOL, "role": "function"}, A], "t": [FUNCTION]},
    ],
)  # fmt: skip
def test_examples_tools_calls_and_what_tools_answered_are_in_the_prompt(fields):
    """Catches functions or calls that vanish, arguments that stay a text (a template would write it as JSON again), a
    call that is taken for the answer, and fields of other rows of a table among the parameters."""
    which: Turns
    for which in ("first", "last", "all"):
        (row,) = examples(fields, {"messages": "m", "tools": "t"} if "m" in fields else {}, which)
        assert isinstance(row, Row), row
        (user, call, tool), own = row.prompt, {"id": "1"} if CALL in fields.get("messages", fields.get("m", [])) else {}
        assert user == TALKED[0] and row.answer == "a" and row.id == prompt_id(row.prompt)
        assert json.loads(call.pop("tool_calls")) == [own | {"type": "function", "function": CALLED}]
        assert call == TALKED[1]
        assert tool == TOOL and not unused(fields, {}) - {"m", "t"}


def test_examples_calls_in_turns_of_their_own_are_one_turn():
    """Catches the second of two calls at once, each a turn in some sets, that breaks the order of the roles."""
    text, answered = '{"name": "f", "arguments": {"x": 1}}', {"role": "tool_response", "content": "4"}
    call = {"role": "tool_call", "content": text}
    parts = {**A, "content": [{"type": "text", "value": ""}, *[{"type": "tool_call", "value": text}] * 2]}
    for calls in ([call, call], [parts]):
        (row,) = examples({"messages": [U, *calls, answered, answered, A]}, {}, "all")
        assert isinstance(row, Row)
        assert json.loads(row.prompt[1]["tool_calls"]) == [{"type": "function", "function": CALLED}] * 2
        assert [turn["role"] for turn in row.prompt] == ["user", "assistant", "tool", "tool"]


def test_beginning_is_the_same_with_other_tools_and_the_prompt_is_not():
    """Catches a question that is trained on with one tool and held out with another, and two prompts of one id."""
    every = [examples({"messages": [U, A], "tools": tools}, {}, "all") for tools in ([FUNCTION], [{"name": "g"}], [])]
    prompts = [row.prompt for (row,) in every if isinstance(row, Row)]
    assert len({prompt_id(prompt) for prompt in prompts}) == 3
    assert len({beginning_id(prompt) for prompt in prompts}) == 1


def test_run_keeps_tools_on_disk_and_sets_without_them_as_they_were(job, jsonl):
    """Catches fields of tools that are lost on the way to the parquet file and back, columns in every set's, and calls
    that no row learns and nobody names."""
    plain = [{"messages": [{**U, "content": f"q{i}"}, A]} for i in range(9)]
    without, mixed = job("without"), job("mixed")
    config = reformat.Config(dataset=Dataset(test_fraction=0.4), seed=7)
    reformat.run({"source": jsonl(plain)}, config, without)
    assert not any(has_tools(without.out / name) for name in FILES.values())
    source = jsonl([*plain, {"messages": [U, CALL, TOOL, A], "tools": [FUNCTION]}])
    summary = reformat.run({"source": source}, config, mixed)
    (said,) = summary["unused"]
    assert not summary["rejected"] and said.startswith("source: tool calls, which are no answers (in 1 records); ")
    files = [mixed.out / name for name in FILES.values()]
    rows = [row for file in files for row in read_rows(file)]
    assert all(map(has_tools, files)) and len(rows) == 10
    (row,) = (row for row in rows if len(row.prompt) == 3)
    assert row.prompt[0] == TALKED[0] and row.prompt[2] == TOOL and row.id == prompt_id(row.prompt)
    assert all(turn.keys() == {"role", "content"} for one in rows if one is not row for turn in one.prompt)
