"""Fuzzed input (R25): whatever the bytes, a reader gives rows, rejects or one sentence, in seconds.

Mutations of small honest inputs: bytes and structure. `Fault` repeats each by its number.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config import yaml_reader
from spin_core.config.profile import parse
from spin_core.data.column_mapping import Reject, Turns, examples
from spin_core.data.readers import read
from spin_core.data.rows import Row, prompt_id
from spin_core.errors import BadInput
from spin_core.store.digest import Damaged
from spin_core.store.record import Record, encode
from spin_core.store.record import read as read_record
from tests.faults.fault import Fault
from tests.faults.input.text_corpus import TEXT, lines, row
from tests.faults.input.through import limited

JSONL = Fault("R25", "fuzzed .jsonl bytes", pr=600, night=40_000, release=200_000)
JSON = Fault("R25", "fuzzed .json bytes", pr=600, night=30_000, release=200_000)
YAML = Fault("R25", "fuzzed profiles", pr=250, night=15_000, release=100_000)
COLUMNS = Fault("R25", "fuzzed records of any shape, to prompt and answer", pr=400, night=30_000, release=200_000)
RECORD = Fault("R25", "fuzzed records of the store", pr=200, night=10_000, release=50_000)
PARQUET = Fault("R26", "fuzzed parquet bytes", pr=12, night=300, release=2_000)

BITS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800",
    b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"9" * 4400, b"[" * 1200,
    b'{"a":' * 1200, b"'", b"&a ", b"*a", b"!!python/name:os.system ", b"<<: ", b"? ", b"- ", b"|\n ", b"%", b"@", b"`",
    b"---\n", b"0x", b"2026-01-01", b"1:2:3", b"!!binary ", b"\t", b"\x1b[31m", b"\xc2\x85",
]  # fmt: skip
SEEDS = [data for data, _ in TEXT.values() if len(data) < 2000]
PROFILE = (Path(__file__).resolve().parents[3] / "deployments" / "profiles" / "zephyr-7b.yaml").read_bytes()


def spoilt(data: bytes, rng: random.Random, most: int = 6) -> bytes:
    """`data` with a few bits flipped, pieces put in, taken out, doubled or moved."""
    made = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, end = sorted((rng.randint(0, len(made)), rng.randint(0, len(made))))
        kind = rng.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at:at] = rng.choice(BITS)
        elif kind == 2:
            del made[at : min(end, at + 40)]
        elif kind == 3:
            made[at:at] = made[at:end][:300]
        elif kind == 4:
            made[at : at + 1] = rng.choice(BITS)
        else:
            made[at:at] = rng.randbytes(rng.randint(1, 4))
    return bytes(made)


@pytest.mark.parametrize("fault", [JSONL, JSON], ids=["jsonl", "json"])
def test_fuzzed_json_is_rows_or_a_sentence(tmp_path, fault):
    """Catches an exception of a parser, a hang, and a sentence without the file."""
    file = tmp_path / ("a.jsonl" if fault is JSONL else "a.json")
    seeds = [*SEEDS, lines(), b"[" + b",\n".join(lines().splitlines()) + b"]"]

    def trial(rng: random.Random) -> None:
        file.write_bytes(spoilt(rng.choice(seeds), rng))
        with limited(20):
            try:
                for record in read(file):
                    results = [] if record.reject else examples(record.fields, {}, rng.choice(TURNS))
                    for one in results:
                        if isinstance(one, Row):
                            prompt_id(one.prompt)
                        else:
                            json.dumps(one.detail).encode()
            except BadInput as error:
                assert file.name in str(error) and str(error).isprintable() and len(str(error)) < 700, str(error)

    fault.run(trial)


def test_fuzzed_profiles_are_a_config_or_a_sentence():
    """Catches an exception of YAML or pydantic that is not ours, a hang, and a sentence that a terminal obeys."""

    def trial(rng: random.Random) -> None:
        with limited(20):
            try:
                parse(yaml_reader.read(spoilt(PROFILE, rng), "p.yaml"), "p.yaml")
            except BadInput as error:
                assert "p.yaml" in str(error) and str(error).isprintable() and len(str(error)) < 900, str(error)

    YAML.run(trial)


TURNS: tuple[Turns, ...] = ("first", "last", "all")
NAMES = ["messages", "conversations", "real", "prompt", "response", "answer", "question", "instruction", "input",
         "output", "system", "role", "content", "from", "value", "", "\ud800", "x"]  # fmt: skip
LEAVES = [None, True, 0, -1.5, float("nan"), float("inf"), 10**400, "", " ", "a", "user", "assistant", "system",
          "human",
          "\ud800", "\0", "\u2028\u202e", "x" * 5000, b"\xff", object]  # fmt: skip


def anything(rng: random.Random, depth: int = 4):
    kind = rng.randrange(5) if depth else 4
    if kind < 2:
        return {rng.choice(NAMES): anything(rng, depth - 1) for _ in range(rng.randrange(5))}
    if kind < 4:
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return rng.choice(LEAVES)


def test_fuzzed_records_are_examples_or_rejects():
    """Catches an exception for a shape that nobody thought of, and an example that is none."""

    def trial(rng: random.Random) -> None:
        fields = {rng.choice(NAMES): anything(rng) for _ in range(rng.randrange(6))}
        for one in examples(fields, {}, rng.choice(("first", "last", "all"))):
            if isinstance(one, Reject):
                assert one.reason and len(one.detail) <= 200
                json.dumps(one.detail).encode()
            else:
                assert one.prompt[-1]["role"] == "user" and one.answer.strip()
                prompt_id(one.prompt)

    COLUMNS.run(trial)


def test_fuzzed_store_records_are_damaged(tmp_path):
    """Catches a record that is taken although a byte of it changed, and any exception but Damaged."""
    from spin_core.store.digest import tree_digest
    from spin_core.store.keys import key_of

    files = [{"path": "a.txt", "size": 1, "sha256": "0" * 64}]
    payload = {"store": 1, "stage": "reformat", "version": 1, "config": {"seed": 1}, "inputs": {}}
    key = key_of(payload)
    original = encode(Record("reformat", key, payload, tree_digest(files), files, {"summary": {}}, tmp_path))
    file = tmp_path / "reformat" / f"{key}.json"
    file.parent.mkdir()
    file.write_bytes(original)
    assert read_record(file, tmp_path).key == key

    def trial(rng: random.Random) -> None:
        data = spoilt(original, rng)
        file.write_bytes(data)
        with limited(20):
            try:
                read_record(file, tmp_path)
                assert data == original, "an altered record is taken"
            except Damaged:
                assert data != original

    RECORD.run(trial)


def test_fuzzed_parquet_is_rows_or_a_sentence(tmp_path):
    """Catches a crash of the decoder that ends the stage, and a hang."""
    file = tmp_path / "a.parquet"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.Table.from_pylist([row(i) | {"messages": talk} for i in range(50)]), file)
    original = file.read_bytes()

    def trial(rng: random.Random) -> None:
        file.write_bytes(spoilt(original, rng, most=3))
        with limited(120):
            try:
                for record in read(file):
                    examples(record.fields, {}, "first")
            except BadInput as error:
                assert file.name in str(error) and str(error).isprintable() and len(str(error)) < 700, str(error)

    PARQUET.run(trial)
