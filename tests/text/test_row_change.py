"""What changed between two trees of rows, against counting in plain Python."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from spin_core.data import token_file
from spin_core.data.row_change import SHARES, Counts, compare, new_shards, read
from spin_core.data.rows import FILES, Row, prompt_id, read_rows, write_rows
from tests.text.token_trees import tokens_of

Content = tuple[str, str, str]
"""Set, prompt, answer."""


def tree(folder: Path, train: list[Content], test: list[Content], sources: bool = False) -> Path:
    """A tree as reformat writes it: sorted by id, the answers to one prompt numbered in the order of their texts."""
    folder.mkdir(parents=True)
    for split, contents in (("train", train), ("test", test)):
        answers: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for source, prompt, answer in sorted(contents, key=lambda one: one[2]):
            answers[prompt].append((source, prompt, answer))
        rows = []
        for prompt, some in answers.items():
            messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": prompt}]
            id = prompt_id(messages)
            for rank, (source, _, answer) in enumerate(some):
                rows.append(Row(f"{id}-{rank}" if rank else id, messages, answer, source))
        write_rows(folder / FILES[split], sorted(rows, key=lambda row: row.id), sources)
    return folder


def counted(before: list[Content], now: list[Content], name: str = "") -> Counts:
    """By prompts, one at a time. A pair of an answer that went and one that came is an edit, and belongs to the set of
    the one that came (the tests draw no prompt in two sets)."""
    new = gone = edited = 0
    for prompt in {one[1] for one in (*before, *now)}:
        was = {one[2] for one in before if one[1] == prompt and name in ("", one[0])}
        is_now = {one[2] for one in now if one[1] == prompt and name in ("", one[0])}
        came, went = len(is_now - was), len(was - is_now)
        pairs = min(came, went)
        new, gone, edited = new + came - pairs, gone + went - pairs, edited + pairs
    size = [sum(name in ("", one[0]) for one in side) for side in (before, now)]
    return Counts(*size, new, gone, edited)


def drawn(draw: random.Random, count: int) -> list[Content]:
    """Different rows of 20 prompts, several answers to some; each prompt is of one set."""
    made = {(draw.randrange(20), draw.randrange(4)) for _ in range(count)}
    return [("ab"[prompt % 2], f"prompt ä {prompt}", "w " * answer) for prompt, answer in sorted(made)]


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_plain_python_of_all_rows_and_of_each_set(tmp_path, seed):
    """Catches rows counted by their ids (a further answer renumbers the others), an edit counted as a row that is new
    and one that is gone, two edits to one prompt counted as one, a set's rows counted for the other, and held-out rows
    among those to train on."""
    draw = random.Random(seed)
    sides = [(drawn(draw, draw.randrange(1, 40)), drawn(draw, draw.randrange(1, 9))) for _ in range(2)]
    trees = [tree(tmp_path / str(n), *side, sources=True) for n, side in enumerate(sides)]
    change = compare(*trees, None)
    names = {one[0] for side in sides for split in side for one in split}
    assert change.parts.keys() == {"", *names} and change.unit == "characters"
    for name, part in change.parts.items():
        assert part.train == counted(sides[0][0], sides[1][0], name)
        assert part.test == counted(sides[0][1], sides[1][1], name)
        again = [Counter(one[1] for one in side[0] if name in ("", one[0])) for side in sides]
        assert part.again == tuple(sum(count - 1 for count in some.values()) for some in again)


def test_lengths_are_those_of_prompt_and_answer_apart(tmp_path):
    """Catches bytes for characters, the answer counted to its prompt, and turns of a neighbour counted to a row (files
    are read in parts)."""
    contents = [("", "é" * n, "語" * (n % 7)) for n in range(1, 3000)]
    rows = read(tree(tmp_path / "rows", contents, []) / FILES["train"])
    assert sorted(rows.lengths["prompt"].tolist()) == sorted(len("be kind") + len(one[1]) for one in contents)
    both = Counter(zip(rows.lengths["prompt"].tolist(), rows.lengths["answer"].tolist(), strict=True))
    assert both == Counter((len("be kind") + len(one[1]), len(one[2])) for one in contents)
    empty = read(tmp_path / "rows" / FILES["test"])
    assert len(empty.prompts) == len(empty.contents) == len(empty.sources) == 0


def test_spread_is_of_shares_and_says_what_moved(tmp_path):
    """Catches a set that only grew and is said to have moved, quantiles of before and now that are interchanged, and
    bins that lose the longest texts."""
    some = [("", f"{n:03}", "x" * (n % 10)) for n in range(200)]
    same = [("", f"{n:03}!", "x" * (n % 10)) for n in range(200)]
    longer = [("", f"{n:03}?", "x" * 500) for n in range(200)]
    before = tree(tmp_path / "before", some, [])
    grown = compare(before, tree(tmp_path / "grown", some + same, []), None).all.spreads["answer"]
    assert grown.before == grown.now and grown.now["median"] in (4, 5)
    moved = compare(before, tree(tmp_path / "moved", some + longer, []), None).all.spreads["answer"]
    assert moved.before == grown.before and moved.now["90 %"] == 500
    assert [sum(side) for side in moved.bins] == [200, 400] and moved.bins[1][-1] == 200


def test_another_dataset_is_not_a_grown_one(tmp_path):
    """Catches a dataset without one row of the other that is reported as so many new rows, and one with a single row in
    common, or whose answers were all edited, that is not compared."""
    a, b = ([("", f"{name} {n}", "x") for n in range(9)] for name in ("a", "b"))
    first = tree(tmp_path / "first", a, a[:1])
    assert compare(first, tree(tmp_path / "b", b, b[:1]), None).apart
    assert not compare(first, tree(tmp_path / "one", [*b, a[3]], b[:1]), None).apart
    assert not compare(first, tree(tmp_path / "edited", [(*one[:2], "y") for one in a], b[:1]), None).apart


def test_lengths_in_tokens_are_of_the_rows_of_each_set(tmp_path):
    """Catches characters called tokens, and lengths of another set's rows: a row that tokenize rejects has no tokens,
    and all behind it would move up."""
    trees, tokens, wanted = [], [], []
    for side in (0, 1):
        contents = [("ab"[n % 2], f"{n}", "x" * n) for n in range(40)]
        rows = tree(tmp_path / f"rows {side}", contents, contents[:2], sources=True)
        kept = [row for n, row in enumerate(read_rows(rows / FILES["train"])) if n % 5]
        sizes = {row.id: (100 * (row.source == "b") + len(row.answer), side + 7) for row in kept}
        lines = ((row.id, *([0] * size for size in sizes[row.id])) for row in kept)
        (tmp_path / f"tokens {side}").mkdir()
        token_file.write(tmp_path / f"tokens {side}" / token_file.FILES["train"], ("prompt", "answer"), lines)
        trees.append(rows)
        tokens.append(tmp_path / f"tokens {side}")
        wanted.append({name: sorted(sizes[r.id][0] for r in kept if name in ("", r.source)) for name in ("", "a", "b")})
    change = compare(*trees, (tokens[0], tokens[1]))
    assert change.unit == "tokens"
    for name, part in change.parts.items():
        for made, lengths in zip((part.spreads["prompt"].before, part.spreads["prompt"].now), (wanted), strict=True):
            assert list(made) == list(SHARES) and made["99 %"] == lengths[name][round(0.99 * (len(lengths[name]) - 1))]
            assert made["10 %"] == lengths[name][round(0.1 * (len(lengths[name]) - 1))]
        assert (part.spreads["answer"].before["median"], part.spreads["answer"].now["median"]) == (7, 8)


def test_shards_are_new_by_their_prompts(tmp_path):
    """Catches shards that are counted as new although an answer alone changed, or although they are there."""
    contents = [("", f"{n}", "a") for n in range(60)]
    sides = {"same": contents, "edited": [(*one[:2], "b") for one in contents], "more": [*contents, ("", "60", "a")]}
    for name, side in sides.items():
        tokens_of(tree(tmp_path / f"rows {name}", side, side[:1]), tmp_path / name)
    assert new_shards(tmp_path / "same", tmp_path / "edited")[0] == 0
    new, all_ = new_shards(tmp_path / "same", tmp_path / "more")
    assert 1 <= new <= 3 < all_
