"""Several sets mixed: shares that hold, each prompt once, held out for all, and sets that leave each other's rows
alone."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spin_core.config.dataset import Dataset
from spin_core.data.mixing import sizes
from spin_core.data.rows import FILES
from spin_core.errors import BadInput
from spin_core.stages.reformat import anonymous
from tests.text.conversations import CONVERSATIONS, begins, conversation, reformatted, split

TURNS = ("first", "last", "all")


def rows(name: str, count: int, start: int = 0) -> list[dict]:
    return [conversation([f"{name} {n}", f"answer {n}"]) for n in range(start, start + count)]


def two(**second: Any) -> list[dict[str, Any]]:
    return [{"path": "x/a.jsonl"}, {"path": "org/b", **second}]


def mixed(folder, a: list[dict], b: list[dict], sets: list[dict], test: list[dict] | None = None, **beside: Any):
    inputs = {"source_a": a, "source_b": b} | ({"test_source_b": test} if test else {})
    return split(folder, inputs, sets=sets, **beside)


def ids(side: list, source: str) -> set[str]:
    return {row.id for row in side if row.source == source}


COUNTS = st.lists(st.tuples(st.integers(1, 500), st.sampled_from([0.1, 0.2, 0.25, 0.3, 1, 2, 3, 7])), min_size=2)


@given(COUNTS, st.integers(0, 800), st.integers(1, 50))
def test_sizes_by_weight_hold_their_shares_and_only_grow(sets, limit, more):
    """Catches: a share off by more than its rounding, more rows than a set has or the limit allows, a mix that could be
    larger, and a set that gives fewer because another grew or the limit was raised."""
    counts, weights = [n for n, _ in sets], [w for _, w in sets]
    given = sizes(counts, [0] * len(sets), weights, limit)
    total = min([n / w * sum(weights) for n, w in sets] + [limit] * bool(limit))
    for size, (count, weight) in zip(given, sets, strict=True):
        assert size <= count and size <= weight / sum(weights) * total + 1e-6 < size + 1 + 2e-6
    assert not limit or sum(given) <= limit
    for grown in ([counts[0] + more, *counts[1:]], [n + more for n in counts]):
        assert all(a <= b for a, b in zip(given, sizes(grown, [0] * len(sets), weights, limit), strict=True))
    if limit:
        assert all(a <= b for a, b in zip(given, sizes(counts, [0] * len(sets), weights, limit + more), strict=True))


def test_sets_of_exactly_their_shares_give_all_their_rows():
    """Catches: shares in floats, of which a tenth of 30 rows is 2.9999…, so that every mix leaves a row or two out."""
    for n in range(1, 100):
        assert sizes([n, 2 * n, 7 * n], [0] * 3, [0.1, 0.2, 0.7], 0) == [n, 2 * n, 7 * n]


@pytest.mark.parametrize("weight", [0.1, 1, 3])
@pytest.mark.parametrize("limit", [0, 40])
def test_weights_draw_shares_of_the_training_rows_without_repetition(tmp_path, weight, limit):
    """Catches: weights that repeat rows, that thin the held-out rows, or that are a chance of each row instead of a
    share; and a set with too few rows of which nobody hears."""
    sets = [{"path": "a", "weight": 1}, {"path": "b", "weight": weight}]
    inputs = {"source_a": rows("a", 120), "source_b": rows("b", 60)}
    tree, summary, notes = reformatted(tmp_path, inputs, sets=sets, limit=limit)
    counts = summary["sources"]
    seen = {name: of["train_rows"] + of["not_drawn"] for name, of in counts.items()}
    assert [counts[name]["train_rows"] for name in "ab"] == sizes([*seen.values()], [0, 0], [1, weight], limit)
    train = pq.read_table(tree / FILES["train"]).to_pylist()
    assert len({row["id"] for row in train}) == len(train) == summary["train_rows"]
    assert [sum(row["source"] == name for row in train) for name in "ab"] == [
        counts[name]["train_rows"] for name in "ab"
    ]
    assert sum(seen.values()) + sum(of["test_rows"] for of in counts.values()) == 180
    if limit:
        assert notes == []
    else:
        short = "b" if weight >= 1 else "a"
        assert f"{short} has {seen[short]} training rows, too few for its weight" in notes[0]
        assert f"and {sum(of['not_drawn'] for of in counts.values())} rows are not drawn" in notes[0]


def test_a_limit_that_weights_cannot_fill_is_said(tmp_path):
    """Catches: a mix that is smaller than `dataset.limit` says, in silence."""
    sets = [{"path": "a", "weight": 1}, {"path": "b", "weight": 1}]
    inputs = {"source_a": rows("a", 100), "source_b": rows("b", 20)}
    _, summary, notes = reformatted(tmp_path, inputs, sets=sets, limit=100)
    assert summary["train_rows"] < 42 and "b has" in notes[0]


def test_limits_are_of_each_set_and_of_all_together(tmp_path):
    """Catches: a set's limit that is taken of all, or held-out rows that `test_limit` of one set leaves in another."""
    sets = [{"path": "a", "limit": 30, "test_limit": 2}, {"path": "b"}]
    one, summary = mixed(tmp_path, rows("a", 100), rows("b", 40), sets)
    assert len(ids(one["train"], "a")) == 30 and len(ids(one["test"], "a")) == 2
    assert len(ids(one["train"], "b")) + len(ids(one["test"], "b")) == 40
    assert summary["sources"]["a"]["not_drawn"] > 40 and summary["sources"]["b"]["not_drawn"] == 0
    both, _ = mixed(tmp_path, rows("a", 100), rows("b", 40), sets, limit=20)
    assert len(both["train"]) == 20 and ids(both["train"], "a") < ids(one["train"], "a")


@pytest.mark.parametrize("own_test", [False, True])
@pytest.mark.parametrize("turns", TURNS)
def test_no_conversation_is_on_both_sides_of_a_mix(tmp_path, turns, own_test):
    """Catches: a set whose training rows begin as another set's held-out ones, and a prompt that is there twice because
    two sets have it."""
    seen = []

    @settings(max_examples=25, deadline=None)
    @given(CONVERSATIONS, CONVERSATIONS, CONVERSATIONS)
    def check(a, b, test):
        sets = two(turns=turns)
        try:
            rows, _ = mixed(tmp_path, a, b, sets, test if own_test else None, test_fraction=0.5, max_rejected=1)
        except BadInput:  # one side is empty
            return
        sides = {side: {begins(row) for row in part} for side, part in rows.items()}
        assert not sides["train"] & sides["test"]
        owners: dict[str, set[str]] = {}
        for row in [*rows["train"], *rows["test"]]:
            owners.setdefault(row.id[:16], set()).add(row.source)
        assert all(len(sources) == 1 for sources in owners.values())
        seen.append(len(rows["train"]))

    check()
    assert len(seen) > 5


def test_a_prompt_of_two_sets_counts_once_with_both_places_named(tmp_path):
    """Catches: the same prompt trained on twice, the later set's answer taken, or a duplicate that says where only one
    of the two is."""
    a, b = rows("same", 20), [*rows("b", 20), conversation(["same 3", "another answer"])]
    tree, summary, _ = reformatted(tmp_path, {"source_a": a, "source_b": b}, sets=two(), test_fraction=0.2)
    lines = [json.loads(line) for line in (tree / "rejects.jsonl").read_text().splitlines()]
    assert summary["rejected"] == {"duplicate": 1} == summary["sources"]["b"]["rejected"]
    assert [(line["source"], line["line"], line["detail"]) for line in lines] == [
        ("source_b", 21, "the same prompt as source_a, line 4")
    ]
    kept = {row["real"][-1]["content"] for name in FILES.values() for row in pq.read_table(tree / name).to_pylist()}
    assert "another answer" not in kept and "answer 3" in kept


def test_published_pairs_are_mixed_with_an_sft_set(tmp_path):
    """Catches: the opponent's answers of SPIN's own sets trained on, and columns or turns of one set used for all."""
    published = [
        {side: conversation([f"p {n}", f"{side} {n}"])["messages"] for side in ("real", "generated")} for n in range(20)
    ]
    own = [conversation([f"q {n}", "a", "and", "b"])["messages"] for n in range(20)]
    sets = two(turns="all", columns={"messages": "talk"})
    out, summary = mixed(tmp_path, published, [{"talk": turns, "text": "x"} for turns in own], sets)
    assert summary["rejected"] == {} and summary["train_rows"] + summary["test_rows"] == 60
    answers = {row.answer.partition(" ")[0] for side in out.values() for row in side if row.source == "a"}
    assert answers == {"real"}


def test_rows_of_another_sets_test_are_not_trained_on(tmp_path):
    """Catches: `test_path` of one set that holds out of that set alone."""
    out, summary = mixed(tmp_path, rows("a", 40), rows("b", 10), two(test_split="test"), rows("a", 5))
    held = {(f"a {n}",) for n in range(5)}
    assert held <= {begins(row) for row in out["test"]} and not held & {begins(row) for row in out["train"]}
    rejected = summary["rejected"]  # a row of a's that is split off anyway is the same prompt once more
    assert rejected["also held out"] > 0 and sum(rejected.values()) == 5


@pytest.mark.parametrize("weight", [{}, {"weight": 1}])
def test_a_set_that_grows_or_is_added_leaves_the_others_rows(tmp_path, weight):
    """Catches: a draw or split by position in the mix: rows of one set move, and are answered again, because another
    set grew. Of a set that bounds the weighted mix every draw grows, and loses none."""
    sets = [{"path": "a", **weight}, {"path": "b", **weight}]
    before, _ = mixed(tmp_path, rows("a", 200), rows("b", 50), sets)
    for name, a, b in (("a", rows("a", 240), rows("b", 50)), ("b", rows("a", 200), rows("b", 60))):
        after, _ = mixed(tmp_path, a, b, sets)
        other = "b" if name == "a" else "a"
        for side in FILES:
            assert ids(before[side], other) <= ids(after[side], other)
        moved = ids(before["train"], name) - ids(after["train"], name)
        assert len(moved) <= (20 if weight and name == "a" else 0)
        if not weight or name == "a":
            assert ids(before["train"], other) == ids(after["train"], other)
    alone, _ = split(tmp_path, {"source": rows("a", 200)})
    if not weight:
        assert all(ids(before[side], "a") == {row.id for row in alone[side]} for side in FILES)


def test_one_set_has_no_source_column(tmp_path):
    """Catches: another parquet for the sets that were always read, with which all after them is computed again."""
    tree, summary, _ = reformatted(tmp_path, {"source": rows("a", 30)})
    assert pq.read_schema(tree / FILES["train"]).names == ["id", "real", "generated"] and "sources" not in summary
    both, _, _ = reformatted(tmp_path, {"source_a": rows("a", 30), "source_b": rows("b", 9)}, sets=two())
    assert pq.read_schema(both / FILES["train"]).names == ["id", "real", "generated", "source"]


def test_a_weighed_set_without_rows_is_one_sentence(tmp_path):
    """Catches: a mix of nothing because one set of it has nothing of its own."""
    sets = [{"path": "a", "weight": 1}, {"path": "b", "weight": 1}]
    with pytest.raises(BadInput, match="no training row of b is left"):
        mixed(tmp_path, rows("a", 30), rows("a", 30), sets)


UNCLEAR: dict[str, tuple[Any, str]] = {
    "a list": ([{"path": "a"}], r"is one mapping; write several sets as `sets: \[…\]`"),
    "one": ({"sets": [{"path": "a"}]}, "write one set without it, as dataset.path"),
    "beside": ({"path": "a", "sets": two()}, "`path` stands beside `sets`; put it into the set that it is of"),
    "same name": ({"sets": [{"path": "x/a.jsonl"}, {"path": "y/a"}]}, "`sets` has the name a twice"),
    "no name": ({"sets": [{"path": "a"}, {"path": "../.."}]}, r"sets.1 has no name; give it a path that ends"),
    "both": ({"sets": two(weight=1, limit=3)}, r"sets.1 \(b\) has both a weight and a limit"),
    "some weights": ({"sets": two(weight=1)}, "`sets` has weights, and a has none"),
    "no weight": ({"sets": two(weight=0)}, "greater than 0"),
    "odd name": ({"sets": two(name="a b")}, "sets.1.name\n.*match pattern"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_sets_that_are_unclear_are_refused(case):
    """Catches: settings that two places give, and weights that are of only some of the rows."""
    data, message = UNCLEAR[case]
    with pytest.raises(ValidationError, match=message):
        Dataset.model_validate(data)


def test_names_are_what_the_path_is_called():
    """Catches: rows that say they are from `a.jsonl.gz`, and an ending cut off a version."""
    paths = ("x/a.jsonl.gz", "v.2", "UCLA-AGI/SPIN_iter0", "builtin:tasks", "org/set-v1.5", "my set")
    dataset = Dataset.model_validate({"sets": [{"path": path} for path in paths]})
    assert [*dataset.parts] == ["a", "v.2", "SPIN_iter0", "tasks", "set-v1.5", "my-set"]


def test_key_forgets_where_sets_were_read_and_keeps_what_they_are_called():
    """Catches: a path in the key, and a set that is renamed in its rows under the old key."""
    here, there, other = (
        anonymous(Dataset.model_validate({"sets": [{"path": path, "revision": path}, {"path": "b"}]}))
        for path in ("a.jsonl", "elsewhere/a.json", "c.jsonl")
    )
    assert here == there != other and [one.path + one.revision for one in here.sets] == ["", ""]
