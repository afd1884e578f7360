"""Any SFT set to rows `{id, prompt messages, real answer}` in the reference's record, split and cut into shards.

Not a filter for quality: a row is rejected only where it cannot be a row, and every reject is counted with its reason.
Inputs: `source` (file or folder) and, where the set has held-out rows of its own, `test_source`.
Output: train and test parquet, `prompts/*.jsonl` (no answers in them, so that editing an answer regenerates nothing),
`shards.json`, `rejects.jsonl`.
Assumes that all rows fit in memory (200k rows of 2 KB are about 0.5 GB). The order of the input does not matter: what
split, draw and shard a row falls in depends on the seed and its id, so it mostly stays there when the set grows. With
`limit`, the draw keeps its size: of the rows that are added the limit's share is drawn (limit over all rows), each in
the place of another row, and both the row that came and the row that went change a shard. Only the published slices
(`frac_len`) depend on the input's order and number of rows: a set that grows is drawn anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field

from spin_core.chat import Messages
from spin_core.columns import Reject, check_columns, examples
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.readers import Record, read
from spin_core.rows import FILES, Row, fraction, prompt_id, write_rows
from spin_core.section import Section

VERSION = 1
PUBLISHED_SEED = 42


class Dataset(Section):
    """`dataset:` in a profile."""

    path: str = Field(
        "", description="A .parquet, .jsonl or .json file, a folder of them, a hub id (org/name), or builtin:tasks."
    )
    test_path: str = Field("", description="Held-out rows in a file of their own; empty splits them off `path`.")
    split: str = Field("train", description="Split of a hub dataset (or of a folder with files named so) to train on.")
    test_split: str = Field("", description="Split of a hub dataset held out; empty splits rows off `split`.")
    revision: str = Field("", description="Hub revision; the commit it resolves to enters the key.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Your column names, where they are not messages, prompt/response, question/answer or "
        "instruction/input/output: {prompt: …, answer: …, system: …} or {messages: …}.",
    )
    turns: Literal["first", "last", "all"] = Field(
        "first", description="Which assistant turns of a conversation become rows."
    )
    limit: int = Field(0, ge=0, description="At most this many training rows, drawn by seed; 0 is all.")
    test_limit: int = Field(0, ge=0, description="At most this many held-out rows, drawn by seed; 0 is all.")
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="Part of the rows held out when there is no test set of its own."
    )
    max_rejected: float = Field(
        0.5,
        ge=0,
        le=1,
        description="The run fails where a larger part of a source's rows is rejected; rows that are there twice do "
        "not count. 1 takes what is left.",
        json_schema_extra={"omit_default": True},
    )
    shard_rows: int = Field(
        512,
        ge=1,
        description="Aimed-at rows in a shard of prompts; real shards have a quarter to twice as many, the last one "
        "of a split possibly fewer.",
    )
    frac_len: int = Field(
        0,
        ge=0,
        description="Take only one slice of so many rows of each split, as the published scripts do: the rows in "
        "source order (rejects count), shuffled by numpy's default_rng(42), slice number `data_frac`. test_fraction, "
        "limit and test_limit then apply to the slice. 0 is all rows.",
        json_schema_extra={"omit_default": True},
    )
    data_frac: int = Field(
        0,
        ge=0,
        description="Which slice of `frac_len` rows, from 0.",
        json_schema_extra={"omit_default": True},
    )


class Config(Section):
    """What the rows depend on (key `dataset` holds no path: the source enters by content; see `anonymous`)."""

    dataset: Dataset
    seed: int


def anonymous(dataset: Dataset) -> Dataset:
    """`dataset` without path, test_path and revision, for the key: what was read there enters by its content."""
    return dataset.model_copy(update={"path": "", "test_path": "", "revision": ""})


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Write the rows tree; give counts. Raises BadInput where nothing is left to train on or to hold out."""
    dataset, seed = config.dataset, config.seed
    check_columns(dataset.columns)
    train = _Found("source")
    train.take(inputs, dataset, dataset.split, job)
    if "test_source" in inputs:
        test = _Found("test_source")
        test.take(inputs, dataset, dataset.test_split, job)
        rejects = train.rejects + train.also_in(test) + test.rejects
        test_rows = test.rows(set(test.answers))
        train_rows = train.rows(set(train.answers) - set(test.answers))
    else:
        # By prompt, not by row: two answers to one prompt must not fall on both sides.
        held_out = {id for id in train.answers if fraction(seed, "split", id) < dataset.test_fraction}
        rejects = train.rejects
        test_rows = train.rows(held_out)
        train_rows = train.rows(set(train.answers) - held_out)
    train_rows = _draw(train_rows, dataset.limit, seed)
    test_rows = _draw(test_rows, dataset.test_limit, seed)
    _check_counts(len(train_rows), len(test_rows), dataset, "test_source" in inputs)
    shards = _write(job.out, train_rows, test_rows, dataset.shard_rows)
    ordered = sorted(rejects, key=lambda r: (r["source"], r["line"], r["reason"], r["detail"]))
    (job.out / "rejects.jsonl").write_text("".join(json.dumps(reject) + "\n" for reject in ordered))
    return {
        "train_rows": len(train_rows),
        "test_rows": len(test_rows),
        "rejected": dict(sorted(Counter(r["reason"] for r in rejects).items())),
        "shards": shards,
    }


class _Found:
    """What one source holds: prompts and their different answers by prompt id, and the rejects.

    `name` stands for the source in rejects.jsonl, so that no path gets into the output.
    """

    def __init__(self, name: str):
        self.name = name
        self.prompts: dict[str, Messages] = {}
        self.answers: dict[str, dict[str, tuple[str, int]]] = {}
        self.rejects: list[dict] = []

    def take(self, inputs: Inputs, dataset: Dataset, split: str, job: Job) -> None:
        """Read the source. Raises BadInput for a mapped column that no record has, and where all are rejected."""
        path = inputs[self.name]
        assert isinstance(path, Path)
        columns: dict[str, None] = {}
        sliced = self._slice(path, split, dataset, job) if dataset.frac_len else None
        with job.progress(f"reading {self.name}", 0, "rows") as bar:
            for number, record in enumerate(read(path, split)):
                columns.update(dict.fromkeys(map(str, record.fields)))
                if sliced is None or number in sliced:
                    self._add(record, dataset)
                if number % 500 == 499:
                    bar.advance(500)
        absent = [column for column in dataset.columns.values() if column not in columns]
        if absent:
            raise BadInput(
                f"{path}: dataset.columns names the column {absent[0]!r}, which no record has; "
                f"name one of {_names(columns)}."
            )
        if not self.answers:
            said = _reasons(Counter(reject["reason"] for reject in self.rejects))
            raise BadInput(
                f"{path}: not one of its {len(self.rejects)} rows can be used ({said}); its columns are "
                f"{_names(columns)}: name yours in `dataset.columns`, as in {{prompt: question, answer: reply}}."
            )
        self._check_rejects(path, dataset.max_rejected)

    def _check_rejects(self, path: Path, most: float) -> None:
        """Raises BadInput where more than the part `most` of the rows cannot be used: what is left of a set that was
        read in a wrong way is no sample of it."""
        counts = Counter(reject["reason"] for reject in self.rejects)
        total = counts.total() + sum(map(len, self.answers.values()))
        del counts["duplicate"]
        if counts.total() > most * total:
            raise BadInput(
                f"{path}: {counts.total():,} of its {total:,} rows are rejected ({_reasons(counts)}), a larger part "
                f"than dataset.max_rejected ({most:g}) allows; mend them, or raise it to go on with the others."
            )

    def _slice(self, path: Path, split: str, dataset: Dataset, job: Job) -> set[int]:
        """The numbers of the slice's records. The source is read twice, as 200k conversations held whole are 3 GB."""
        with job.progress(f"counting {self.name}", 0, "rows"):
            total = sum(1 for _ in read(path, split))
        length, number = dataset.frac_len, dataset.data_frac
        if number * length >= total:
            held_out = "" if self.name == "source" else "; or give no test set, which holds out rows of the slice"
            raise BadInput(
                f"{path}: dataset.data_frac {number} begins at row {number * length:,}, and it has {total:,}; "
                f"with dataset.frac_len {length:,} its slices are 0 to {(total - 1) // length}{held_out}."
            )
        return set(published_slice(total, length, number))

    def _add(self, record: Record, dataset: Dataset) -> None:
        place = f"{self.name}/{record.file}" if record.file else self.name, record.line
        if record.reject:
            self._reject(place, record.reject, record.detail)
            return
        for found in examples(record.fields, dataset.columns, dataset.turns):
            if isinstance(found, Reject):
                self._reject(place, found.reason, found.detail)
                continue
            id = prompt_id(found.prompt)
            self.prompts[id] = found.prompt
            first = self.answers.setdefault(id, {}).setdefault(found.answer, place)
            if first is not place:
                self._reject(place, "duplicate", f"the same as {first[0]}, line {first[1]}")

    def _reject(self, place: tuple[str, int], reason: str, detail: str) -> None:
        self.rejects.append({"source": place[0], "line": place[1], "reason": reason, "detail": detail})

    def also_in(self, test: _Found) -> list[dict]:
        """A reject for every row whose prompt is in `test`: what is trained on must not be evaluated on."""
        return [
            {"source": source, "line": line, "reason": "also held out", "detail": f"prompt {id}"}
            for id in self.answers
            if id in test.answers
            for source, line in self.answers[id].values()
        ]

    def rows(self, ids: set[str]) -> list[Row]:
        """The rows of these prompts, sorted by id; of several answers to one (by text) the second is `<id>-1`, …"""
        made = [
            Row(f"{id}-{rank}" if rank else id, self.prompts[id], answer)
            for id in ids
            for rank, answer in enumerate(sorted(self.answers[id]))
        ]
        return sorted(made, key=lambda row: row.id)


def published_slice(total: int, frac_len: int, data_frac: int) -> list[int]:
    """Row numbers of slice `data_frac`, in the order of the published scripts; none behind the last slice.

    They shuffle with `datasets`, whose order of `total` rows is this permutation (seed 42 in them, whatever the run's).
    `frac_len` 0 is all rows, whatever `data_frac`.
    """
    import numpy

    order: list[int] = numpy.random.default_rng(PUBLISHED_SEED).permutation(total).tolist()
    return order[data_frac * frac_len : (data_frac + 1) * frac_len] if frac_len else order


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason}: {n}" for reason, n in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _names(columns: dict[str, None]) -> str:
    return ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in list(columns)[:20]) or "none"


def _draw(rows: list[Row], limit: int, seed: int) -> list[Row]:
    """The `limit` rows of smallest seeded hash (0: all), in order: a larger limit keeps what a smaller one drew."""
    if not limit or len(rows) <= limit:
        return rows
    drawn = {row.id for row in sorted(rows, key=lambda row: (fraction(seed, "limit", row.id), row.id))[:limit]}
    return [row for row in rows if row.id in drawn]


def _check_counts(train: int, test: int, dataset: Dataset, own_test: bool) -> None:
    if not train and own_test:
        raise BadInput("dataset: every training prompt is also held out; give a test_path with other prompts.")
    if not train:
        raise BadInput(
            f"dataset.test_fraction ({dataset.test_fraction:g}) holds out all {test} rows; lower it or give more rows."
        )
    if not test:
        raise BadInput(
            f"dataset.test_fraction ({dataset.test_fraction:g}) holds out none of the {train} rows, and evaluation "
            "needs at least one; raise it, give more rows or give test_path."
        )


def _write(out: Path, train: list[Row], test: list[Row], shard_rows: int) -> int:
    """Write parquet, shards and shards.json; give the number of shards."""
    (out / "prompts").mkdir()
    listed = []
    for split, rows in (("train", train), ("test", test)):
        write_rows(out / FILES[split], rows)
        prompts = {row.id: row.prompt for row in rows}
        for ids in cut_shards([row.id for row in rows], shard_rows):
            lines = [json.dumps({"id": id, "prompt": prompts[id]}, ensure_ascii=False) + "\n" for id in ids]
            data = "".join(lines).encode()
            sha256 = hashlib.sha256(data).hexdigest()
            file = f"prompts/{split}-{sha256[:12]}.jsonl"
            (out / file).write_bytes(data)
            listed.append({"file": file, "sha256": sha256, "split": split, "rows": len(ids)})
    (out / "shards.json").write_text(json.dumps(listed, indent=1) + "\n")
    return len(listed)


def cut_shards(ids: list[str], aim: int) -> list[list[str]]:
    """Cut sorted ids into content-defined shards of aim/4 to 2·aim ids (the last may be shorter).

    A shard ends at the first id from its minimum on whose hash says so (one in 3/4·aim does), and where none does up to
    the maximum, at the id of smallest hash: an id that was added or removed moves only the ends near it. It changes one
    shard, seldom a second; of 26,400 single edits (aims 8 to 64, beside every id) none changed more than 4. That is
    chance, not proof: ids are hashes, and whoever chose them by hand could make every end move.
    Content-defined chunking with minimum and maximum, as in LBFS (Muthitacharoen et al. 2001), section 3.1.
    """
    least, most = max(1, aim // 4), 2 * aim
    threshold = 1 / max(1, aim - least)
    marks = [fraction("shard", id) for id in ids]
    shards, start = [], 0
    while start < len(ids):
        window = range(start + least - 1, min(start + most, len(ids)))
        end = next((i for i in window if marks[i] < threshold), None)
        if end is None:
            end = min(window, key=marks.__getitem__) if len(window) == most - least + 1 else len(ids) - 1
        shards.append(ids[start : end + 1])
        start = end + 1
    return shards
