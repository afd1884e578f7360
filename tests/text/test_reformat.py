"""Reformat: the same rows whatever the order, splits that stay put as a set grows, every reject counted."""

import hashlib
import json
import random
import shutil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.config.dataset import Dataset
from spin_core.data.rows import FILES, prompt_id, read_rows
from spin_core.errors import BadInput
from spin_core.stages import reformat
from spin_core.stages.demo_rows import make_rows
from spin_core.stages.reformat import Config, anonymous


def rows_of(n, start=0):
    return [{"question": f"What is {i} + 1?", "answer": f"It is {i + 1}."} for i in range(start, start + n)]


def reformatted(job, name, source, test=None, seed=7, **dataset):
    given = job(name)
    inputs = {"source": source} | ({"test_source": test} if test else {})
    summary = reformat.run(inputs, Config(dataset=Dataset(**dataset), seed=seed), given)
    return given.out, summary


def tree(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def ids(out, split):
    return {row.id for row in read_rows(out / FILES[split])}


def test_run_tree_has_the_contract_files_and_counts(job, jsonl):
    """Catches: a missing file, one that is another stage's (shards), unsorted rows, or counts of other rows."""
    out, summary = reformatted(job, "a", jsonl(rows_of(60)))
    assert summary["rejected"] == {} and summary["train_rows"] + summary["test_rows"] == 60
    assert set(tree(out)) == {*FILES.values(), "rejects.jsonl"}
    for split in ("train", "test"):
        rows = read_rows(out / FILES[split])
        assert len(rows) == summary[f"{split}_rows"]
        assert [row.id for row in rows] == sorted(row.id for row in rows)
        assert all(row.id == prompt_id(row.prompt) for row in rows)
    assert (out / "rejects.jsonl").read_text() == ""


def test_run_golden_sft_set_gives_the_reference_record(job, golden, jsonl):
    """Catches: another record than the reference's for its own input (but for its system row, which it gets wrong)."""
    import pyarrow.parquet as pq

    data = golden("pipeline.json")["reformat"]
    train = jsonl([{"messages": m} for m in data["input_train"]], "train.jsonl")
    test = jsonl([{"messages": m} for m in data["input_test"]], "test.jsonl")
    out, _ = reformatted(job, "a", train, test)

    def records(split):
        table = pq.read_table(out / FILES[split]).to_pylist()
        return sorted(({"real": r["real"], "generated": r["generated"]} for r in table), key=json.dumps)

    def plain(rows):
        return sorted(({"real": r["real"], "generated": r["generated"]} for r in rows), key=json.dumps)

    assert records("train") == plain(data["train"]["rows"])
    system = {
        "real": data["input_test"][2],
        "generated": [*data["input_test"][2][:2], {"role": "assistant", "content": ""}],
    }
    assert records("test") == plain([*data["test"]["rows"][:2], system])


BEFORE: dict[str, tuple[list[dict], str]] = {
    "demo": ([{"prompt": p, "response": a} for p, a in make_rows(7, 80)], "1512a6c182991d8e"),
    "ShareGPT": (
        [
            {
                "id": f"x{i}",
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": f"q{i} é\n"},
                    {"from": "gpt", "value": f" a{i}"},
                    {"from": "human", "value": "more"},
                    {"from": "gpt", "value": "end"},
                ],
            }
            for i in range(40)
        ],
        "8b8fb067be7f607f",
    ),
    "Alpaca": (
        [{"instruction": f"do {i}", "input": "in" * (i % 2), "output": f"out {i}"} for i in range(40)],
        "6612e71291a8af1d",
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_run_layouts_of_version_3_give_the_same_rows(job, jsonl, name):
    """Catches a reading that changes rows that were right: everything behind them would be computed again. Not the
    bytes, which have pyarrow's version in them."""
    rows, digest = BEFORE[name]
    out, summary = reformatted(job, "a", jsonl(rows), turns="all", test_fraction=0.4)
    made = [[split, row.id, row.prompt, row.answer] for split in FILES for row in read_rows(out / FILES[split])]
    assert hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16] == digest and summary["rejected"] == {}


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(8, 60))
def test_run_shuffled_and_regrouped_input_gives_the_same_tree(tmp_path_factory, order, n):
    """Catches: anything in the output that depends on the order or the file layout of the input."""
    folder = tmp_path_factory.mktemp("order")
    rows = rows_of(n)
    lines = [json.dumps(row) + "\n" for row in [*rows, {"question": "What is 1 + 1?", "answer": "It is not 3."}]]
    (folder / "a.jsonl").write_text("".join(lines))
    random.Random(order).shuffle(lines)
    (folder / "b").mkdir()
    (folder / "b" / "one.jsonl").write_text("".join(lines[: n // 2]))
    (folder / "b" / "two.json").write_text("[" + ",".join(lines[n // 2 :]) + "]")

    def job(name):
        (folder / name).mkdir()
        return reformat.Job(folder / name, folder / "scratch")

    options = dict(test_fraction=0.5, limit=20)
    try:
        first, summary = reformatted(job, "out1", folder / "a.jsonl", **options)
    except BadInput:
        return  # a split that leaves one side empty, at 8 rows
    second, summary2 = reformatted(job, "out2", folder / "b", **options)
    assert tree(first) == tree(second) and summary == summary2


def test_run_source_renamed_or_moved_gives_the_same_tree(job, jsonl, tmp_path):
    """Catches: a path in the output, which would make equal inputs give different digests."""
    source = jsonl([*rows_of(30), {"question": "", "answer": "x"}])
    first, _ = reformatted(job, "a", source)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(source, tmp_path / "elsewhere" / "other.jsonl")
    second, _ = reformatted(job, "b", tmp_path / "elsewhere" / "other.jsonl")
    assert tree(first) == tree(second)


def test_run_grown_set_keeps_every_row_on_its_side(job, jsonl):
    """Catches: a split by shuffled index, after which a rerun trains on what it held out before."""
    small, _ = reformatted(job, "a", jsonl(rows_of(200), "a.jsonl"))
    large, _ = reformatted(job, "b", jsonl(rows_of(400), "b.jsonl"))
    assert ids(small, "test") <= ids(large, "test") and ids(small, "train") <= ids(large, "train")
    assert 20 <= len(ids(large, "test")) <= 60


def test_run_other_seed_holds_out_other_rows(job, jsonl):
    """Catches: a split that ignores the seed."""
    source = jsonl(rows_of(200))
    assert ids(reformatted(job, "a", source)[0], "test") != ids(reformatted(job, "b", source, seed=8)[0], "test")


def test_run_limits_draw_nested_sets_by_seed(job, jsonl):
    """Catches: taking the first rows of the file or the smallest ids, or a larger limit that draws other rows."""
    train, test = jsonl(rows_of(300), "train.jsonl"), jsonl(rows_of(9, start=900), "test.jsonl")
    ten, summary = reformatted(job, "a", train, test, limit=10, test_limit=5)
    twenty, _ = reformatted(job, "b", train, test, limit=20, test_limit=5)
    other, _ = reformatted(job, "c", train, test, limit=10, test_limit=5, seed=8)
    assert (summary["train_rows"], summary["test_rows"]) == (10, 5)
    assert ids(ten, "train") < ids(twenty, "train") and ids(ten, "train") != ids(other, "train")


def test_run_limit_of_a_grown_set_replaces_its_share_only(job, jsonl):
    """Catches: a limit that draws other rows when the set grows, so that everything is generated again.

    200 of about 1,080 training rows; of about 108 more, a sixth are drawn, each in the place of another row.
    """
    before, after = (
        ids(reformatted(job, name, jsonl(rows_of(n), f"{name}.jsonl"), limit=200)[0], "train")
        for name, n in (("a", 1200), ("b", 1320))
    )
    added = {prompt_id([{"role": "user", "content": row["question"]}]) for row in rows_of(120, start=1200)}
    assert len(before) == len(after) == 200
    assert after - before <= added and 5 <= len(after - before) <= 35


def test_run_several_answers_are_rows_of_one_side_with_ranked_ids(job, jsonl):
    """Catches: a prompt in train and test at once, and a second answer that overwrites the first."""
    rows = [{"question": f"q{i}", "answer": a} for i in range(50) for a in ("b", "a", "b")]
    out, summary = reformatted(job, "a", jsonl(rows), test_fraction=0.5)
    assert summary["rejected"] == {"duplicate": 50}
    by_side = [{id.partition("-")[0] for id in ids(out, split)} for split in ("train", "test")]
    assert not by_side[0] & by_side[1]
    answers = {row.id: row.answer for split in FILES for row in read_rows(out / FILES[split])}
    assert len(answers) == 100
    assert all(answer == ("b" if id.endswith("-1") else "a") for id, answer in answers.items())


def test_run_own_test_set_takes_its_prompts_out_of_train(job, jsonl):
    """Catches: evaluating on what was trained on, or a random split although a test set was given."""
    out, summary = reformatted(job, "a", jsonl(rows_of(20), "a.jsonl"), jsonl(rows_of(5, start=18), "b.jsonl"))
    assert (summary["train_rows"], summary["test_rows"]) == (18, 5)
    assert summary["rejected"] == {"also held out": 2}
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(r["source"], r["line"], r["reason"]) for r in rejects] == [
        ("source", 19, "also held out"),
        ("source", 20, "also held out"),
    ]


def test_run_rejects_are_listed_with_place_and_counted(job, jsonl):
    """Catches: a row that is dropped and neither counted nor named."""
    bad = [{"question": "q", "answer": ""}, [1], {"text": "x"}, {"question": "a\ud800", "answer": "b"}, rows_of(1)[0]]
    out, summary = reformatted(job, "a", jsonl([*rows_of(30), *bad]))
    assert summary["rejected"] == {
        "no answer": 1,
        "not an object": 1,
        "wrong columns": 1,
        "not text": 1,
        "duplicate": 1,
    }
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in rejects] == [
        (31, "no answer"),
        (32, "not an object"),
        (33, "wrong columns"),
        (34, "not text"),
        (35, "duplicate"),
    ]
    assert all(set(r) == {"source", "line", "reason", "detail"} and r["source"] == "source" for r in rejects)


REFUSED: dict[str, Any] = {
    "columns": ([{"text": "q", "label": 1}], {}, "its columns are text, label: name yours in `dataset.columns`"),
    "all rejected": ([{"question": "q", "answer": ""}] * 2, {}, r"not one of its 2 rows can be used \(no answer: 2\)"),
    "mapped wrong": (
        rows_of(9),
        {"columns": {"prompt": "q", "answer": "answer"}},
        "'q', which no record has; name one of question",
    ),
    "system wrong": (
        rows_of(9),
        {"columns": {"prompt": "question", "answer": "answer", "system": "rules"}},
        "'rules', which no record has",
    ),
    "no held-out": (rows_of(9), {"test_fraction": 0}, "evaluation needs at least one; raise it"),
    "none held out": (rows_of(9), {"test_fraction": 1e-9}, "holds out none of the 9 rows"),
    "all held out": (rows_of(9), {"test_fraction": 0.9999999}, "holds out all 9 rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_run_unusable_dataset_is_one_sentence_with_the_remedy(job, jsonl, case):
    """Catches: an empty split that fails hours later in evaluate, or column names that the user must guess."""
    rows, options, message = REFUSED[case]
    with pytest.raises(BadInput, match=message) as raised:
        reformatted(job, "a", jsonl(rows), **options)
    assert "\n" not in str(raised.value)


def test_run_train_wholly_held_out_is_bad_input(job, jsonl):
    """Catches: an empty training set where test_path is the training file."""
    source = jsonl(rows_of(9))
    with pytest.raises(BadInput, match="every training prompt is also held out"):
        reformatted(job, "a", source, source)


def test_anonymous_dataset_forgets_where_it_was_read(tmp_path):
    """Catches: a path in the key, so that the same data elsewhere is reformatted again; or the size of shards, which
    are tokenize's."""
    here = Dataset(path="a.jsonl", test_path="b.jsonl", revision="main", limit=3, shard_rows=9)
    assert anonymous(here) == anonymous(Dataset(path="c.jsonl", limit=3)) != anonymous(Dataset(path="a.jsonl", limit=4))
