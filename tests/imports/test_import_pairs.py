"""import_pairs: published sets as pairs trees, row for row what gather would have written, or a sentence that says why
not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.data.rows import FILES, Pair, Row, prompt_id, read_pairs, read_rows, write_pairs, write_rows
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.sources.resolve import resolve
from spin_core.stages.import_pairs import Config, run

PROMPTS = [f"question {i}" for i in range(24)]
HELD_OUT = PROMPTS[:6]
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def question(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def chat(prompt: str, answer: str) -> list[dict]:
    return [*question(prompt), {"role": "assistant", "content": answer}]


def published(path: Path, records: list[dict], type=MESSAGES, **more: list) -> None:
    """A file as the SPIN_iter sets have it: `real` and `generated` alone, and columns `more`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: pa.array([one[name] for one in records], type) for name in ("real", "generated")}
    pq.write_table(pa.table(columns | more), path)


def record(prompt: str, real: str = "", generated: str = "") -> dict:
    return {
        "real": chat(prompt, real or f"real {prompt}"),
        "generated": chat(prompt, generated or f"made {prompt}"),
    }


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A rows tree; the first six prompts are held out."""
    tree = tmp_path / "rows"
    tree.mkdir()
    for split, part in (("train", PROMPTS[6:]), ("test", HELD_OUT)):
        made = [Row(prompt_id(question(text)), question(text), f"real {text}") for text in part]
        write_rows(tree / FILES[split], sorted(made, key=lambda row: row.id))
    return tree


@pytest.fixture
def take(tmp_path: Path):
    """Import a folder: the tree, its pairs by split, and the summary."""

    def call(source: Path, rows: Path | None = None) -> tuple[Path, dict[str, list[Pair]], dict]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        inputs = {"source": source} | ({"rows": rows} if rows else {})
        summary = run(inputs, Config(), Job(out=out, scratch=out))
        return out, {split: read_pairs(out / name) for split, name in FILES.items()}, summary

    return call


def folder(tmp_path: Path, train: list[dict], test: list[dict], names=("data/train-00000-of-00001-0a1b", "data/test")):
    for name, records in zip(names, (train, test), strict=True):
        published(tmp_path / "set" / f"{name}.parquet", records)
    return tmp_path / "set"


@pytest.mark.parametrize("names", [("data/train-00000-of-00001-0a1b", "data/test"), ("train_prefs", "test_prefs")])
def test_published_set_is_what_gather_writes(tmp_path, rows, take, names):
    """Catches: ids by position or in the file's order, with which the same pairs would train in another order."""
    train, test = [record(text) for text in PROMPTS[:5:-1]], [record(text) for text in HELD_OUT]
    out, _, summary = take(folder(tmp_path, train, test, names), rows)
    ours = tmp_path / "ours.parquet"
    made = [Pair(prompt_id(question(p)), question(p), f"real {p}", f"made {p}", "stop") for p in PROMPTS[6:]]
    write_pairs(ours, sorted(made, key=lambda pair: pair.id))
    assert (out / FILES["train"]).read_bytes() == ours.read_bytes()
    assert summary == {"train_pairs": 18, "test_pairs": 6, "rejected": {}}
    counts = json.loads((out / "quality.json").read_text())["train"]
    assert counts["pairs"] == 18 and counts["truncated"] == 0 and "generated_tokens_mean" not in counts


def test_rows_that_are_no_pairs_are_counted_with_reasons(tmp_path, rows, take):
    """Catches: the doubled rows of the first published SPIN_iter0 trained on twice, and a bad row taken or fatal."""
    bad = [
        {"real": chat("q", "a"), "generated": chat("another q", "b")},
        {"real": chat("q", " "), "generated": chat("q", "b")},
        {"real": question("q"), "generated": chat("q", "b")},
        {"real": None, "generated": chat("q", "b")},
        {"real": chat(" ", "a"), "generated": chat(" ", "b")},
        {"real": [*chat("q", "a"), *chat("q", "a")][1:], "generated": chat("q", "b")},
    ]
    second = record(PROMPTS[7], generated="a second answer")
    train = [record(text) for text in PROMPTS[6:]]
    empty = record("not of the rows")
    empty["generated"][-1]["content"] = ""  # an opponent may say nothing
    out, pairs, summary = take(folder(tmp_path, train + train + bad + [second, empty], [record(HELD_OUT[0])]), rows)
    assert summary["rejected"] == {
        "another prompt": 1,
        "bad role order": 1,
        "empty prompt": 1,
        "no answer": 1,
        "no conversation": 2,
        "the same pair again": 18,
    }
    row = prompt_id(question(PROMPTS[7]))
    assert [p.generated for p in pairs["train"] if p.id.startswith(row)] == [f"made {PROMPTS[7]}", "a second answer"]
    assert [p.id for p in pairs["train"] if p.id.startswith(row)] == [row, f"{row}#2"]
    assert len(pairs["train"]) == 20 and [p.generated for p in pairs["train"]].count("") == 1
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and {"file", "row", "reason", "detail"} == set(lines[0])
    assert {line["row"] for line in lines if line["reason"] == "no conversation"} == {39, 40}
    assert {line["row"] for line in lines if line["reason"] == "the same pair again"} == {*range(19, 37)}


def test_held_out_rows_stay_held_out(tmp_path, rows, take):
    """Catches: training on a prompt that the run is measured by, and a test pair that evaluate finds no row for."""
    train = [record(text) for text in PROMPTS] + [record(HELD_OUT[1], real="another real answer")]
    _, pairs, summary = take(folder(tmp_path, train, [record("elsewhere")]), rows)
    assert {pair.prompt[0]["content"] for pair in pairs["test"]} == set(HELD_OUT)
    assert not {pair.prompt[0]["content"] for pair in pairs["train"]} & set(HELD_OUT)
    assert summary["rejected"] == {"not held out": 1, "also held out": 1}


def test_without_rows_the_test_file_says_what_is_held_out(tmp_path, take):
    """Catches: `spinloop import` that puts a prompt into both splits."""
    _, pairs, summary = take(folder(tmp_path, [record(p) for p in PROMPTS], [record(HELD_OUT[0])]))
    assert len(pairs["train"]) == 23 and len(pairs["test"]) == 1
    assert summary["rejected"] == {"also held out": 1}


@pytest.mark.parametrize("with_rows", [True, False])
def test_held_out_conversations_stay_held_out(tmp_path, rows, take, with_rows):
    """Catches: a later turn of a conversation trained on whose first turn the run is measured by."""
    later = record("and now?")
    for side in later.values():
        side[:0] = chat(HELD_OUT[0], f"real {HELD_OUT[0]}")
    train = [record(text) for text in PROMPTS[6:]] + [later]
    _, pairs, summary = take(folder(tmp_path, train, [record(HELD_OUT[0])]), rows if with_rows else None)
    assert len(pairs["train"]) == 18 and summary["rejected"] == {"also held out": 1}


def test_pairs_of_a_mix_have_the_source_of_their_rows(tmp_path, rows, take):
    """Catches: imported pairs of which the report by set knows nothing, and a tree of a mix that comes back as another
    artifact."""
    for name in FILES.values():
        write_rows(
            rows / name, [replace(row, source="ab"[int(row.id, 16) % 2]) for row in read_rows(rows / name)], True
        )
    strange = folder(tmp_path, [record(p) for p in PROMPTS[6:]], [record(p) for p in HELD_OUT])
    out, pairs, _ = take(strange, rows)
    assert all(pair.source == "ab"[int(pair.id, 16) % 2] for part in pairs.values() for pair in part)
    assert json.loads((out / "quality.json").read_text())["train"]["sources"].keys() == {"a", "b"}
    for given in (rows, None):
        again, _, _ = take(out, given)
        assert all(
            (again / name).read_bytes() == (out / name).read_bytes() for name in [*FILES.values(), "quality.json"]
        )


def test_ids_are_those_of_the_rows(tmp_path, take):
    """Catches: a second real answer with the id of the first, which evaluate would then file under the wrong row."""
    tree, id = tmp_path / "tree", prompt_id(question("q"))
    tree.mkdir()
    write_rows(tree / FILES["train"], [Row(f"{id}-1", question("q"), "b")])  # `dataset.limit` drew the second only
    write_rows(tree / FILES["test"], [Row(prompt_id(question("t")), question("t"), "t")])
    train = [record("q", real=real) for real in ("d", "c", "b")]
    _, pairs, _ = take(folder(tmp_path, train, [record("t", real="t")]), tree)
    assert {pair.real: pair.id for pair in pairs["train"]} == {"b": f"{id}-1", "c": id, "d": f"{id}-2"}
    _, pairs, _ = take(tmp_path / "set")
    assert {pair.real: pair.id for pair in pairs["train"]} == {"b": id, "c": f"{id}-1", "d": f"{id}-2"}


def test_pairs_with_tools_are_those_of_their_rows(tmp_path, take):
    """Catches: a pushed set whose functions and calls are lost when it is imported, so that its prompts are others."""
    call = '[{"type": "function", "function": {"name": "f", "arguments": {}}}]'
    functions = '[{"type": "function", "function": {"name": "f"}}]'
    asked = [
        {"role": "user", "content": "q", "tools": functions},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "4", "name": "f"},
    ]
    tree = tmp_path / "rows"
    tree.mkdir()
    prompts = {"train": asked, "test": question("t")}
    for split, prompt in prompts.items():
        write_rows(tree / FILES[split], [Row(prompt_id(prompt), prompt, "a")], tools=True)
        path = tmp_path / "set" / FILES[split]
        path.parent.mkdir(exist_ok=True)
        write_pairs(path, [Pair(prompt_id(prompt), prompt, "a", "b", "stop")], tools=True)
    out, _, summary = take(tmp_path / "set", tree)
    for split, prompt in prompts.items():
        (pair,) = read_pairs(out / FILES[split])
        assert (pair.id, pair.prompt) == (prompt_id(prompt), prompt), summary


def test_own_tree_comes_back_as_the_same_content(tmp_path, rows, take):
    """Catches: a copied tree that becomes another artifact, so that all after it is computed again."""
    out, _, _ = take(folder(tmp_path, [record(p) for p in PROMPTS[6:]], [record(p) for p in HELD_OUT]), rows)
    quality = json.loads((out / "quality.json").read_text())
    quality["train"]["generated_tokens_mean"] = 7.5  # what only gather can know
    (out / "quality.json").write_text(json.dumps(quality))
    (out / "README.md").write_text("not part of it")
    before = resolve(str(out), "pairs", "", tmp_path).digest
    again, _, _ = take(out, rows)
    names = {path.name for path in again.iterdir()}
    assert names == {*FILES.values(), "quality.json"}
    assert all((again / name).read_bytes() == (out / name).read_bytes() for name in names)
    assert resolve(str(again), "pairs", "", tmp_path).digest == before
    # A row less, and the figures are no longer about these pairs.
    write_pairs(out / FILES["train"], read_pairs(out / FILES["train"])[1:])
    changed, _, _ = take(out, rows)
    assert "generated_tokens_mean" not in json.loads((changed / "quality.json").read_text())["train"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda place: shutil.rmtree(place / "data"), "there is no .parquet file in it"),
        (lambda place: (place / "data/test.parquet").write_bytes(b"PAR1 no"), "not a readable parquet file"),
        (lambda place: (place / "data/test.parquet").unlink(), "it leaves no test pairs"),
        (
            lambda place: shutil.move(place / "data/train-00000-of-00001-0a1b.parquet", place / "data/more.parquet"),
            "no parquet file is named for a split train",
        ),
        (lambda place: shutil.copytree(place / "data", place / "iter1"), "it has several pair sets; name one"),
        (
            lambda place: pq.write_table(pa.table({"prompt": ["q"]}), place / "data/test.parquet"),
            "needs the columns real and generated, and has prompt",
        ),
        (
            lambda place: published(place / "data/test.parquet", [record(p) for p in PROMPTS[6:]]),
            "it leaves no test pairs (not held out: 18)",
        ),
    ],
)
def test_what_is_no_pair_set_is_one_sentence(tmp_path, rows, take, spoil, sentence):
    """Catches: a traceback, a split that is empty in silence, two iterations read as one."""
    place = folder(tmp_path, [record(p) for p in PROMPTS[6:]], [record(p) for p in HELD_OUT])
    spoil(place)
    with pytest.raises(BadInput) as refused:
        take(place, rows)
    assert sentence in str(refused.value)
    assert str(place) in str(refused.value) and "\n" not in str(refused.value)


def test_another_dataset_is_refused(tmp_path, rows, take):
    """Catches: pairs of another dataset whose few common prompts would pass for a sample."""
    place = folder(tmp_path, [record(HELD_OUT[0])], [record(f"elsewhere {i}") for i in range(9)])
    with pytest.raises(BadInput, match=r"9 of its 10 rows are no pairs here \(not held out: 9\)"):
        take(place, rows)
