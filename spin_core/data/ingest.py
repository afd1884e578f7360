"""The different rows of one source, on disk and sorted by id, and what could not be a row.

Not a reader of files (`spin_core/data/readers.py`) and no choice of rows (`stages/reformat.py`). In memory are: 48 MiB
of rows that are being sorted, the answers to one prompt, and a byte (`frac_len`) or eight (a test set of its own) a
row.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from spin_core.data.column_mapping import Reject, examples, reasons
from spin_core.data.external_sort import Sorter, SpilledRecords, parse
from spin_core.data.readers import read
from spin_core.data.rows import RawRecord, Row, prompt_id
from spin_core.errors import BadInput
from spin_core.job import Bar, Inputs, Job

if TYPE_CHECKING:
    from spin_core.config.dataset import Dataset

PUBLISHED_SEED = 42


class SourceRows:
    """What one source holds: its different rows on disk, sorted by id, as [id, prompt, answer, file, line].

    `name` stands for the source in rejects.jsonl, so that no path gets into the output.
    """

    def __init__(self, name: str, rejects: Rejects, scratch: Path):
        self.name, self.rows = name, SpilledRecords(scratch)
        self._rejects, self._counts = rejects, Counter[str]()
        self._sorter, self._seen = Sorter(scratch), 0

    def take(self, inputs: Inputs, dataset: Dataset, split: str, job: Job) -> None:
        """Read the source. Raises BadInput for a mapped column that no record has, and where all are rejected."""
        path = inputs[self.name]
        assert isinstance(path, Path)
        columns: dict[str, None] = {}
        sliced = self._slice(path, split, dataset, job) if dataset.frac_len else None
        with job.progress(f"reading {self.name}", 0, "rows") as bar:
            for number, record in enumerate(read(path, split)):
                columns.update(dict.fromkeys(map(str, record.fields)))
                if sliced is None or sliced[number]:
                    self._add(record, dataset)
                if number % 500 == 499:
                    bar.advance(500)
        absent = [column for column in dataset.columns.values() if column not in columns]
        if absent:
            raise BadInput(
                f"{path}: dataset.columns names the column {absent[0]!r}, which no record has; "
                f"name one of {_names(columns)}."
            )
        if not self._seen:
            raise BadInput(
                f"{path}: not one of its {self._counts.total()} rows can be used ({reasons(self._counts)}); "
                f"its columns are {_names(columns)}: name yours in `dataset.columns`, as in "
                "{prompt: question, answer: reply}."
            )
        with job.progress(f"sorting {self.name}", self._seen, "rows") as bar:
            self._settle(bar)
        self._check_rejects(path, dataset.max_rejected)

    def _check_rejects(self, path: Path, most: float) -> None:
        """Raises BadInput where more than the part `most` of the rows cannot be used: what is left of a set that was
        read in a wrong way is no sample of it."""
        counts = Counter(self._counts)
        total = counts.total() + self.rows.count
        del counts["duplicate"]
        if counts.total() > most * total:
            raise BadInput(
                f"{path}: {counts.total():,} of its {total:,} rows are rejected ({reasons(counts)}), a larger part "
                f"than dataset.max_rejected ({most:g}) allows; fix them, or raise it to go on with the others."
            )

    def _slice(self, path: Path, split: str, dataset: Dataset, job: Job) -> bytearray:
        """For each record whether it is in the slice. The source is read twice: 200k conversations are 3 GB."""
        with job.progress(f"counting {self.name}", 0, "rows"):
            total = sum(1 for _ in read(path, split))
        length, number = dataset.frac_len, dataset.data_frac
        if number * length >= total:
            held_out = "" if self.name == "source" else "; or give no test set, which holds out rows of the slice"
            raise BadInput(
                f"{path}: dataset.data_frac {number} begins at row {number * length:,}, and it has {total:,}; "
                f"with dataset.frac_len {length:,} its slices are 0 to {(total - 1) // length}{held_out}."
            )
        mask = bytearray(total)  # a byte a row, where a set of numbers takes a hundred
        for row in published_slice(total, length, number):
            mask[row] = 1
        return mask

    def _add(self, record: RawRecord, dataset: Dataset) -> None:
        place = f"{self.name}/{record.file}" if record.file else self.name, record.line
        if record.reject:
            self._reject(*place, record.reject, record.detail)
            return
        for made in examples(record.fields, dataset.columns, dataset.turns):
            if isinstance(made, Reject):
                self._reject(*place, made.reason, made.detail)
                continue
            self._seen += 1
            size = len(made.answer) + sum(len(turn["content"]) + len(turn["role"]) for turn in made.prompt)
            self._sorter.add([prompt_id(made.prompt), self._seen, *place, made.prompt, made.answer], size)

    def _settle(self, bar: Bar) -> None:
        """Keep each different row once, sorted by id; of several answers to one prompt (by text) the second is
        `<id>-1`, … The answers to one prompt are in memory together."""
        for id, group in groupby(self._sorter, key=itemgetter(0)):
            answers: dict[str, tuple[str, int]] = {}
            many, last = 0, []
            for _, _, source, line, prompt, answer in group:
                many, last, place = many + 1, prompt, (source, line)
                first = answers.setdefault(answer, place)
                if first is not place:
                    self._reject(source, line, "duplicate", f"the same as {first[0]}, line {first[1]}")
            made = [(f"{id}-{rank}" if rank else id, answer) for rank, answer in enumerate(sorted(answers))]
            for name, answer in sorted(made):
                self.rows.add([name, last, answer, *answers[answer]])
            bar.advance(many)
        self._sorter = Sorter(self._sorter.folder)

    def _reject(self, source: str, line: int, reason: str, detail: str) -> None:
        self._counts[reason] += 1
        self._rejects.add(source, line, reason, detail)

    def holds(self) -> Callable[[str], bool]:
        """Whether a prompt is among these; 8 bytes a row."""
        ids = array("Q", (int(ChosenRows.prompt_of(line), 16) for line in self.rows.raw()))

        def has(id: str) -> bool:
            at = bisect_left(ids, int(id, 16))
            return at < len(ids) and ids[at] == int(id, 16)

        return has

    def reject_also_in(self, test: Callable[[str], bool]) -> None:
        """A reject for every row whose prompt is in `test`: what is trained on must not be evaluated on."""
        for line in self.rows.raw():
            if test(id := ChosenRows.prompt_of(line)):
                _, _, _, source, number = parse(line)
                self._reject(source, number, "also held out", f"prompt {id}")


class ChosenRows:
    """The rows of a source whose prompt's id is `chosen`, sorted by id, as often as they are read."""

    def __init__(self, source: SourceRows, chosen: Callable[[str], bool]):
        self._source, self._chosen = source, chosen

    def __iter__(self) -> Iterator[Row]:
        for line in self._source.rows.raw():
            if self._chosen(self.prompt_of(line)):
                id, prompt, answer, _, _ = parse(line)
                yield Row(id, prompt, answer)

    @staticmethod
    def prompt_of(line: bytes) -> str:
        """The id of a row's prompt, of the line it is in: `["0123456789abcdef-1", …`."""
        return line[2:18].decode()


class Rejects:
    """What is no row, and why: counted by reason, and written sorted by place."""

    def __init__(self, scratch: Path):
        self.counts: Counter[str] = Counter()
        self._sorted = Sorter(scratch)

    def add(self, source: str, line: int, reason: str, detail: str) -> None:
        self.counts[reason] += 1
        self._sorted.add([source, line, reason, detail], len(source) + len(detail))

    def write(self, path: Path) -> None:
        names = ("source", "line", "reason", "detail")
        with path.open("w") as file:
            file.writelines(json.dumps(dict(zip(names, one, strict=True))) + "\n" for one in self._sorted)


def published_slice(total: int, frac_len: int, data_frac: int) -> list[int]:
    """Row numbers of slice `data_frac`, in the order of the published scripts; none behind the last slice.

    They shuffle with `datasets`, whose order of `total` rows is this permutation (seed 42 in them, whatever the run's).
    `frac_len` 0 is all rows, whatever `data_frac`.
    """
    import numpy

    order = numpy.random.default_rng(PUBLISHED_SEED).permutation(total)
    wanted = order[data_frac * frac_len : (data_frac + 1) * frac_len] if frac_len else order
    numbers: list[int] = wanted.tolist()
    return numbers


def _names(columns: dict[str, None]) -> str:
    return ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in list(columns)[:20]) or "none"
