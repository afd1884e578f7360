"""Any SFT sets to rows `{id, prompt messages, real answer}` in the reference's record, split into train and test.

Not a filter for quality: a row is rejected only where it cannot be a row, and every reject is counted with its reason.
The summary says what text of the source no row has (`unused`).

inputs   `source`: a file or folder · where the set has held-out rows of its own `test_source` · of several sets
         `source_NAME` and `test_source_NAME` each
outputs  train and test parquet, sorted by id; of several sets the rows have a column `source`, and where one has tools
         all messages have their fields · `rejects.jsonl`

Held-out means held out: rows whose conversations begin alike (through the first user turn, system text included) are
on one side, whatever `turns` makes of them and whatever set they are of; a training row that begins as one of a test
set's own is rejected. Of single turns the beginning is the prompt. Two conversations that begin with the same word are
kept together, too: where every turn is a row, their first ones are one prompt.

Rows are sorted on disk (`spin_core/data/ingest.py`), so there may be more of them than fit into memory. The
order of the input does not matter: what split and draw a row falls in depends on the seed and its id, so it
mostly stays there when the set grows. With `limit`, the draw keeps its size: of the rows that are added the limit's
share is drawn (limit over all rows), each in the place of another row, and both the row that came and the row that went
change a shard. With weights (`mixing.sizes`) a set that is not the one which bounds the mix does the same, and one that
is makes every draw larger. Only the published slices (`frac_len`) depend on the input's order and number of rows: a set
that grows is drawn anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from spin_core.config.base import Section
from spin_core.config.dataset import Dataset
from spin_core.data.column_mapping import check_columns
from spin_core.data.ingest import Sorter, SourceRows, write_rejects
from spin_core.data.mixing import Draw, SetRows, sides
from spin_core.data.rows import FILES, Row, write_rows
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job

NAME = "reformat"
VERSION = 5
"""2: rows have no shards of prompts any more (`tokenize` has them).
3: an answer whose reasoning is in a field of its own is rejected.
4: the split goes by what a conversation begins with, and every column is accounted for.
5: tools are parts of the prompt."""
REJECTS = "rejects.jsonl"


class Config(Section):
    """What the rows depend on (key `dataset` holds no path: the source enters by content; see `anonymous`)."""

    dataset: Dataset
    seed: int


def anonymous(dataset: Dataset) -> Dataset:
    """`dataset` without paths and revisions, for the key: what was read there enters by its content; and without the
    size of shards, which tokenize cuts."""
    nowhere = {"path": "", "test_path": "", "revision": ""}
    sets = [one.model_copy(update={**nowhere, "name": one.called}) for one in dataset.sets]
    return dataset.model_copy(update={**nowhere, "shard_rows": 512, "sets": sets})


def inputs_of(name: str) -> tuple[str, str]:
    """What the inputs of the set `name` are called: its rows, and its own held-out ones."""
    return (f"source_{name}", f"test_source_{name}") if name else ("source", "test_source")


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write the rows tree; give counts. Raises BadInput where nothing is left to train on or to hold out, or too much
    is rejected; the rejects are then in `job.scratch`."""
    rejects = Sorter(job.scratch)
    try:
        return _written(inputs, config, job, rejects)
    except BadInput:
        write_rejects(job.scratch / REJECTS, rejects)
        raise


def _written(inputs: Inputs, config: Config, job: Job, rejects: Sorter) -> dict[str, Any]:
    dataset, names = config.dataset, list(config.dataset.parts)
    sets = [_taken(name, inputs, dataset, rejects, job) for name in names]
    several = len(sets) > 1
    tools = any(rows.has_tools for one in sets for rows in (one.train, one.test) if rows)
    train_rows, test_rows = sides(sets, dataset.test_fraction, config.seed)
    limits = [(one.limit, one.test_limit) if several else (0, 0) for one in dataset.parts.values()]
    train = Draw(names, [most for most, _ in limits], dataset.weights, dataset.limit, config.seed)
    test = Draw(names, [most for _, most in limits], [], dataset.test_limit, config.seed)
    counts = {
        "train": _write(job, "train", train.of(train_rows), several, tools),
        "test": _write(job, "test", test.of(test_rows), several, tools),
    }
    _check_counts(train, test, dataset, any(one.test is not None for one in sets))
    write_rejects(job.out / REJECTS, rejects)
    rejected = sum((rows.rejected for one in sets for rows in (one.train, one.test) if rows), Counter[str]())
    summary: dict[str, Any] = {f"{split}_rows": count for split, count in counts.items()}
    summary["rejected"] = dict(sorted(rejected.items()))
    left = (rows.unused.sentence(rows.name) for one in sets for rows in (one.train, one.test) if rows)
    if unused := [sentence for sentence in left if sentence]:
        summary["unused"] = unused
    return summary | ({"sources": _by_set(sets, train, test, job)} if several else {})


def console_note(summary: dict[str, Any]) -> str:
    """What the console shows below the finished step: text that no row has."""
    return "\n        ".join(summary.get("unused", []))


def _taken(name: str, inputs: Inputs, dataset: Dataset, rejects: Sorter, job: Job) -> SetRows:
    """Read one set."""
    part = dataset.parts[name]
    check_columns(part.columns)
    train, test = (SourceRows(given, rejects, job.scratch) for given in inputs_of(name))
    train.take(inputs, part, part.split, dataset.max_rejected, job)
    if test.name not in inputs:
        return SetRows(name, train, None)
    test.take(inputs, part, part.test_split, dataset.max_rejected, job)
    return SetRows(name, train, test)


def _by_set(sets: list[SetRows], train: Draw, test: Draw, job: Job) -> dict[str, dict[str, Any]]:
    """What each set gave; a note where a set with too few rows for its weight made the others give fewer."""
    counts: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(sets):
        rejected = sum((rows.rejected for rows in (one.train, one.test) if rows), Counter[str]())
        counts[one.name] = {
            "train_rows": train.given[number],
            "test_rows": test.given[number],
            "not_drawn": train.seen[number] - train.given[number],
            "rejected": dict(sorted(rejected.items())),
        }
    if short := train.short():
        left = sum(of["not_drawn"] for of in counts.values())
        job.note(
            f"dataset.sets: {short} has {counts[short]['train_rows']:,} training rows, too few for its weight, so the "
            f"sets give {sum(train.given):,} together and {left:,} rows are not drawn; lower its weight to have more."
        )
    return counts


def _check_counts(train: Draw, test: Draw, dataset: Dataset, own_test: bool) -> None:
    empty = next((name for name, seen in zip(train.names, train.seen, strict=True) if not seen), "")
    if dataset.weights and empty:
        raise BadInput(
            f"dataset.sets: no training row of {empty} is left (see what is rejected: its prompts are held out, or an "
            "earlier set has them), and no share can be drawn from it; take the set out, or its weight."
        )
    if not sum(train.given) and own_test:
        raise BadInput("dataset: every training prompt is also held out; give a test_path with other prompts.")
    if not sum(train.given):
        raise BadInput(
            f"dataset.test_fraction ({dataset.test_fraction:g}) holds out all {sum(test.given)} rows; lower it or give "
            "more rows."
        )
    if not sum(test.given):
        raise BadInput(
            f"dataset.test_fraction ({dataset.test_fraction:g}) holds out none of the {sum(train.given)} rows, and "
            "evaluation needs at least one; raise it, give more rows or give test_path."
        )


def _write(job: Job, split: str, rows: Iterable[Row], sources: bool, tools: bool) -> int:
    """Write a split's parquet; how many rows it has."""
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row
            bar.advance()

    with job.progress(f"writing {split}", 0, "rows") as bar:
        write_rows(job.out / FILES[split], counted(), sources, tools)
    return count
