"""`spinloop data`: what is shown of a dataset is what a run reads, for every layout; the store stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.config.chat import ChatSection
from spin_core.config.profile import parse
from spin_core.data import token_file
from spin_core.job import Job
from spin_core.preview import text
from spin_core.preview.look import look
from spin_core.report import data_page
from spin_core.stages import demo_model, reformat, tokenize
from tests.report.columns import without_tooltip
from tests.report.test_page import HOSTILE, Tags, fetched

CHAT = {"max_prompt_length": 40}
ASK = [f"Question number {i}?" for i in range(20)]


def chat_of(i: int, names: tuple[str, str] = ("role", "content")) -> list[dict]:
    role, content = names
    return [{role: "user", content: ASK[i]}, {role: "assistant", content: f"Answer {i}."}]


LAYOUTS: dict[str, tuple[list[dict], str, dict[str, str]]] = {
    "messages": (
        [{"messages": chat_of(i), "id": i} for i in range(20)],
        "messages: messages",
        {"messages": "messages"},
    ),
    "ShareGPT": (
        [{"conversations": chat_of(i, ("from", "value"))} for i in range(20)],
        "messages: conversations",
        {"conversations": "messages"},
    ),
    "question": (
        [{"question": ask, "answer": "Yes.", "source": "x"} for ask in ASK],
        "prompt: question, answer: answer",
        {"question": "prompt", "answer": "answer"},
    ),
    "Alpaca": (
        [{"instruction": ask, "input": "now", "output": "Yes."} for ask in ASK],
        "prompt: instruction, answer: output, input: input",
        {"instruction": "prompt", "input": "input", "output": "answer"},
    ),
}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(path: Path, **changes: Any) -> Any:
    data = {"model": {"path": "builtin:tiny-llama"}, "dataset": {"path": str(path)}, "chat": CHAT, **changes}
    return parse(data, "test")


def looked(path: Path, tokens: bool = False, shown: int = 2, **changes: Any) -> Any:
    return look(config(path, **changes), path.parent, "set", shown, lambda stage, event: None, tokens)


@pytest.mark.parametrize("name", LAYOUTS)
def test_look_names_layout_columns_and_counts(name, tmp_path):
    """Catches a look that has rules of its own: a layout, a column or a count that reformat does not have."""
    rows, layout, used = LAYOUTS[name]
    file = write(tmp_path / "rows.jsonl", rows)
    made = looked(file, dataset={"path": str(file), "test_fraction": 0.5})
    assert made.failures == [] and made.layouts == {layout: 20}
    assert {column.name: column.used_as for column in made.columns if column.used_as} == used
    assert {column.name for column in made.columns} == set().union(*rows)
    assert (made.read, made.train + made.test, made.rejected) == (20, 20, [])
    assert [(file.name, file.use, file.rows) for file in made.files] == [("rows.jsonl", "training", 20)]
    assert ASK[0] in made.first[0].prompt and made.first[0].place == "rows.jsonl, line 1" and len(made.first) == 2


def test_look_names_text_that_no_row_has(tmp_path):
    """Catches a column, or a field of messages, that is left out without a word and without the remedy."""
    rows = [{"prompt": ask, "answer": "Yes.", "domain": "cooking", "score": 3} for ask in ASK]
    made = looked(write(tmp_path / "rows.jsonl", rows))
    assert {one.name: one.filled for one in made.columns if not one.used_as} == {"domain": 20, "score": 20}
    assert made.unused[0].startswith("rows.jsonl: text that no row has") and "domain (20)" in made.unused[0]
    assert "context: domain" in text.text(made) and "context: domain" in data_page.page(as_json(made), "", [])
    rows = [{"messages": [{**turn, "mood": "calm"} for turn in chat_of(i)]} for i in range(20)]
    made = looked(write(tmp_path / "rows.jsonl", rows))
    assert [one.filled for one in made.columns if one.name == "messages[].mood"] == [20] and "mood" in made.unused[0]


def test_look_at_a_folder_names_what_is_read_and_what_is_not(tmp_path):
    """Catches a file that is left out without a word, and one that is trained on though it is another split's."""
    for name in ("train", "test", "validation"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}", "answer": "x"} for i in range(9)])
    (tmp_path / "README.md").write_text("about")
    made = looked(tmp_path, dataset={"path": str(tmp_path), "test_split": "test"})
    assert [(file.name, file.use, file.rows, file.why) for file in made.files] == [
        ("train.jsonl", "training", 9, ""),
        ("test.jsonl", "held out", 9, ""),
        ("README.md", "", 0, "no data file"),
        ("validation.jsonl", "", 0, "named for another split"),
    ]
    assert (made.train, made.test) == (9, 9)


def test_look_at_one_of_several_configurations_and_kinds(tmp_path):
    """Catches a look that reads, or refuses, another configuration than a run, and a wrong reason for what is left."""
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}", "answer": "x"} for i in range(9)])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: a.jsonl\n- config_name: two\n  data_files: b.jsonl\n---\n"
    )
    data = {"path": str(tmp_path), "config": "two", "test_fraction": 0.4}
    made = looked(tmp_path, dataset=data)
    assert made.failures == [] and [(file.name, file.rows, file.why) for file in made.files] == [
        ("b.jsonl", 9, ""),
        ("README.md", 0, "no data file"),
        ("a.jsonl", 0, "of another split or configuration"),
    ]
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "c.csv").write_text("prompt,answer\nq,z\n")
    made = looked(tmp_path, dataset=data | {"config": ""})
    assert [(file.name, file.why) for file in made.files if file.why] == [
        ("README.md", "no data file"),
        ("c.csv", "of another kind"),
    ]


def test_look_at_sets_names_what_each_gives(tmp_path):
    """Catches sets of which one is left out, or read with the columns of another, and counts that hide what a weight
    leaves."""
    write(tmp_path / "a.jsonl", [{"prompt": f"a {i}", "answer": "x"} for i in range(30)])
    write(tmp_path / "b.jsonl", [{"q": f"b {i}", "r": "x"} for i in range(90)] + [{"q": "", "r": "x"}])
    columns = {"prompt": "q", "answer": "r"}
    sets = [{"path": "a.jsonl", "weight": 1}, {"path": "b.jsonl", "name": "other", "columns": columns, "weight": 1}]
    made = looked(tmp_path / "a.jsonl", dataset={"sets": sets})
    assert [(file.name, file.use) for file in made.files] == [
        ("a.jsonl", "training (a)"),
        ("b.jsonl", "training (other)"),
    ]
    a, b = made.sets.values()
    assert list(made.sets) == ["a", "other"] and a["train_rows"] == b["train_rows"] and b["not_drawn"] > 40
    assert (made.train, made.test) == (a["train_rows"] * 2, a["test_rows"] + b["test_rows"])
    assert made.rejected[0].examples[0].place == "b.jsonl, line 91" and "too few for its weight" in made.notes[0]
    assert [one.place for one in made.first[::2]] == ["a.jsonl, line 1", "b.jsonl, line 1"]
    assert "not drawn" in text.text(made) and "not drawn" in data_page.page(as_json(made), "", [])


HARD = [
    *[{"prompt": ask, "answer": f"Yes\tto {i}.\n"} for i, ask in enumerate(ASK)],
    *[{"prompt": ask, "answer": f"Yes\tto {i}.\n"} for i, ask in enumerate(ASK[:4])],
    {"prompt": ASK[0], "answer": "Another."},
    *[{"prompt": f"{'long ' * 30}{i}", "answer": "Cut."} for i in range(3)],
    {"prompt": "", "answer": "x"},
    {"prompt": ["x"], "answer": "x"},
    {"prompt": "<|assistant|>", "answer": "x"},
    {"other": "x"},
]


def test_look_counts_are_those_of_the_stages(tmp_path):
    """Catches a number that a run would not have: rows, rejects by reason, tokens, cut prompts."""
    source = write(tmp_path / "rows.jsonl", HARD)
    made = looked(source, tokens=True)
    for name in ("model", "rows", "tokens"):
        (tmp_path / name).mkdir()
    demo_model.run({}, demo_model.Config(seed=42), Job(tmp_path / "model", tmp_path / "model"))
    part = reformat.anonymous(config(source).dataset)
    job = Job(tmp_path / "rows", tmp_path / "rows")
    rows = reformat.run({"source": source}, reformat.Config(dataset=part, seed=42), job)
    how = tokenize.Config(chat=ChatSection(**CHAT), max_rejected=0.5, shard_rows=512)
    inputs = {"rows": tmp_path / "rows", "tokenizer": tmp_path / "model"}
    tokens = tokenize.run(inputs, how, Job(tmp_path / "tokens", tmp_path / "tokens"))
    assert (made.train, made.test) == (rows["train_rows"], rows["test_rows"])
    for step, counts in (("reformat", rows["rejected"]), ("tokenize", tokens["rejected"])):
        assert {one.reason: one.count for one in made.rejected if one.step == step} == counts, step
    assert {"duplicate", "wrong type", "empty prompt", "wrong columns"} <= set(rows["rejected"])
    assert (made.tokens, made.unit, made.further_answers) == (tokens["tokens"], "tokens", 1)
    prompt, answer = made.lengths
    assert prompt.limits[0].cut == tokens["prompts_cut"] == 3 and prompt.quantiles["max"] > 150
    assert all(sum(one.counts) == one.count == tokens["train_rows"] + tokens["test_rows"] for one in made.lengths)
    kept = [token_file.TokenFile(tmp_path / "tokens" / name) for name in token_file.FILES.values()]
    assert answer.quantiles["max"] == max(int(file.lengths("answer").max()) for file in kept)
    first = next(one for one in made.rejected if one.reason == "duplicate")
    assert first.count == 4 and len(first.examples) == 3
    assert (first.examples[0].place, first.examples[0].detail) == (
        "rows.jsonl, line 21",
        "the same as rows.jsonl, line 1",
    )


def test_look_at_a_set_of_which_too_much_is_rejected_shows_why(tmp_path):
    """Catches a failure that takes its reasons with it, and counts that stand for a run that would not begin."""
    made = looked(write(tmp_path / "rows.jsonl", [*HARD[:20], *({"prompt": "x", "answer": ""} for i in range(30))]))
    assert "30 of its 50 rows are rejected" in made.failures[0]
    assert [(one.reason, one.count) for one in made.rejected] == [("no answer", 30)] and made.train + made.test == 20
    made = looked(write(tmp_path / "none.jsonl", [{"a": 1}]))
    assert "not one of its 1 rows" in made.failures[0] and made.rejected[0].examples[0].place == "none.jsonl, line 1"


def test_too_few_held_out_rows_are_said_before_a_run(tmp_path):
    """Catches a user who learns from the report of a finished run that its gate could compare nothing, and a note where
    they are enough."""
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"{i} of them", "answer": "x"} for i in range(100)])
    few, enough = (looked(file, dataset={"path": str(file), "test_fraction": share}) for share in (0.1, 0.5))
    (note,) = [note for note in few.notes if "too few" in note]
    assert note.startswith(f"{few.test} held-out rows: too few for the gate") and "hold out 30 (gate.min_rows)" in note
    assert enough.test >= 30 and not any("too few" in note for note in enough.notes)


def test_look_spells_out_what_cannot_be_seen(tmp_path):
    """Catches a first row in which a tab, a line end or an escape looks like nothing."""
    rows = [{"prompt": "a\tb\nc\u00a0d", "answer": "x\u200by\x1b[31m\n"}] * 2 + [
        {"prompt": p, "answer": "x"} for p in ASK
    ]
    (first, *_) = looked(write(tmp_path / "rows.jsonl", rows)).first
    assert first.prompt == "[user] a␉b␤\nc\\xa0d" and first.answer == "x\\u200by\\x1b[31m␤"


def test_page_has_every_text_escaped(tmp_path):
    """Catches markup of a dataset in the page: in rows, reasons, column and file names, notes."""
    rows = [{HOSTILE: "x", "prompt": f"{HOSTILE} {i}", "answer": HOSTILE} for i in range(20)]
    rows += [{"prompt": HOSTILE}, {"prompt": [HOSTILE], "answer": HOSTILE}]
    made = looked(write(tmp_path / "<b>rows.jsonl", rows), shown=30)
    made.notes.append(HOSTILE)
    made.failures.append(HOSTILE)
    calm = looked(
        write(tmp_path / "rows.jsonl", [{**LAYOUTS["Alpaca"][0][0], "instruction": str(i)} for i in range(20)])
    )
    for one, tags in ((made, {"script", "img", "b"}), (calm, {"script"})):
        html = data_page.page(as_json(one), HOSTILE, [HOSTILE])
        assert fetched(html) == [] and not tags & {tag for tag, _ in Tags(html).tags}
        assert html.rstrip().endswith("</html>") and "</main>" in html and without_tooltip(html) == []
    assert "alert(1)" in Tags(data_page.page(as_json(made), "", [])).text


def as_json(made: Any) -> dict:
    from dataclasses import asdict

    return json.loads(json.dumps(asdict(made)))


def test_data_command_leaves_no_store_and_says_bad_input(spinloop, tmp_path):
    """Catches a look that makes or fills a store, prints other JSON than a line of it, or ends well on a set with which
    a run would not begin."""
    good, bad = write(tmp_path / "good.jsonl", HARD), write(tmp_path / "bad.jsonl", [{"a": 1}])
    store, page = tmp_path / "store", tmp_path / "page.html"
    code, out, err = spinloop("data", good, "--store", store, "--json", "--rows", 1, "--html", page)
    assert code == 0, err
    made = json.loads(out)
    assert made["read"] == len(HARD) and len(made["first"]) == 1 and made["unit"] == "characters"
    assert json.loads(out)["failures"] == []
    code, out, err = spinloop("data", bad, "--store", store, "--rejects", tmp_path / "rejects.jsonl")
    every = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(one["reason"], one["place"]) for one in every] == [("wrong columns", "bad.jsonl, line 1")]
    assert code == 2 and "wrong columns: 1" in out and err.startswith("spinloop: ") and "Traceback" not in err
    code, _, err = spinloop("data", tmp_path / "nowhere.jsonl", "--store", store)
    assert code == 2 and "no such file" in err
    code, out, _ = spinloop("data", bad, "--store", store, "--set", "dataset.columns={prompt: a, answer: a}")
    assert code == 2 and "wrong type: 1" in out
    assert not store.exists() and page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_data_of_a_profile_counts_what_its_run_recorded(spinloop, finished, tiny, tmp_path):
    """Catches a look with another seed, split, limit or chat section than the run has."""
    records = {step["stage"]: step["summary"] for step in finished[1] if step["stage"] in ("reformat", "tokenize")}
    code, out, err = spinloop("data", tiny, "--json", "--store", tmp_path / "store")
    assert code == 0, err
    made = json.loads(out)
    rejected = {step: {} for step in records}
    for one in made["rejected"]:
        rejected[one["step"]][one["reason"]] = one["count"]
    rows, tokens = records["reformat"], records["tokenize"]
    assert (made["train"], made["test"]) == (rows["train_rows"], rows["test_rows"]) == (60, 12)
    assert rejected == {"reformat": rows["rejected"], "tokenize": tokens["rejected"]}
    assert (made["tokens"], made["rewritten"]) == (tokens["tokens"], tokens["rewritten"])
    assert made["lengths"][0]["limits"][0] == {"setting": "chat.max_prompt_length", "value": 48, "cut": 0}
    assert made["files"][0]["rows"] == 12000 and len(made["first"]) == 3 and not (tmp_path / "store").exists()
