"""Folders as people have them: which files are which split of which configuration, and compressed ones."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from spin_core.data import choice
from spin_core.data.readers import data_files, read
from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve

CONFIGS = """---
configs:
- config_name: main
  data_files: [{split: train, path: m/*}, {split: test, path: m2.jsonl}]
- config_name: other
  data_files: o.csv
  sep: ";"
---
"""


def lay(folder: Path, *names: str, readme: str = "") -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"from": name}) + "\n")
    if readme:
        (folder / "README.md").write_text(readme)
    return folder


def names(folder: Path, split: str, config: str = "") -> list[str]:
    return [file.relative_to(folder).as_posix() for file in data_files(folder, split, config)]


@pytest.mark.parametrize(
    "there, split, wanted",
    [
        (["x_train.jsonl", "x_test.jsonl"], "train", ["x_train.jsonl"]),
        (["x_train.jsonl", "x_test.jsonl"], "test", ["x_test.jsonl"]),
        (["partial-train/a.jsonl", "partial-test/a.jsonl"], "train", ["partial-train/a.jsonl"]),
        (["part-0.jsonl", "part-1.jsonl.gz"], "train", ["part-0.jsonl", "part-1.jsonl.gz"]),
        (["train.csv", "val.csv"], "validation", ["val.csv"]),
        (["train.csv", "dev.csv"], "dev", ["dev.csv"]),
        (["train_sft.jsonl", "test_sft.jsonl"], "train_sft", ["train_sft.jsonl"]),
        (["data/train-00000-of-00001.jsonl", "data/g-00000-of-00001.jsonl"], "g", ["data/g-00000-of-00001.jsonl"]),
        (["TRAIN.JSONL", "test\n.jsonl"], "train", ["TRAIN.JSONL", "test\n.jsonl"]),
        (["a.jsonl", "LICENSE.txt", "notes.txt", "test_log.md"], "train", ["a.jsonl"]),
        (["eval/a.jsonl", "training/b.jsonl"], "test", ["eval/a.jsonl"]),
    ],
)  # fmt: skip
def test_split_of_a_folder_is_that_of_datasets(tmp_path, there, split, wanted):
    """Catches: x_test.jsonl trained on with x_train.jsonl, partial-test merged, half of the parts skipped (D5)."""
    assert names(lay(tmp_path, *there), split) == wanted


@pytest.mark.parametrize(
    "there, readme, split, config, message",
    [
        (["train.jsonl"], "", "test", "", "no file is named for the split 'test', but there are train"),
        (["train.jsonl", "test.jsonl"], "", "", "", "it has the splits train, test, and none is named"),
        (["m/a.jsonl", "o.csv"], CONFIGS, "train", "", "several configurations and none is its default; set"),
        (["m/a.jsonl", "o.csv"], CONFIGS, "train", "mian", "no configuration 'mian'; set `dataset.config` to one of"),
        (["m/a.jsonl", "o.csv"], CONFIGS, "test", "main", "README.md names the file 'm2.jsonl', which is not there"),
        (["a.jsonl"], CONFIGS.replace("m/*", "/etc/*"), "train", "main", "'/etc/*' as data, which lies elsewhere"),
        (["a.jsonl"], CONFIGS.replace("m/*", "../*"), "train", "main", "names '../*' as data, which lies elsewhere"),
        (["a.jsonl"], CONFIGS.replace("m/*", "hf://x/y/*"), "train", "main", "as data, which lies elsewhere"),
        (["o.jsonl"], CONFIGS.replace("o.csv", "o.jsonl"), "train", "other", "README.md sets `sep` for its json files"),
        (["a.jsonl"], "---\nconfigs: {\n---\n", "train", "", "correct its README.md"),
        (["a.jsonl"], "", "train", "main", "it has no configuration 'main', as README.md names none"),
        (["a.jsonl", "b.jsonl.bak"], "", "train", "", "cannot read a .bak file"),
        (["a.parquet.gz"], "", "train", "", "a parquet file is not read from within .gz; unpack it"),
        (["a.png", "b.png"], "", "train", "", "`datasets` reads its files as imagefolder"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_one_sentence(tmp_path, there, readme, split, config, message):
    """Catches: one configuration taken for another, files outside of the folder read, a traceback of `datasets`."""
    with pytest.raises(BadInput) as raised:
        names(lay(tmp_path, *there, readme=readme), split, config)
    assert message in str(raised.value) and str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_child_that_ended_is_started_again(tmp_path):
    """Catches: a run of hours that cannot look at a second folder, as the child of the first has ended by then."""
    lay(tmp_path, "a.jsonl")
    assert names(tmp_path, "train") == ["a.jsonl"]
    os.kill(choice._child._process.pid, signal.SIGALRM)
    assert names(lay(tmp_path, "b.jsonl"), "train") == ["a.jsonl", "b.jsonl"]


def test_readme_that_unfolds_is_refused(tmp_path):
    """Catches: YAML of a kilobyte that takes the memory of the machine, read in the process of the run."""
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    readme = f"---\na0: &a0 [x]\n{bomb}configs: [{{config_name: *a11, data_files: '*'}}]\n---\n"
    with pytest.raises(BadInput, match=r"README\.md"):
        names(lay(tmp_path, "a.jsonl", readme=readme), "train", "a")


@pytest.mark.parametrize(
    "ending", ["jsonl.gz", "jsonl.bz2", "jsonl.zst", "json.gz", "csv.gz", "tsv.bz2", "csv.zst", "txt.gz"]
)
def test_compressed_text_is_read(tmp_path, ending):
    """Catches: a compressed part that is skipped, or whose second member is lost."""
    kind, _, packed = ending.partition(".")
    text = {
        "csv": "text\n{}\n{}\n",
        "tsv": "text\n{}\n{}\n",
        "txt": "{}\n{}\n",
        "json": '[{{"text": "{}"}}, {{"text": "{}"}}]',
    }
    data = text.get(kind, '{{"text": "{}"}}\n{{"text": "{}"}}\n').format("é 007", "None").encode()
    file = tmp_path / f"a.{ending}"
    if packed == "zst":
        with pa.CompressedOutputStream(pa.OSFile(str(file), "wb"), "zstd") as out:
            out.write(data)
    else:
        pack = gzip.compress if packed == "gz" else bz2.compress
        file.write_bytes(pack(data[:9]) + pack(data[9:]))
    assert [record.fields for record in read(file)] == [{"text": "é 007"}, {"text": "None"}]


def test_digest_covers_what_is_read_and_readme_where_it_decides(tmp_path):
    """Catches: a key that moves with the prose of README.md, and one that stays when the separator changes."""
    lay(tmp_path, "m/a.jsonl", "o.csv", readme=CONFIGS)

    def digest(config: str) -> str:
        return resolve(str(tmp_path), "dataset", "", tmp_path, "train", config=config).digest

    before = digest("main"), digest("other")
    (tmp_path / "README.md").write_text(CONFIGS + "# Words\n")
    (tmp_path / "m2.jsonl").write_text("{}\n")
    assert digest("main") == before[0]
    (tmp_path / "README.md").write_text(CONFIGS.replace('";"', '","'))
    assert digest("main") == before[0] and digest("other") != before[1]


def test_csv_options_of_readme_are_used(tmp_path):
    """Catches: a file with semicolons read as one column."""
    lay(tmp_path, "m/a.jsonl", "o.csv", readme=CONFIGS)
    (tmp_path / "o.csv").write_text("q;a\n1;x\n")
    assert [record.fields for record in read(tmp_path, "train", "other")] == [{"q": "1", "a": "x"}]
