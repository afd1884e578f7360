"""Any SFT set to rows `{id, prompt messages, real answer}` in the reference's record, split into train and test.

Not a filter for quality: a row is rejected only where it cannot be a row, and every reject is counted with its reason.
Inputs: `source` (file or folder) and, where the set has held-out rows of its own, `test_source`.
Output: train and test parquet, sorted by id, and `rejects.jsonl`.
Held-out means held out: rows whose conversations begin alike (through the first user turn, system text included) are
on one side, whatever `turns` makes of them; with held-out rows of its own, a training row that begins as one of those
is rejected. Of single turns the beginning is the prompt. Two conversations that begin with the same word are kept
together, too: where every turn is a row, their first ones are one prompt.
Rows are sorted on disk (`spin_core/data/ingest.py`), so there may be more of them than fit into memory. The
order of the input does not matter: what split and draw a row falls in depends on the seed and its id, so it
mostly stays there when the set grows. With `limit`, the draw keeps its size: of the rows that are added the limit's
share is drawn (limit over all rows), each in the place of another row, and both the row that came and the row that went
change a shard. Only the published slices (`frac_len`) depend on the input's order and number of rows: a set that grows
is drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from spin_core.config.base import Section
from spin_core.config.dataset import Dataset
from spin_core.data.column_mapping import check_columns
from spin_core.data.ingest import Sorter, SourceRows, write_rejects
from spin_core.data.rows import FILES, Row, fraction, write_rows
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job

NAME = "reformat"
VERSION = 4
REJECTS = "rejects.jsonl"


class Config(Section):
    """What the rows depend on (key `dataset` holds no path: the source enters by content; see `anonymous`)."""

    dataset: Dataset
    seed: int


def anonymous(dataset: Dataset) -> Dataset:
    """`dataset` without path, test_path and revision, for the key: what was read there enters by its content; and
    without the size of shards, which tokenize cuts."""
    return dataset.model_copy(update={"path": "", "test_path": "", "revision": "", "shard_rows": 512})


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write the rows tree; give counts. Raises BadInput where nothing is left to train on or to hold out, or too much
    is rejected; the rejects are then in `job.scratch`."""
    rejects = Sorter(job.scratch)
    try:
        return _written(inputs, config, job, rejects)
    except BadInput as error:
        write_rejects(job.scratch / REJECTS, rejects)
        if not (job.scratch / REJECTS).stat().st_size:
            raise
        raise BadInput(f"{error} `spinloop data --rejects FILE` writes each reject with its place.") from None


def _written(inputs: Inputs, config: Config, job: Job, rejects: Sorter) -> dict[str, Any]:
    dataset, seed = config.dataset, config.seed
    check_columns(dataset.columns)
    train, test = (SourceRows(name, rejects, job.scratch) for name in ("source", "test_source"))
    train.take(inputs, dataset, dataset.split, job)
    wanted: dict[str, Callable[[str], bool]]
    if "test_source" in inputs:
        test.take(inputs, dataset, dataset.test_split, job)
        also = test.holds()
        train.reject_also_in(also)
        wanted = {"train": lambda begun: not also(begun), "test": lambda begun: True}
    else:

        def held_out(begun: str) -> bool:
            """By beginning, not by row: the turns of one conversation must not fall on both sides."""
            return fraction(seed, "split", begun) < dataset.test_fraction

        wanted = {"train": lambda begun: not held_out(begun), "test": held_out}
    train_rows = partial(train.chosen, wanted["train"])
    test_rows = partial((test if "test_source" in inputs else train).chosen, wanted["test"])
    splits = {"train": (train_rows, dataset.limit), "test": (test_rows, dataset.test_limit)}
    counts = {split: _write(job, split, drawn(rows, limit, seed)) for split, (rows, limit) in splits.items()}
    _check_counts(counts["train"], counts["test"], dataset, "test_source" in inputs)
    write_rejects(job.out / REJECTS, rejects)
    return {
        "train_rows": counts["train"],
        "test_rows": counts["test"],
        "rejected": dict(sorted((train.rejected + test.rejected).items())),
    }


def drawn(rows: Callable[[], Iterator[Row]], limit: int, seed: int) -> Iterator[Row]:
    """The `limit` rows of smallest seeded hash (0: all), in order: a larger limit keeps what a smaller one drew.

    `rows` are read twice where there is a limit, sorted by id: of equal hashes the smaller id is drawn.
    """
    import numpy

    marks = numpy.fromiter((fraction(seed, "limit", row.id) for row in rows()), float) if limit else numpy.empty(0)
    if len(marks) <= limit:
        yield from rows()
        return
    last = numpy.partition(marks, limit - 1)[limit - 1]
    equal = limit - int((marks < last).sum())
    for row, mark in zip(rows(), marks, strict=True):
        if mark < last or (mark == last and equal > 0):
            equal -= bool(mark == last)
            yield row


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


def _write(job: Job, split: str, rows: Iterator[Row]) -> int:
    """Write a split's parquet; how many rows it has."""
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row
            bar.advance()

    with job.progress(f"writing {split}", 0, "rows") as bar:
        write_rows(job.out / FILES[split], counted())
    return count
