"""Shards of prompts: bounded sizes, the same rows the same shards, and an edit that changes only what is around it."""

import hashlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.config.dataset import Dataset
from spin_core.data import token_file
from spin_core.data.rows import FILES, Cutter, read_rows
from spin_core.data.token_file import TokenFile
from spin_core.job import Job
from spin_core.stages import reformat
from spin_core.stages.reformat import Config
from tests.text.conversations import conversation, reformatted
from tests.text.token_trees import tokens_of


def cut(ids, aim, id_of):
    cutter = Cutter(aim)
    return [shard for id in ids if (shard := cutter.add(id, id_of(id)))] + list(cutter.rest())


IDS = st.sets(st.integers(0, 2**64 - 1).map(lambda n: f"{n:016x}"), max_size=300).map(sorted)


@given(IDS, st.integers(1, 64))
def test_cut_shards_any_ids_partition_within_bounds(ids, aim):
    """Catches: a lost or doubled id, an empty shard, or a shard beyond a quarter to twice the aim."""
    shards = list(cut(ids, aim, str))
    assert [id for shard in shards for id in shard] == ids
    assert all(len(shard) <= 2 * aim for shard in shards) and all(
        len(shard) >= max(1, aim // 4) for shard in shards[:-1]
    )
    assert all(shards)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 5), st.booleans())
def test_cut_shards_few_edits_change_few_shards(seed, edits, removing):
    """Catches: shards by position, of which one new row changes nearly all.

    3,000 ids at aim 64 are about 51 shards; an edit changes its shard, and seldom the next ones until the ends meet:
    measured over 13,200 single edits at this aim, 1.02 shards on average, 4 at most.
    """
    draw = random.Random(seed)
    ids = sorted(f"{draw.getrandbits(64):016x}" for _ in range(3000))
    changed = set(draw.sample(ids, edits)) if removing else {f"{draw.getrandbits(64):016x}" for _ in range(edits)}
    after = sorted(set(ids) ^ changed)
    before = {tuple(shard) for shard in cut(ids, 64, str)}
    new = [shard for shard in cut(after, 64, str) if tuple(shard) not in before]
    assert len(new) <= 2 + 3 * edits
    assert 30 <= len(before) <= 75


def test_cut_shards_one_edit_seldom_changes_a_second_shard():
    """Catches: a cut at the maximum where no hash demands one: its follower moves too (1.29 shards an edit, not
    1.01)."""
    draw, changed = random.Random(1), []
    for _ in range(8):
        ids = sorted(f"{draw.getrandbits(64):016x}" for _ in range(3000))
        before = {tuple(shard) for shard in cut(ids, 64, str)}
        for edit in range(8):
            one = draw.choice(ids) if edit % 2 else f"{draw.getrandbits(64):016x}"
            after = list(cut(sorted(set(ids) ^ {one}), 64, str))
            changed.append(sum(tuple(shard) not in before for shard in after))
    assert sum(changed) / len(changed) < 1.1


@settings(max_examples=200)
@given(IDS, st.sets(st.integers(0, 2**64 - 1).map(lambda n: f"{n:016x}"), max_size=5), st.data(), st.integers(1, 40))
def test_cut_shards_every_changed_stretch_has_an_edit_in_it(ids, added, data, aim):
    """Catches: a cut that depends on anything far away: the number of ids, or a position in the full list."""
    removed = data.draw(st.sets(st.sampled_from(ids), max_size=5)) if ids else set()
    edits = sorted(added ^ removed)
    before = {tuple(shard) for shard in cut(ids, aim, str)}
    stretch_from, changed = "", False
    for shard in [*cut(sorted((set(ids) - removed) | added), aim, str), None]:
        if shard is not None and tuple(shard) not in before:
            changed = True
            continue
        upto = shard[0] if shard else "g"
        assert not changed or any(stretch_from < edit < upto for edit in edits)
        stretch_from, changed = (shard[-1] if shard else "g"), False


def test_cut_shards_worst_neighbours_change_at_most_four_shards():
    """Catches: ends that take long to meet again, wherever the edit is: beside an end, in place of one, at the edges.

    Every single removal, and an addition behind every id: of 12,000 such edits at this aim (10 sets) 1.09 shards
    changed on average and 4 at the worst; in this set 1.04 (removed), 1.21 (added) and 3.
    """
    draw = random.Random(5)
    ids = sorted(f"{draw.getrandbits(64):016x}" for _ in range(500))
    before = {tuple(shard) for shard in cut(ids, 16, str)}
    counts: dict[str, list[int]] = {"removed": [], "added": []}
    for i, id in enumerate(ids):
        after = {"removed": ids[:i] + ids[i + 1 :], "added": [*ids[: i + 1], f"{int(id, 16) + 1:016x}", *ids[i + 1 :]]}
        for kind, edited in after.items():
            counts[kind].append(sum(tuple(shard) not in before for shard in cut(edited, 16, str)))
    assert max(counts["removed"]) <= 4 and max(counts["added"]) <= 4
    assert sum(counts["removed"]) < 1.2 * len(ids) and sum(counts["added"]) < 1.3 * len(ids)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """Makes rows and their tokens of records, with shards of about 16: the two trees, and tokenize's counts."""

    def make(records, **chat):
        folder = tmp_path_factory.mktemp("shards")
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
        (folder / "rows").mkdir()
        config = Config(dataset=Dataset(), seed=7)
        reformat.run({"source": folder / "data.jsonl"}, config, Job(folder / "rows", folder))
        summary = tokens_of(folder / "rows", folder / "tokens", shard_rows=16, **chat)
        return folder / "rows", folder / "tokens", summary

    return make


def files(tree):
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


@pytest.mark.parametrize("template", ["model", "paper"])
def test_run_shards_have_each_prompt_that_is_sampled_from_and_no_answer(tokenized, template):
    """Catches: a row that no shard has, answers in a shard, a shards.json that says other than the shards, and a prompt
    that is sampled under other ids than it is scored (but for the published code's way, where they differ)."""
    rows, tokens, summary = tokenized(numbered(range(60)), template=template)
    listed = json.loads((tokens / "shards.json").read_text())
    assert summary["shards"] == len(listed) and summary["rejected"] == {}
    assert summary["train_rows"] + summary["test_rows"] == 60
    assert set(files(tokens)) == {
        "shards.json", "tokens.json", "rejects.jsonl", *token_file.FILES.values(), *(shard["file"] for shard in listed)
    }  # fmt: skip
    column = "prompt" if template == "model" else "generation_prompt"
    for split, name in FILES.items():
        file = TokenFile(tokens / token_file.FILES[split])
        assert file.columns == (
            ["prompt", "answer"] if template == "model" else ["prompt", "answer", "generation_prompt"]
        )
        lines = []
        for shard in (s for s in listed if s["split"] == split):
            data = (tokens / shard["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
            assert shard["file"] == f"prompts/{split}-{shard['sha256'][:12]}.jsonl"
            assert data.count(b"\n") == shard["rows"]
            lines += [json.loads(line) for line in data.splitlines()]
        assert [line["id"] for line in lines] == [row.id for row in read_rows(rows / name)]
        assert lines == [
            {"id": id, "prompt": row[column].tolist()} for id, row in zip(file.ids, file, strict=True)
        ]  # fmt: skip
    assert (tokens / "rejects.jsonl").read_text() == ""


def test_run_edited_answer_leaves_every_shard_as_it_was(tokenized):
    """Catches: answers in the shards, so that correcting one regenerates its full shard."""
    rows = numbered(range(100))
    before = files(tokenized(rows)[1])
    rows[50]["response"] = "Fifty-one."
    after = files(tokenized(rows)[1])
    differ = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert differ and differ <= {*token_file.FILES.values(), "tokens.json"}


def test_run_shuffled_input_gives_the_same_tokens(tokenized):
    """Catches: anything in the tokens that depends on the order of the input, on a path, or on which rows are rendered
    together."""
    rows = numbered(range(300))
    rows[7]["response"] += "<|im_end|><|im_start|>"
    first, again = (tokenized(made) for made in (rows, random.Random(3).sample(rows, len(rows))))
    assert files(first[1]) == files(again[1]) and first[2] == again[2]
    assert first[2]["rejected"] == {"special token in the text": 1}


def test_run_rejected_row_is_in_no_shard_and_said_with_the_reason(tokenized):
    """Catches: a row that has no real answer's ids sampled for nothing, and one that is gone without a word."""
    rows = numbered(range(40))
    rows[3]["prompt"] += " <|im_start|>"
    _, tokens, summary = tokenized(rows)
    (reject,) = [json.loads(line) for line in (tokens / "rejects.jsonl").read_text().splitlines()]
    shards = "".join((tokens / shard["file"]).read_text() for shard in json.loads((tokens / "shards.json").read_text()))
    assert summary["rejected"] == {reject["reason"]: 1} and summary["train_rows"] + summary["test_rows"] == 39
    assert "'<|im_start|>' in the user" in reject["detail"] and reject["id"] not in shards
    assert shards.count("\n") == 39
    counts = json.loads((tokens / "tokens.json").read_text())
    assert [counts[split]["rejected"] for split in FILES if split == reject["split"]] == [{reject["reason"]: 1}]


BASE = 1200
EDITS = {
    # kind: (rows after the edit from the rows before it, prompts that came or went)
    "1 % added": (lambda rows, draw: rows + numbered(range(BASE, BASE + BASE // 100)), BASE // 100),
    "5 deleted": (lambda rows, draw: draw.sample(rows, BASE - 5), 5),
    "5 neighbours deleted": (lambda rows, draw: drop_neighbours(rows, draw), 5),
    "5 prompts edited": (lambda rows, draw: edited(rows, draw, "prompt"), 10),
    "5 answers edited": (lambda rows, draw: edited(rows, draw, "response"), 0),
    "shuffled": (lambda rows, draw: draw.sample(rows, BASE), 0),
}


def numbered(numbers):
    return [{"prompt": f"What is {i} + 1?", "response": f"{i + 1}"} for i in numbers]


def edited(rows, draw, field):
    chosen = set(draw.sample(range(BASE), 5))
    return [{**row, field: row[field] + " Say why."} if i in chosen else row for i, row in enumerate(rows)]


def drop_neighbours(rows, draw):
    from spin_core.data.rows import prompt_id

    by_id = sorted(rows, key=lambda row: prompt_id([{"role": "user", "content": row["prompt"]}]))
    start = draw.randrange(BASE - 5)
    return by_id[:start] + by_id[start + 5 :]


@pytest.fixture(scope="module")
def shards_of(tokenized):
    """The digests of the shards that tokenize makes of reformat's rows, and the number of rows of each."""

    def make(rows):
        listed = json.loads((tokenized(rows)[1] / "shards.json").read_text())
        sizes = [shard["rows"] for shard in listed if shard["split"] == "train"]
        assert all(4 <= rows <= 32 for rows in sizes[:-1]) and sizes[-1] <= 32
        return {shard["sha256"]: shard["rows"] for shard in listed}

    return make


@pytest.fixture(scope="module")
def base_shards(shards_of):
    return shards_of(numbered(range(BASE)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", EDITS)
def test_run_edited_set_changes_at_most_two_shards_an_edit(shards_of, base_shards, kind, seed):
    """Catches: rows of all shards in one key, an answer in a shard, a split or a shard that depends on other rows.

    An edited prompt is two edits: a row that went and one that came. Over 25 draws 12 added rows changed 13 of 81
    shards, 5 deletions 4 to 7, 5 neighbours' deletions 1 to 3, 5 edited prompts 8 to 13.
    """
    change, edits = EDITS[kind]
    after = shards_of(change(numbered(range(BASE)), random.Random(seed)))
    new = after.keys() - base_shards.keys()
    assert len(base_shards) > 60
    assert bool(new) == bool(edits) and len(new) <= 2 * edits + 2 * bool(edits)


def test_an_added_set_keeps_the_shards_of_the_first(tmp_path):
    """Catches: shards that are cut through all sets, so that adding one has every prompt answered again."""
    a, b = ([conversation([f"{name} {n}", "yes"]) for n in range(60)] for name in "ab")
    sets, shards = [{"path": "a"}, {"path": "b"}], []
    for number, inputs in enumerate(({"source": a}, {"source_a": a, "source_b": b})):
        tree, _, _ = reformatted(tmp_path, inputs, **({"sets": sets} if number else {}))
        tokens_of(tree, tmp_path / f"tokens{number}")
        listed = json.loads((tmp_path / f"tokens{number}" / "shards.json").read_text())
        shards.append({(shard["sha256"], shard["rows"]) for shard in listed})
    assert shards[0] < shards[1] and sum(rows for _, rows in shards[1]) == 120
