"""Rows and pairs on disk: the reference's record, and that its own files load."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.data.rows import Pair, Row, prompt_id, read_pairs, read_rows, write_pairs, write_rows
from spin_core.errors import BadInput

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PROMPT = st.lists(TEXT, min_size=1, max_size=3).map(lambda texts: [{"role": "user", "content": t} for t in texts])


@settings(max_examples=50)
@given(st.lists(st.tuples(PROMPT, TEXT, TEXT, st.sampled_from(["stop", "length"])), max_size=5))
def test_rows_and_pairs_written_read_back_equal(tmp_path_factory, made):
    """Catches: an encoding or a struct order that changes text on the way through parquet."""
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    rows = [Row(str(i), prompt, real) for i, (prompt, real, _, _) in enumerate(made)]
    pairs = [Pair(str(i), *rest) for i, rest in enumerate(made)]
    write_rows(path, rows)
    assert read_rows(path) == rows
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs


@pytest.mark.parametrize("script", ["convert_data", "reformat"])
def test_written_columns_have_the_reference_types(tmp_path, golden, script):
    """Catches: a record that the reference (and `datasets`) would load as something else."""
    write_pairs(tmp_path / "a.parquet", [Pair("0", [{"role": "user", "content": "q"}], "a", "b", "stop")])
    schema = pq.read_schema(tmp_path / "a.parquet")
    expected = golden("pipeline.json")[script]["train"]["types"]
    assert {name: str(schema.field(name).type) for name in expected} == expected
    assert {name: str(schema.field(name).type) for name in ("id", "finish")} == {"id": "string", "finish": "string"}


@pytest.mark.parametrize("order", [["role", "content"], ["content", "role"]])
def test_read_pairs_published_set_loads_with_ids_and_finish(tmp_path, golden, order):
    """Catches: needing our own columns, or the struct order of one version of `datasets`."""
    records = golden("pipeline.json")["convert_data"]["train"]["rows"]
    message = pa.list_(pa.struct([(name, pa.string()) for name in order]))
    table = pa.Table.from_pylist(records, schema=pa.schema([("generated", message), ("real", message)]))
    pq.write_table(table, tmp_path / "a.parquet")
    pairs = read_pairs(tmp_path / "a.parquet")
    assert [[*p.prompt, {"role": "assistant", "content": p.real}] for p in pairs] == [r["real"] for r in records]
    assert [p.generated for p in pairs] == [r["generated"][-1]["content"] for r in records]
    assert {p.finish for p in pairs} == {"stop"} and len({p.id for p in pairs}) == len(records)


def test_read_pairs_published_set_with_doubled_rows_gives_unique_ids(tmp_path):
    """Catches: two rows under one id, so that score's log-probs are joined to the wrong one."""
    real = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pq.write_table(pa.Table.from_pylist([{"real": real, "generated": real}] * 3), tmp_path / "a.parquet")
    id = prompt_id(real[:1])
    assert [p.id for p in read_pairs(tmp_path / "a.parquet")] == [id, f"{id}-1", f"{id}-2"]


def test_prompt_id_is_the_documented_hash():
    """Catches: an id that changes with key order or version, which would regenerate every answer of every user."""
    assert prompt_id([{"role": "user", "content": "é"}]) == "5b982d5fb9bbb395"
    assert prompt_id([{"content": "é", "role": "user"}]) == "5b982d5fb9bbb395"
    assert prompt_id([{"role": "user", "content": "What is 2+2?"}]) == "0bd13bfaa6e7191f"


@pytest.mark.parametrize(
    "table, message",
    [
        (pa.table({"a": [1]}), "needs the columns real and generated, and has a"),
        (pa.table({"real": [None], "generated": [None]}), "row 1: real must be a list"),
        (pa.table({"real": ["x"], "generated": ["x"]}), "row 1: real must be a list"),
        (pa.table({"real": [[{"role": "user", "content": "q"}]], "generated": [[]]}), "row 1: real must be a list"),
    ],
)
def test_read_pairs_wrong_record_names_file_and_row(tmp_path, table, message):
    """Catches: a KeyError deep in training for a parquet file of another kind."""
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=message) as raised:
        read_pairs(tmp_path / "a.parquet")
    assert str(tmp_path) in str(raised.value)


def test_read_pairs_doubled_id_is_bad_input(tmp_path):
    """Catches: doubled rows, which the published SPIN_iter0 had, training twice without a word."""
    write_pairs(tmp_path / "a.parquet", [Pair("x", [{"role": "user", "content": "q"}], "a", "b", "stop")] * 2)
    with pytest.raises(BadInput, match="row 2: the id x is there twice"):
        read_pairs(tmp_path / "a.parquet")
