"""What quality.json says of a split's pairs: counted one by one, 32 bytes of memory a pair.

Not a judgement: nothing is left out for it.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import Any

from spin_core.data.rows import Pair


class PairQuality:
    """Counts of a split's pairs. `rows` have an answer; `dropped` of them are no pairs, which the caller counts."""

    def __init__(self) -> None:
        self.rows = self.cut = self.dropped = self.empty = self.identical = 0
        self._answers = bytearray()
        self._real, self._generated = array("q"), array("q")

    def count(self, pair: Pair) -> None:
        """Take one pair in."""
        self.rows += 1
        self.cut += pair.finish == "length"
        self.empty += not pair.generated.strip()
        self.identical += pair.generated.strip() == pair.real.strip()
        self._answers += hashlib.sha256(pair.generated.encode()).digest()[:16]
        self._real.append(len(pair.real))
        self._generated.append(len(pair.generated))

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
        }


def _median(lengths: array[int]) -> float:
    """An int where the number of lengths is odd, as `statistics.median` gives it."""
    import numpy

    middle = float(numpy.median(numpy.frombuffer(lengths, numpy.int64)))
    return int(middle) if len(lengths) % 2 else middle
