"""Every column is accounted for: the layouts that people have, the right row or reason for each, and no text lost."""

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.config.choices import Turns
from spin_core.config.dataset import Dataset
from spin_core.data.column_mapping import LAYOUTS, Reject, examples
from spin_core.data.conversations import Unclear
from spin_core.data.rows import FILES, Row, read_rows
from spin_core.data.unused import unused
from spin_core.errors import BadInput
from spin_core.stages import reformat

U, A, S = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("system", "s")))
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}, "y": None}}}
"""As a table gives it: `y` is another row's."""
CALLED = {"name": "f", "arguments": {"x": 1}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": CALLED}]}
TOOL = {"role": "tool", "content": "4", "tool_call_id": "1"}
HH = "\n\nHuman: q\n\nAssistant: more?\n\nHuman: yes\n\nAssistant:"
TALK = [("user", "q"), ("assistant", "more?"), ("user", "yes")]
MC = {"question": "q", "choices": ["x", "y"]}
MC_PROMPT = [("user", "q\n\nA. x\nB. y")]
Q = [("user", "q")]
SQ = [("system", "s"), *Q]

ROWS: dict[str, tuple[dict[str, Any], dict[str, str], list[tuple[str, str]], str]] = {
    # D1: labels and weights
    "label true": ({"messages": [U, A], "label": True}, {}, Q, "a"),
    "label of csv": ({"prompt": "q", "completion": "a", "label": "True"}, {}, Q, "a"),
    "label mapped": ({"q": "q", "a": "a", "good": 1}, {"prompt": "q", "answer": "a", "label": "good"}, Q, "a"),
    "label 3 that is not named": ({"q": "q", "a": "a", "label": 3}, {"prompt": "q", "answer": "a"}, Q, "a"),
    "weight 0 before": (
        {"messages": [U, {**A, "weight": 0}, U, {**GOOD, "weight": 1}]}, {}, [*Q, ("assistant", "a"), *Q], "good",
    ),
    # D2: what belongs to the prompt
    "context": (
        {"question": "q", "context": "CREATE TABLE t", "answer": "a"}, {}, [("user", "q\n\nCREATE TABLE t")], "a",
    ),
    "contexts": ({"question": "q", "context": ["c", "d"], "answer": "a"}, {}, [("user", "q\n\nc\n\nd")], "a"),
    "Dolly": ({"instruction": "q", "context": "c", "response": "a"}, {}, [("user", "q\n\nc")], "a"),
    "Dolly without": ({"instruction": "q", "context": "", "response": "a"}, {}, Q, "a"),
    "input that is JSON": ({"instruction": "q", "input": "[]", "output": "a"}, {}, [("user", "q\n\n[]")], "a"),
    "system beside": ({"system": "s", "conversations": [HUMAN, GPT]}, {}, SQ, "a"),
    "system twice": ({"system": "s", "messages": [S, U, A]}, {}, SQ, "a"),
    "system mapped": ({"m": [U, A], "rules": "s"}, {"messages": "m", "system": "rules"}, SQ, "a"),
    "context of messages": (
        {"m": [S, U, A], "c": "c"}, {"messages": "m", "context": "c"}, [SQ[0], ("user", "q\n\nc")], "a",
    ),
    "history": (
        {"instruction": "q", "output": "a", "history": [["h", "i"]], "system": "s"}, {},
        [SQ[0], ("user", "h"), ("assistant", "i"), *Q], "a",
    ),
    "history of messages": (
        {"messages": [U, A], "history": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "i"}]}, {},
        [("user", "h"), ("assistant", "i"), *Q], "a",
    ),
    "no history": ({"instruction": "q", "output": "a", "history": []}, {}, Q, "a"),
    "choices": ({**MC, "answer": "B"}, {}, MC_PROMPT, "B. y"),
    "choices by letter": ({"question": "q", "choices": {"A": "x", "B": "y"}, "answer": "B"}, {}, MC_PROMPT, "B. y"),
    "choices, text": ({**MC, "answer": "y"}, {}, MC_PROMPT, "y"),
    "choices, words": ({**MC, "answer": "It is y."}, {}, MC_PROMPT, "It is y."),
    "ARC": ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, {},
            [("user", "q\n\n1. x\n2. y")], "2. y"),
    "no tools": ({"messages": [{**U, "tool_calls": None}, {**A, "tool_calls": []}], "tools": "[]"}, {}, Q, "a"),
    "reasoning mapped": ({"question": "q", "answer": "a", "reasoning": "r"},
                         {"prompt": "question", "context": "reasoning", "answer": "answer"}, [("user", "q\n\nr")], "a"),
    # D3: parts, types, roles
    "parts": ({"messages": [{**U, "content": [{"type": "text", "text": "q"}, {"type": "text", "value": "r"}]}, A]}, {},
              [("user", "qr")], "a"),
    "parts of a table": ({"messages": [{**U, "content": [{"type": "text", "text": "q", "image_url": None}]},
                                       {"from": None, "value": None, **A}]}, {}, Q, "a"),
    "developer": ({"messages": [{**S, "role": "developer"}, U, A]}, {}, SQ, "a"),
    "integer": ({"question": "q", "answer": -72}, {}, Q, "-72"),
    "fraction": ({"question": "q", "answer": 0.25}, {}, Q, "0.25"),
    # D4: preferences
    "chosen text": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, {}, Q, "good"),
    "chosen of an instruction": ({"instruction": "q", "input": "i", "chosen": "good", "rejected": "bad"}, {},
                                 [("user", "q\n\ni")], "good"),
    "chosen text with the prompt": (
        {"prompt": "q ", "chosen": "q good", "rejected": "q bad"}, {}, [("user", "q ")], "good",
    ),
    "chosen message": ({"prompt": [U], "chosen": GOOD, "rejected": BAD}, {}, Q, "good"),
    "chosen messages": ({"prompt": [S, U], "chosen": [GOOD], "rejected": [BAD]}, {}, SQ, "good"),
    "chosen conversation": (
        {"chosen": [U, A, U, GOOD], "rejected": [U, A, U, BAD]}, {}, [*Q, ("assistant", "a"), *Q], "good",
    ),
    "chosen conversation and prompt": ({"prompt": "q", "chosen": [U, GOOD], "rejected": [U, BAD]}, {}, Q, "good"),
    "chosen beside a conversation": ({"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "good"},
                                      "rejected": {"from": "gpt", "value": "bad"}}, {}, Q, "good"),
    "chosen beside the whole": (
        {"prompt": "q", "messages": [U, A], "chosen": [U, A], "rejected": [U, BAD]}, {}, Q, "a",
    ),
    "hh": ({"chosen": HH + " good", "rejected": HH + " bad"}, {}, TALK, "good"),
    "hh with a prompt": ({"prompt": HH, "chosen": " good", "rejected": " bad"}, {}, TALK, "good"),
    "chosen messages with weights": ({"chosen_messages": [{**U, "loss_weight": 0.0}, {**GOOD, "loss_weight": 1.0}],
                                      "rejected_messages": [U, BAD]}, {}, Q, "good"),
    "query": ({"query": "q", "response": "a", "history": [], "images": []}, {}, Q, "a"),
    "chosen mapped": ({"m": [U], "best": "good"}, {"messages": "m", "chosen": "best"}, Q, "good"),
}  # fmt: skip

REASONS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "KTO": ("label is false", [
        {"messages": [U, A], "label": False}, {"prompt": "q", "completion": "a", "kto_tag": False},
        {"prompt": "q", "completion": "a", "label": "false"},
    ]),
    "weight 0": ("no answer", [{"messages": [U, {**A, "weight": 0}]}, {"messages": [U, {**A, "weight": 0.0}, U]}]),
    "weight of a row": ("weight 0", [{"messages": [U, A], "weight": 0}]),
    "tools": ("tools not understood", [
        {"messages": [U, A], "tools": ["f"]}, {"messages": [U, A], "tools": "use f"}, {"messages": [U, A], "tools": 3},
        {"messages": [U, A], "tools": [{"type": "code_interpreter"}]}, {"messages": [U, A], "tools": [{"name": b"f"}]},
        {"messages": [U, A], "tools": [{"name": "f", "default": float("nan")}]},
        {"messages": [{**U, "tools": [{"name": "f"}]}, A], "tools": [{"name": "g"}]},
        {"messages": [U, {**A, "tool_calls": [{"name": "f", "arguments": "no"}]}]},
        {"messages": [U, {**A, "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
        {"messages": [U, {**A, "function_call": {"arguments": {}}}]},
        {"messages": [{**U, "tool_calls": [{"name": "f"}]}, A]},
        {"conversations": [HUMAN, {"from": "function_call", "value": "f"}, {"from": "observation", "value": "4"}, GPT]},
    ]),
    "an answer that is a call": ("no answer but a tool call", [
        {"messages": [U, {**A, "tool_calls": [{"name": "f"}]}]}, {"messages": [U, CALL, TOOL]},
    ]),
    "an answer before its tool": ("bad role order", [
        {"messages": [U, CALL, A]}, {"messages": [U, TOOL, A]}, {"messages": [U, CALL, U, A]},
    ]),
    "reasoning": ("reasoning apart from the answer", [
        {"question": "q", "answer": "a", "reasoning": "r"}, {"prompt": "q", "response": "a", "reasoning_content": "r"},
        {"messages": [U, A], "thinking": "r"},
        {"messages": [U, {**A, "content": [{"type": "reasoning", "value": "r"}, {"type": "text", "value": "a"}]}]},
    ]),
    "types": ("wrong type", [
        {"question": "q", "answer": True}, {"question": "q", "answer": 3.0}, {"question": "q", "answer": 1e300},
        {"question": "q", "answer": float("nan")}, {"question": "q", "answer": 10**400},
        {"question": "q", "answer": "a", "context": {"a": "b"}}, {"question": "q", "answer": "a", "history": "h"},
        {"messages": [{**U, "content": [{"type": "image_url", "image_url": "x"}]}, A]},
    ]),
    "choices": ("unclear choice", [
        {**MC, "answer": 1},
        {"question": "q", "choices": ["0", "1"], "answer": 1}, {**MC, "answer": "1"}, {**MC, "answer": "C"},
        {"question": "q", "choices": {"text": ["2", "1"], "label": ["1", "2"]}, "answer": "1"},
    ]),
    "media": ("images or sounds", [
        {"messages": [U, A], "images": ["x.png"]}, {"question": "q", "answer": "a", "audio": {"bytes": b"x"}},
    ]),
    "prompt": ("empty prompt", [{"chosen": "good", "rejected": "bad"}]),
    "other prompt": ("another prompt", [{"prompt": "p", "chosen": [U, GOOD], "rejected": [U, BAD]}]),
    "systems": ("two system texts", [{"messages": [S, U, A], "system": "other"}]),
    "unclear": ("not understood", [
        {"messages": [U, A], "label": 1}, {"messages": [U, A], "label": "good"}, {"messages": [U, A], "weight": 0.5},
        {"messages": [U, {**A, "weight": 2}]}, {"messages": [U, {**A, "train": False}]},
        {"messages": [U, A], "mask": [1]},
        {"messages": [U, {**A, "loss": True}]}, {"prompt": "q", "response": "a", "rejected": "bad"},
    ]),
}  # fmt: skip

UNUSED: dict[str, tuple[dict[str, Any], dict[str, str], set[str]]] = {
    "second answer": ({"instruction": "q", "output": "a", "response": "b"}, {}, {"response"}),
    "numbers, empty": ({"question": "q", "answer": "a", "n": 3, "e": " ", "l": [], "d": {"x": None}}, {}, set()),
    "nested": ({"question": "q", "answer": "a", "d": {"x": ["t"]}}, {}, {"d"}),
    "message": ({"messages": [{**U, "name": "Ann"}, A]}, {}, {"messages[].name"}),
    "two texts": ({"messages": [{**U, "value": "other"}, A]}, {}, {"messages[].value"}),
    "reasoning of the prompt": ({"messages": [U, {**A, "thinking": "r"}, U, A]}, {}, {"messages[].thinking"}),
    "parts of reasoning": (
        {"messages": [U, {**A, "content": [{"type": "thinking", "thinking": "r"}]}, U, A]},
        {},
        {"messages[].content, parts of reasoning"},
    ),
    "the chosen one again": ({"messages": [U, A], "chosen": "c", "rejected": "r"}, {}, {"chosen", "rejected"}),
    "context beside messages": ({"messages": [U, A], "context": "c"}, {}, {"context"}),
    "last turn": ({"messages": [U, A, U]}, {}, {"messages[-1]"}),
    "mapped": ({"a": "q", "b": "a", "system": "s"}, {"prompt": "a", "answer": "b"}, {"system"}),
}


@pytest.mark.parametrize("case", ROWS)
def test_examples_layouts_give_prompt_and_answer(case):
    """Catches D1 to D4: a row without its table, system text, history or choices, or with the worse of two answers."""
    fields, columns, prompt, answer = ROWS[case]
    which: Turns
    for which in ("first", "last", "all"):  # of two answers one is to be learnt
        (row,) = examples(fields, columns, which)
        assert isinstance(row, Row), row
        assert ([(turn["role"], turn["content"]) for turn in row.prompt], row.answer) == (prompt, answer)


@pytest.mark.parametrize("case", REASONS)
def test_examples_what_cannot_be_kept_is_rejected_by_name(case):
    """Catches a bad completion that is trained on, tools or reasoning that vanish, and a number that is guessed."""
    reason, records = REASONS[case]
    for fields in records:
        (made,) = examples(fields, {}, "first")
        assert isinstance(made, Reject) and made.reason == reason, (fields, made)
        assert isinstance(made, Unclear) == (case == "unclear") and len(made.detail) < 200, made.detail


@pytest.mark.parametrize("case", UNUSED)
def test_unused_names_columns_and_fields_of_messages(case):
    """Catches text that vanishes unnamed, and names of what holds none."""
    fields, columns, names = UNUSED[case]
    assert unused(fields, columns) == names


TEXTS = st.just("text")
MESSAGE = st.fixed_dictionaries({"content": TEXTS}, optional=dict.fromkeys(("value", "name", "thinking", "x"), TEXTS))
TURNS = st.integers(1, 4).flatmap(
    lambda count: st.tuples(*[MESSAGE] * count).map(
        lambda turns: [{"role": ("user", "assistant")[at % 2], **turn} for at, turn in enumerate(turns)]
    )
)
PLAIN = (
    "prompt", "question", "instruction", "query", "response", "completion", "answer", "output", "answerKey", "input",
    "context", "system", "system_prompt", "other", "chosen", "rejected",
)  # fmt: skip
CELLS: dict[str, Any] = {
    **{name: TEXTS for name in PLAIN},
    **{name: TURNS for name in ("messages", "conversations", "real")},
    "chosen_messages": TURNS, "rejected_messages": TURNS, "choices": st.lists(TEXTS, max_size=3),
    "history": st.lists(st.tuples(TEXTS, TEXTS).map(list), max_size=2),
}  # fmt: skip
RECORDS = st.tuples(st.sampled_from(LAYOUTS), st.sets(st.sampled_from(sorted(CELLS)), max_size=4)).flatmap(
    lambda names: st.fixed_dictionaries({name: CELLS[name] for name in sorted({*names[0].values(), *names[1]})})
)


def numbered(value: Any, numbers: Iterator[int]) -> Any:
    """`value` with another text in each place."""
    if isinstance(value, dict):
        return {name: numbered(one, numbers) for name, one in value.items()}
    if isinstance(value, list):
        return [numbered(one, numbers) for one in value]
    return f"text-{next(numbers)}-" if value == "text" else value


def texts_of(value: Any) -> set[str]:
    return set(re.findall("text-[0-9]+-", json.dumps(value)))


@settings(max_examples=150)
@given(RECORDS)
def test_no_text_of_a_record_is_lost_in_silence(fields):
    """Catches a column or a field of a message whose text is neither in the row, nor the rejected answer, nor named."""
    fields = numbered(fields, count())
    made = examples(fields, {}, "last")
    if any(isinstance(one, Reject) for one in made):
        return
    (row,) = made
    assert isinstance(row, Row)
    kept, names = texts_of([row.prompt, row.answer]), unused(fields, {})
    for name, value in fields.items():
        if name in names or name.startswith("rejected"):
            continue
        left = {one.removeprefix(f"{name}[].") for one in names if one.startswith(f"{name}[].")}
        named = [message[key] for message in value for key in left & set(message)] if left else []
        named += [value[-1]] if f"{name}[-1]" in names else []
        lost = texts_of(value) - texts_of(named) - kept
        assert not lost, (name, lost)


def run(job, source, **dataset):
    given = job("out")
    dataset = {"test_fraction": 0.4, **dataset}
    return given, reformat.run({"source": source}, reformat.Config(dataset=Dataset(**dataset), seed=7), given)


def test_run_names_unused_text_and_what_would_use_it(job, jsonl):
    """Catches a summary without it, counts of rejected records in it, and a mapping that is not accepted."""
    rows = [{"id": f"r{i}", "question": f"q{i}", "answer": "a", "topic": "t"} for i in range(20)]
    source = jsonl([*rows, {"question": "", "answer": "a", "other": "x"}])
    _, summary = run(job, source)
    (sentence,) = summary["unused"]
    wanted = "{prompt: question, answer: answer, context: topic}"
    assert sentence.startswith("source: text that no row has") and "id (20), topic (20);" in sentence
    assert sentence.endswith(f"dataset.columns {wanted}.") and reformat.console_note(summary) == sentence
    (row,) = examples(rows[0], {"prompt": "question", "answer": "answer", "context": "topic"}, "first")
    assert isinstance(row, Row) and row.prompt[0]["content"] == "q0\n\nt"


def test_run_set_without_left_over_text_has_no_such_count(job, jsonl):
    """Catches a summary, so a line of every console, that changes where nothing is to be said."""
    _, summary = run(job, jsonl([{"question": f"q{i}", "answer": "a"} for i in range(20)]))
    assert "unused" not in summary and reformat.console_note(summary) == ""


def test_run_unclear_column_ends_it_with_file_and_line(job, jsonl):
    """Catches a set of labels that is misread row by row."""
    rows = [{"prompt": f"q{i}", "response": "a", "label": 1} for i in range(9)]
    with pytest.raises(BadInput, match=r"data\.jsonl, line 1: label is 1 and .*dataset\.columns"):
        run(job, jsonl(rows))


def test_run_that_rejects_too_much_shows_three_of_them(job, jsonl):
    """Catches `wrong type` without what was seen."""
    rows = [{"question": "q", "answer": True}, {"question": "q", "answer": ""}, {"question": " ", "answer": "a"}] * 2
    with pytest.raises(BadInput) as raised:
        run(job, jsonl(rows))
    assert "The first rejects: line 1: answer is True" in str(raised.value)
    assert "; line 2: turn 1 is empty; line 3: turn 0 is empty. `spinloop data --rejects FILE`" in str(raised.value)


def test_run_that_rejects_too_much_names_the_files_of_a_folder(job, tmp_path):
    """Catches `line 1` of a folder, which each of its files has."""
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        (tmp_path / "set" / f"{name}.jsonl").write_text('{"question": "q", "answer": true}\n')
    with pytest.raises(BadInput, match=r"The first rejects: a\.jsonl, line 1: .*; b\.jsonl, line 1: "):
        run(job, tmp_path / "set")


def test_run_names_the_files_of_another_kind(job, tmp_path):
    """Catches half of a set that is left out without a word, as it is csv; what is no table is not named."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a", "b"):
        rows = (json.dumps({"question": f"{name}{i}", "answer": "y"}) for i in range(9))
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    (folder / "c.csv").write_text("question,answer\nq,z\n")
    (folder / "notes.md").write_text("about it")
    given, notes = job("mixed"), []
    given.send = lambda event: notes.append(event["note"]) if "note" in event else None
    reformat.run({"source": folder}, reformat.Config(dataset=Dataset(test_fraction=0.4), seed=7), given)
    assert [note.partition(": of")[0] for note in notes] == ["source: not read are c.csv"]


MAPPED = {"prompt": "q", "answer": "a"}


@pytest.mark.parametrize("flag", [{"weight": 0}, {"loss_weight": 0.0}, {"label": False}, {"kto_tag": "False"}])
def test_named_columns_do_not_make_a_bad_answer_good(flag):
    """Catches a mapped set of which rows are learnt that it says are not to be."""
    (one,) = examples({"q": "q", "a": "a", **flag}, MAPPED, "first")
    assert isinstance(one, Reject) and one.reason in ("weight 0", "label is false")


def test_run_kto_and_preference_sets_train_on_no_rejected_answer(job, jsonl):
    """Catches D1 and D4 through the whole stage: max_rejected 1 takes what is left, and of that nothing is bad."""
    kto = [{"messages": [{**U, "content": f"k{i}"}, GOOD if i % 2 else BAD], "label": bool(i % 2)} for i in range(40)]
    pairs = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(20)]
    out, summary = run(job, jsonl([*kto, *pairs]), max_rejected=1)
    rows = [row for name in FILES.values() for row in read_rows(out.out / name)]
    assert len(rows) == 40 and {row.answer for row in rows} == {"good"}
    assert summary["rejected"] == {"label is false": 20}
