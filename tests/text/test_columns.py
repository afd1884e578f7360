"""Columns: which conventions are understood, that roles are respected, and why a record is rejected."""

from typing import Any

import pytest

from spin_core.data.column_mapping import Reject, check_columns, examples
from spin_core.data.rows import Row, prompt_id
from spin_core.errors import BadInput

U, A, S = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def row(prompt, answer):
    return Row(prompt_id(prompt), prompt, answer)


ONE = [row([{"role": "user", "content": "q"}], "a")]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"real": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "generated": []},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "answer": "a"},
        {"prompt": "q", "output": "a"},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a"},
        {"question": "q", "answer": "a", "system": None},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"prompt": "not this", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_examples_known_conventions_give_the_same_row(fields):
    """Catches: a public dataset's layout that is not understood, or is read from the wrong column."""
    assert examples(fields, {}, "first") == ONE


def test_examples_mapped_columns_give_system_prompt_input_and_answer():
    """Catches: mapping ignored, or the system text merged into the user's turn."""
    columns = {"prompt": "ask", "input": "data", "answer": "reply", "system": "rules"}
    [result] = examples({"ask": "q", "data": "d", "reply": "a", "rules": "r", "messages": []}, columns, "first")
    assert result == row([{"role": "system", "content": "r"}, {"role": "user", "content": "q\n\nd"}], "a")


@pytest.mark.parametrize(
    "turns, expected", [("first", [[S, U]]), ("last", [[S, U, A, U]]), ("all", [[S, U], [S, U, A, U]])]
)
def test_examples_turns_choose_the_answers_and_keep_the_history(turns, expected):
    """Catches: the reference's taking messages[0] and [1] whatever their roles, and dropping later turns."""
    result = examples({"messages": [S, U, A, U, A]}, {}, turns)
    assert [example.prompt for example in result if isinstance(example, Row)] == expected


@pytest.mark.parametrize("empty", [None, "", " ", [], True])
def test_reasoning_counts_only_where_it_is_an_answers(empty):
    """Catches a row that is lost for a field that is empty, or for the reasoning of a turn that is no answer here."""
    turns = [U, {**A, "reasoning_content": empty}, U, {**A, "reasoning_content": "r"}]
    assert examples({"messages": turns}, {}, "first") == [row([U], "a")]
    assert isinstance(examples({"messages": turns}, {}, "last")[0], Reject)


REJECTED: dict[str, Any] = {
    "no answer": [
        {"messages": [U]},
        {"messages": [S, U]},
        {"messages": [U, {"role": "assistant", "content": " \n"}]},
        {"messages": [U, {"role": "assistant", "content": None}]},
        {"question": "q", "answer": None},
        {"question": "q", "answer": ""},
    ],
    "empty prompt": [
        {"messages": []},
        {"messages": [S]},
        {"question": " ", "answer": "a"},
        {"question": None, "answer": "a"},
    ],
    "bad role order": [
        {"messages": [A, U, A]},
        {"messages": [U, S, A]},
        {"messages": [U, U, A]},
        {"messages": [U, A, A]},
        {"messages": [S, S, U, A]},
        {"messages": [U, {"role": "tool", "content": "42"}, A]},
    ],
    "wrong type": [
        {"messages": "text"},
        {"messages": None},
        {"messages": ["text"]},
        {"messages": [{"content": "q"}, A]},
        {"messages": [{"role": "user", "content": [{"type": "image", "text": "q"}]}, A]},
        {"messages": [{"role": "user", "content": ["q"]}, A]},
        {"question": 3, "answer": "a"},
        {"question": "q", "answer": {"text": "a"}},
        {"question": "q", "answer": b"a"},
    ],
    "reasoning apart from the answer": [
        {"messages": [U, {**A, "reasoning_content": "r"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "thinking": "r"}]},
        {"prompt": [S, U], "completion": [{**A, "content": "", "reasoning": "r"}]},
    ],
    "not text": [{"question": "q\ud800", "answer": "a"}, {"messages": [U, {"role": "assistant", "content": "\udfff"}]}],
    "wrong columns": [{"text": "q"}, {}, {"question": "q"}, {"text\ud800": "q"}],
}


@pytest.mark.parametrize("reason, fields", [(reason, f) for reason, cases in REJECTED.items() for f in cases])
def test_examples_unusable_record_is_rejected_with_the_reason(reason, fields):
    """Catches: a row made of the wrong turns, an exception for one bad row, or a reason that misleads."""
    [result] = examples(fields, {}, "first")
    assert isinstance(result, Reject) and result.reason == reason
    result.detail.encode()


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"questions": "q"}, "dataset.columns.questions"),
        ({"prompt": "q"}, "give both"),
        ({"messages": "m", "prompt": "q"}, "holds prompt and answer; remove `prompt`"),
        ({"prompt": "q", "answer": "a", "chosen": "c"}, "both `answer` and `chosen` would be the answer"),
        ({"answer": "a"}, "give both"),
        ({"chosen": "c", "context": "d"}, "`context` is added to a prompt"),
    ],
)
def test_check_columns_unusable_mapping_is_bad_input(columns, message):
    """Catches: a misspelt key of dataset.columns that is ignored."""
    with pytest.raises(BadInput, match=message):
        check_columns(columns)
