"""From answers to pairs: where the answer to each row lies in the shards of answers, in 40 bytes a row, and what
quality.json says of a split's pairs, in 32 bytes a pair.

Not the answers: those are read when their row is at hand. Ids are kept as 16 bytes of their sha256. Not a judgement:
no pair is left out for its quality.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.data.rows import Pair
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

    def demand(self, rows: dict[str, numpy.ndarray], ids: Mapping[str, Iterable[str]]) -> dict[str, numpy.ndarray]:
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
    except (OSError, ValueError, AttributeError, TypeError, OverflowError) as error:
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
    ids, logps = answer.get("token_ids"), answer.pop("logps", None)
    if not isinstance(ids, list) or len(ids) != answer["tokens"]:
        raise ValueError("token_ids must be a list of as many ids as `tokens` says")
    if logps is not None:
        if len(logps) != len(ids) or not isinstance(answer.get("model"), str) or not math.isfinite(math.fsum(logps)):
            raise ValueError("logps must be a number for each of token_ids, and `model` say under which")
        answer["logps"] = math.fsum(logps)
    answer["token_ids"] = array("i", ids).tolist()
    answer["text"].encode()
    return answer


class PairQuality:
    """Counts of a split's pairs, where they name one also of each source. `rows` have an answer; `dropped` of them are
    no pairs."""

    def __init__(self) -> None:
        self._sources: dict[str, PairQuality] = {}
        self.rows = self.cut = self.dropped = self.empty = self.identical = 0
        self._answers = bytearray()
        self._real, self._generated = array("q"), array("q")

    def count(self, pair: Pair) -> None:
        """Take one pair in."""
        if pair.source:
            self._sources.setdefault(pair.source, PairQuality()).count(replace(pair, source=""))
        self.rows += 1
        self.cut += pair.finish == "length"
        self.empty += not pair.generated.strip()
        self.identical += pair.generated.strip() == pair.real.strip()
        self._answers += hashlib.sha256(pair.generated.encode()).digest()[:16]
        self._real.append(len(pair.real))
        self._generated.append(len(pair.generated))

    def drop(self, pair: Pair) -> None:
        """One that was counted is no pair."""
        self.dropped += 1
        if pair.source:
            self._sources[pair.source].dropped += 1

    def figures(self) -> dict[str, Any]:
        """Counts, each also as a fraction of `rows` (before any is dropped), and lengths in characters."""
        import numpy

        counts = {
            "empty": self.empty,
            "identical_to_real": self.identical,
            "truncated": self.cut,
            "duplicate_answers": self.rows - len(numpy.unique(numpy.frombuffer(bytes(self._answers), "S16"))),
            "dropped": self.dropped,
        }
        real, generated = sum(self._real) / self.rows, sum(self._generated) / self.rows
        return {
            "rows": self.rows,
            "pairs": self.rows - self.dropped,
            **counts,
            **{f"{name}_fraction": n / self.rows for name, n in counts.items()},
            "real_characters_mean": real,
            "real_characters_median": _median(self._real),
            "generated_characters_mean": generated,
            "generated_characters_median": _median(self._generated),
            "length_gap_mean": real - generated,
            **(
                {"sources": {name: self._sources[name].figures() for name in sorted(self._sources)}}
                if self._sources
                else {}
            ),
        }


def _median(lengths: array[int]) -> float:
    """An int where the number of lengths is odd, as `statistics.median` gives it."""
    import numpy

    middle = float(numpy.median(numpy.frombuffer(lengths, numpy.int64)))
    return int(middle) if len(lengths) % 2 else middle
