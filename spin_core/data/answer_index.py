"""Where the answer to each row lies in the shards of answers, in 40 bytes a row: what gather reads them by.

Not the answers: those are read when their row is at hand. Ids are kept as 16 bytes of their sha256.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.errors import StageFailed

if TYPE_CHECKING:
    import numpy


def _digest(id: str) -> bytes:
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[:16]


def digests(ids: Iterable[str]) -> numpy.ndarray:
    """16 bytes for each id."""
    import numpy

    return numpy.frombuffer(b"".join(map(_digest, ids)), "S16")


class Answers:
    """The answers of many files, each read by its row's id. Add all files, then `demand`, then read."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self._ids, self._file, self._at = bytearray(), array("i"), array("q")

    def add(self, file: Path) -> int:
        """How many answers the file has. Raises StageFailed naming file and line for what is none."""
        before, at = len(self._at), 0
        for answer, length in _read(file):
            self._ids += _digest(answer["id"])
            self._file.append(len(self.files))
            self._at.append(at)
            at += length
        self.files.append(file)
        return len(self._at) - before

    def demand(self, rows: dict[str, numpy.ndarray], ids: dict[str, Iterable[str]]) -> dict[str, numpy.ndarray]:
        """Which answer (its number) belongs to each row of each split, from the `digests` of their ids.

        Raises StageFailed, naming rows, unless there is one for each; `ids` are read for that alone.
        """
        import numpy

        own = numpy.frombuffer(bytes(self._ids), "S16")
        order = numpy.argsort(own, kind="stable")
        sorted_ = own[order]
        every = numpy.unique(numpy.concatenate(list(rows.values())))
        self._raise(
            "have no answer", numpy.setdiff1d(every, own), (id for split in ids.values() for id in split), every
        )
        twice = numpy.unique(sorted_[1:][sorted_[1:] == sorted_[:-1]])
        self._raise("have more than one answer", twice, self._read_ids(), every)
        self._raise("are answered that are not among the rows", numpy.setdiff1d(own, every), self._read_ids(), every)
        return {split: order[numpy.searchsorted(sorted_, one)] for split, one in rows.items()}

    def _raise(self, what: str, wrong: numpy.ndarray, ids: Iterable[str], rows: numpy.ndarray) -> None:
        if not len(wrong):
            return
        unmatched = set(wrong.tolist())
        named = {id for id in ids if digests([id]).tolist()[0] in unmatched}
        more = ", …" if len(named) > 5 else ""
        raise StageFailed(
            f"{len(named)} rows {what}: {', '.join(sorted(named)[:5])}{more} (there are {len(rows)} rows); "
            "give gather every shard of these rows once."
        )

    def _read_ids(self) -> Iterator[str]:
        return (answer["id"] for file in self.files for answer, _ in _read(file))

    def read(self, numbers: numpy.ndarray) -> Iterator[dict[str, Any]]:
        """The answers of these numbers, in their order. Shards are stretches of the sorted rows, so that a file is
        opened once or a few times."""
        for which, part in groupby(map(int, numbers), self._file.__getitem__):
            with self.files[which].open("rb") as file:
                for number in part:
                    file.seek(self._at[number])
                    yield _answer(file.readline())


def _read(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Every answer of a file, and the bytes of its line."""
    number = 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                number += 1
                yield _answer(line), len(line)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        place = f"{file}, line {number}" if number else file
        raise StageFailed(f"{place}: not a shard of answers ({error}); generate it again.") from error


def _answer(line: bytes) -> dict[str, Any]:
    """One line; of the tokens' log-probs their sum."""
    answer: dict[str, Any] = json.loads(line)
    if not (
        isinstance(answer.get("id"), str)
        and isinstance(answer.get("text"), str)
        and answer.get("finish") in ("stop", "length", "rejected")
        and isinstance(answer.get("tokens"), int)
    ):
        raise ValueError("id, text, finish (stop, length or rejected) and tokens are not all there")
    ids, logps = answer.pop("token_ids", []), answer.pop("logps", None)
    if logps is not None:
        if len(logps) != len(ids) or not isinstance(answer.get("model"), str) or not math.isfinite(math.fsum(logps)):
            raise ValueError("logps must be a number for each of token_ids, and `model` say under which")
        answer |= {"token_ids": array("q", ids).tolist(), "logps": math.fsum(logps)}
    answer["text"].encode()
    return answer
