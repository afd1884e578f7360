"""The rows of 24 layouts of hub repositories and folders, beside what `datasets.load_dataset` makes of them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub.hub_home import environment
from tests.hub.hub_server import start


def rows(*names: str) -> list[dict[str, str]]:
    return [{"prompt": f"{name} {n}", "response": "é, ok"} for name in names for n in range(2)]


def jsonl(*names: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(*names)).encode()


def csv(name: str, sep: str = ",") -> bytes:
    return "".join(
        f'{row["prompt"]}{sep}"{row["response"]}"\n'
        for row in [{"prompt": "prompt", "response": "response"}, *rows(name)]
    ).encode()


def parquet(name: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(name)), sink)
    return sink.getvalue()


def arrow(name: str) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows(name))
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue()


def zst(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)  # one frame


def readme(configs: str) -> bytes:
    return f"---\nlicense: mit\nconfigs:\n{configs}---\n# Words\n".encode()


TWO = readme("- config_name: main\n  data_files: a/*\n- config_name: more\n  data_files: b/*\n  default: true\n")
SPLITS = readme("""- config_name: x
  data_files:
  - split: train
    path: [one.jsonl, two.jsonl]
  - split: held
    path: h*
""")
Layout = tuple[dict[str, bytes], str, str]
"""Files, split, configuration."""
SAME: dict[str, Layout] = {
    "one": ({"rows.jsonl": jsonl("a")}, "train", ""),
    "array": ({"rows.json": json.dumps(rows("a")).encode()}, "train", ""),
    "two-files": ({"b.jsonl": jsonl("b"), "a.jsonl": jsonl("a")}, "train", ""),
    "x-train": ({"x_train.jsonl": jsonl("a"), "x_test.jsonl": jsonl("b")}, "train", ""),
    "x-test": ({"x_train.jsonl": jsonl("a"), "x_test.jsonl": jsonl("b")}, "test", ""),
    "partial": ({"partial-train/a.jsonl": jsonl("a"), "partial-test/a.jsonl": jsonl("b")}, "train", ""),
    "folders": ({"train/b.jsonl": jsonl("b"), "train/a.jsonl": jsonl("a"), "dev/a.jsonl": jsonl("c")}, "train", ""),
    "dev": ({"train/a.jsonl": jsonl("a"), "dev/a.jsonl": jsonl("c")}, "validation", ""),
    "numbered": ({"train_0.jsonl": jsonl("a"), "train_10.jsonl": jsonl("c"), "train_2.jsonl": jsonl("b")}, "train", ""),
    "shards": ({f"data/train-0000{n}-of-00002.parquet": parquet(str(n)) for n in range(2)}, "train", ""),
    "shards-own": (
        {"data/gen-00000-of-00001.parquet": parquet("a"), "data/train-00000-of-00001.parquet": parquet("b")},
        "gen",
        "",
    ),
    "gz-beside": ({"part-0.jsonl": jsonl("a"), "part-1.jsonl.gz": gzip.compress(jsonl("b"))}, "train", ""),
    "bz2": ({"train.jsonl.bz2": bz2.compress(jsonl("a"))}, "train", ""),
    "csv": ({"train.csv": csv("a"), "test.csv": csv("b")}, "train", ""),
    "csv-gz": ({"train.csv.gz": gzip.compress(csv("a"))}, "train", ""),
    "tsv": ({"train.tsv": csv("a", "\t")}, "train", ""),
    "arrow": ({"data.arrow": arrow("a")}, "train", ""),
    "text": ({"train.txt": "é\nb\n\nc".encode()}, "train", ""),
    "config-default": ({"a/x.jsonl": jsonl("a"), "b/x.jsonl": jsonl("b"), "README.md": TWO}, "train", ""),
    "config-named": ({"a/x.jsonl": jsonl("a"), "b/x.jsonl": jsonl("b"), "README.md": TWO}, "train", "main"),
    "config-files": (
        {"two.jsonl": jsonl("2"), "one.jsonl": jsonl("1"), "held.jsonl": jsonl("h"), "README.md": SPLITS},
        "train",
        "",
    ),
    "config-split": (
        {"two.jsonl": jsonl("2"), "one.jsonl": jsonl("1"), "held.jsonl": jsonl("h"), "README.md": SPLITS},
        "held",
        "x",
    ),
    "config-sep": (
        {"o.csv": csv("a", ";"), "README.md": readme('- config_name: s\n  data_files: o.csv\n  sep: ";"\n')},
        "train",
        "",
    ),
    "config-dir": (
        {
            "d/train.jsonl": jsonl("a"),
            "e/train.jsonl": jsonl("b"),
            "README.md": readme("- config_name: d\n  data_dir: d\n"),
        },
        "train",
        "",
    ),
    "hidden": ({"train.jsonl": jsonl("a"), ".cache/train.jsonl": jsonl("b"), "README.md": b"# Words\n"}, "train", ""),
}
MIXED = [{"prompt": "007", "response": "None"}, {"prompt": "8", "response": "NA"}]
DIFFERENT: dict[str, tuple[Layout, Any]] = {
    # Numbers stay as they are written, and the words None, NA and null are answers.
    "csv-cells": (({"a.csv": b"prompt,response\n007,None\n8,NA\n"}, "train", ""), MIXED),
    # A row is itself: a key that it does not have is no column of nulls.
    "keys": (({"a.jsonl": b'{"a": "x"}\n{"b": "y"}\n'}, "train", ""), [{"a": "x"}, {"b": "y"}]),
    # The rows are what lies under `data`, not one row.
    "data-object": (({"a.json": json.dumps({"data": rows("a"), "v": 1}).encode()}, "train", ""), rows("a")),
    # Licences and notes are no rows, however many.
    "notes": (({"a.jsonl": jsonl("a"), "LICENSE.txt": b"MIT\n", "notes.txt": b"x\n"}, "train", ""), rows("a")),
    # A split that the name spells can be named as well as the `train` that `datasets` makes of it.
    "spelt": (({"train_sft.jsonl": jsonl("a"), "test_sft.jsonl": jsonl("b")}, "train_sft", ""), rows("a")),
    "upper-case": (({"ROWS.JSONL": jsonl("a")}, "train", ""), rows("a")),
    # Needs no package `zstandard`.
    "zst": (({"a.jsonl": jsonl("a"), "b.jsonl.zst": zst(jsonl("b"))}, "train", ""), rows("a", "b")),
    # What is taken for rows and cannot be read is an error.
    "copy": (({"a.jsonl": jsonl("a"), "a.jsonl.bak": jsonl("b")}, "train", ""), "cannot read a .bak file"),
    "outside": (
        ({"a.jsonl": jsonl("a"), "README.md": readme("- config_name: x\n  data_files: ../*/a.jsonl\n")}, "train", ""),
        "names '../*/a.jsonl' as data, which lies elsewhere",
    ),
    "two-keys": (({"a.jsonl": b'{"a": "x", "a": "y"}\n'}, "train", ""), [{}]),
}
LAYOUTS = (
    SAME
    | {name: layout for name, (layout, _) in DIFFERENT.items()}
    | {"undeclared": ({"main/train.jsonl": jsonl("a"), "other/train.jsonl": jsonl("b")}, "train", "")}
)
LOADED = """
import json, sys
import datasets
datasets.disable_progress_bars()
got = {}
for name, (place, split, config) in json.load(open(sys.argv[1])).items():
    try:
        got[name] = list(datasets.load_dataset(place, config or None, split=split))
    except Exception as error:
        got[name] = type(error).__name__ + str(error)[:300]
print(json.dumps(got))
"""
READ = """
import json, sys
from pathlib import Path
from spin_core.data.readers import read
from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve
got = {}
for name, (place, split, config) in json.load(open(sys.argv[1])).items():
    try:
        ref = resolve(place, "dataset", "", Path("/"), split, config=config)
        got[name] = [one.fields for one in read(Path(ref.path), split, config)]
    except BadInput as error:
        got[name] = str(error)
print(json.dumps(got))
"""


Answers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What `datasets` and ours give of every layout, of the hub and of a folder; a text is an error."""
    place = tmp_path_factory.mktemp("layouts")
    hub, server = start()
    asked = {}
    for name, (files, split, config) in LAYOUTS.items():
        hub.add(f"datasets/acme/{name}", files)
        for file, data in files.items():
            (place / name / file).parent.mkdir(parents=True, exist_ok=True)
            (place / name / file).write_bytes(data)
        asked |= {f"{name} hub": (f"acme/{name}", split, config), f"{name} folder": (str(place / name), split, config)}
    (place / "asked.json").write_text(json.dumps(asked))
    made = {}
    for who, code in (("datasets", LOADED), ("ours", READ)):
        more = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", code, str(place / "asked.json")],
            capture_output=True, text=True, env=environment(place / who, hub.url, **more), cwd=place, timeout=200,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        made[who] = json.loads(ran.stdout.splitlines()[-1])
    server.shutdown()
    server.server_close()
    return made


@pytest.mark.parametrize("kind", ["hub", "folder"])
@pytest.mark.parametrize("name", SAME)
def test_rows_are_those_of_load_dataset(answers, name, kind):
    """Catches: another split, configuration, file or order than users of `datasets` expect."""
    theirs, ours = (answers[who][f"{name} {kind}"] for who in ("datasets", "ours"))
    assert isinstance(theirs, list) and theirs, theirs
    assert ours == theirs


@pytest.mark.parametrize("kind", ["hub", "folder"])
@pytest.mark.parametrize("name", DIFFERENT)
def test_rows_differ_from_load_dataset_on_purpose(answers, name, kind):
    """Catches: a difference that is lost, or that `datasets` no longer has (then it belongs to SAME)."""
    theirs, ours = (answers[who][f"{name} {kind}"] for who in ("datasets", "ours"))
    wanted = DIFFERENT[name][1]
    assert wanted in ours if isinstance(wanted, str) else ours == wanted
    assert ours != theirs


def test_undeclared_configurations_of_the_hub_are_not_mixed(answers):
    """Catches: the rows of two configurations as one set, because no README.md says that they are two."""
    theirs, ours = (answers[who]["undeclared hub"] for who in ("datasets", "ours"))
    assert theirs == rows("a", "b") == answers["ours"]["undeclared folder"]
    assert "several configurations" in ours and "acme/undeclared/main" in ours
