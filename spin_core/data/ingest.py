"""The different rows of one source, on disk and sorted by id, and what could not be a row.

Not a reader of files (`spin_core/data/readers.py`) and no choice of rows (`spin_core/data/mixing.py`). In memory are:
48 MiB of rows that are being sorted, the answers to one prompt, and with `frac_len` a byte a row.
"""

from __future__ import annotations

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spin_core.data.column_mapping import Reject, examples, reasons
from spin_core.data.conversations import Unclear
from spin_core.data.readers import left_out, read
from spin_core.data.rows import RawRecord, Row, beginning_id, of_tools
from spin_core.data.unused import Unused
from spin_core.errors import BadInput, printable
from spin_core.job import Bar, Inputs, Job

if TYPE_CHECKING:
    from spin_core.config.dataset import Source

PUBLISHED_SEED = 42
HELD = 48 << 20
"""Bytes of records in memory. A run on disk is an open file while they are merged: 30 for a million rows of 1 kB."""
SEEN = 3  # details of rejects in a sentence
NAMED = 3  # files in a sentence
RECORD = 500  # bytes that a record takes in memory besides its text


class Sorter:
    """Takes records in any order and gives them sorted, as often as wanted: sorted runs on disk, merged when they are
    read. A record is a list of texts and numbers, compared as lists are; text by code point, which is the order of its
    UTF-8 too."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._size = folder, 0
        self._records: list[list[Any]] = []
        self._runs: list[IO[bytes]] = []

    def add(self, record: list[Any], size: int) -> None:
        """`size`: characters of its texts."""
        self._records.append(record)
        self._size += size + RECORD
        if self._size > HELD:
            self._runs.append(_spilled(sorted(self._records), self.folder, 1))
            self._records, self._size = [], 0

    def __iter__(self) -> Iterator[list[Any]]:
        self._records.sort()
        return heapq.merge(*(map(_parse, _lines(run)) for run in self._runs), self._records)


def _spilled(records: Iterable[list[Any]], folder: Path, held: int) -> IO[bytes]:
    """Records one after the other as JSON, in memory up to `held` bytes and then in an unnamed file of `folder`."""
    file: IO[bytes] = tempfile.SpooledTemporaryFile(held, dir=str(folder))  # noqa: SIM115 - kept open
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return file


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Every record, not parsed yet. One reader at a time."""
    file.seek(0)
    yield from file


def _parse(line: bytes) -> list[Any]:
    record: list[Any] = json.loads(line.decode("utf-8", "surrogatepass"))
    return record


class SourceRows:
    """What one source holds: its different rows on disk, sorted by id, as [beginning, id, prompt, answer, file, line];
    `beginning` is the id of what the row's conversation begins with (`rows.beginning_id`).

    `name` stands for the source in rejects.jsonl, so that no path gets into the output. `rejected`: how often each
    reason was met; the rejects themselves go to `rejects`.
    """

    def __init__(self, name: str, rejects: Sorter, scratch: Path):
        self.name, self.rejected, self.count = name, Counter[str](), 0
        self.unused, self.has_tools = Unused(), False
        self._rejects, self._sorter, self._seen = rejects, Sorter(scratch), 0
        self._first: dict[str, None] = {}  # different details of rejects, for sentences
        self._rows: IO[bytes]  # once they are taken

    def take(self, inputs: Inputs, dataset: Source, split: str, max_rejected: float, job: Job) -> None:
        """Read the source. Raises BadInput for a mapped column that no record has, for a record that says in an unknown
        way how it is meant, and where all rows or more than `max_rejected` of them are rejected."""
        path = inputs[self.name]
        assert isinstance(path, Path)
        if left := left_out(path, split, dataset.config):
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            job.note(
                f"{self.name}: not read are {', '.join(map(printable, left[:NAMED]))}{more}: of a folder one kind of "
                "file is read, as `datasets` does; write all as one kind, or name them as a set (`dataset.sets`)."
            )
        columns: dict[str, None] = {}
        sliced = self._slice(path, split, dataset, job) if dataset.frac_len else None
        with job.progress(f"reading {self.name}", 0, "rows") as bar:
            for number, record in enumerate(read(path, split, dataset.config)):
                columns.update(dict.fromkeys(map(str, record.fields)))
                if sliced is None or sliced[number]:
                    self._add(record, dataset, path)
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
                f"{path}: not one of its {self.rejected.total()} rows can be used ({reasons(self.rejected)}); "
                f"its columns are {_names(columns)}: name yours in `dataset.columns`, as in "
                f"{{prompt: question, answer: reply}}.{self._seen_first}"
            )
        with job.progress(f"sorting {self.name}", self._seen, "rows") as bar:
            self._rows = _spilled(self._settled(bar), self._sorter.folder, HELD)
        self._sorter = Sorter(self._sorter.folder)
        counts = Counter(self.rejected)
        total = counts.total() + self.count
        del counts["duplicate"]
        if counts.total() > max_rejected * total:  # what is left of a set read in a wrong way is no sample
            raise BadInput(
                f"{path}: {counts.total():,} of its {total:,} rows are rejected ({reasons(counts)}), a larger part "
                f"than dataset.max_rejected ({max_rejected:g}) allows; fix them, or raise it to go on with "
                f"the others.{self._seen_first}"
            )

    def _slice(self, path: Path, split: str, dataset: Source, job: Job) -> bytearray:
        """For each record whether it is in the slice. The source is read twice: 200k conversations are 3 GB."""
        with job.progress(f"counting {self.name}", 0, "rows"):
            total = sum(1 for _ in read(path, split, dataset.config))
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

    def _add(self, record: RawRecord, dataset: Source, path: Path) -> None:
        place = f"{self.name}/{record.file}" if record.file else self.name, record.line
        if record.reject:
            self._reject(*place, record.reject, record.detail)
            return
        rows = examples(record.fields, dataset.columns, dataset.turns)
        if any(not isinstance(made, Reject) for made in rows):
            self.unused.count(record.fields, dataset.columns)
        for made in rows:
            if isinstance(made, Unclear):
                raise BadInput(f"{path / record.file}, line {record.line}: {made.detail}.")
            if isinstance(made, Reject):
                self._reject(*place, made.reason, made.detail)
                continue
            self._seen += 1
            self.has_tools = self.has_tools or of_tools(made.prompt)
            size = len(made.answer) + sum(len(text) for turn in made.prompt for text in turn.values())
            self._sorter.add([made.id, self._seen, *place, made.prompt, made.answer], size)

    def _settled(self, bar: Bar) -> Iterator[list[Any]]:
        """Each different row once, sorted by id; of several answers to one prompt (by text) the second is
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
            begun = beginning_id(last)
            for name, answer in sorted(made):
                yield [begun, name, last, answer, *answers[answer]]
            self.count += len(made)
            bar.advance(many)

    def _reject(self, source: str, line: int, reason: str, detail: str) -> None:
        self.rejected[reason] += 1
        if len(self._first) < SEEN and reason != "duplicate":
            _, _, file = source.partition("/")
            self._first[f"{file and f'{file}, '}line {line}: {detail[:120]}"] = None
        self._rejects.add([source, line, reason, detail], len(source) + len(detail))

    @property
    def _seen_first(self) -> str:
        if not self._first:
            return ""
        return f" The first rejects: {'; '.join(self._first)}. `spinloop data --rejects FILE` writes all of them."

    def lines(self, wanted: Callable[[str], bool]) -> Iterator[bytes]:
        """The rows whose beginning is `wanted`, sorted by id, unparsed. One reader at a time."""
        return (line for line in _lines(self._rows) if wanted(beginning_of(line)))

    def reject(self, line: bytes, reason: str, detail: str) -> None:
        """Count and list one of `lines` as a reject."""
        *_, place, number = _parse(line)
        self._reject(place, number, reason, detail)


def beginning_of(line: bytes) -> str:
    """What the conversation begins with of the row in a line, `["0123456789abcdef", "89abcdef01234567-1", …`."""
    return line[2:18].decode()


def prompt_of(line: bytes) -> bytes:
    """The id of its prompt."""
    return line[22:38]


def row_of(line: bytes, source: str) -> Row:
    """The row, of the set `source`."""
    _, id, prompt, answer, _, _ = _parse(line)
    return Row(id, prompt, answer, source)


def place_of(line: bytes) -> str:
    """Where it was read, for a sentence."""
    *_, place, number = _parse(line)
    return f"{place}, line {number}"


def write_rejects(path: Path, rejects: Sorter) -> None:
    """What is no row, and why, sorted by place, a line each."""
    names = ("source", "line", "reason", "detail")
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dict(zip(names, one, strict=True))) + "\n" for one in rejects)


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
