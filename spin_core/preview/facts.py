"""What a look at a dataset shows, as plain figures and texts: what `--json` prints, and what text and page show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spin_core.analysis.format import plural

if TYPE_CHECKING:
    import numpy as np

SHARES = {"min": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "max": 1.0}
BINS = 40


@dataclass
class File:
    """A file of a source: what it is used for (`training`, `held out`, of several sets with the set's name, or
    nothing), its rows, or why it is not read."""

    name: str
    use: str
    rows: int = 0
    why: str = ""


@dataclass
class Column:
    """A column, or a field of messages (`messages[].name`) that no row has: in how many records it says something, and
    what it is used as (empty: nothing reads it)."""

    name: str
    filled: int
    used_as: str = ""


@dataclass
class Example:
    """Where something was seen, and what."""

    place: str
    detail: str


@dataclass
class Rejected:
    """One reason: how often, at which step, and the first of them."""

    reason: str
    count: int
    step: str
    examples: list[Example] = field(default_factory=list)


@dataclass
class Limit:
    """A setting that cuts, and how many texts it would."""

    setting: str
    value: int
    cut: int


@dataclass
class Lengths:
    """How long texts of one kind are. `counts`: of the bins 0 to `width` − 1, `width` to 2 · `width` − 1, …; the last
    has all that are longer, too."""

    name: str
    unit: str
    count: int
    quantiles: dict[str, int]
    width: int
    counts: list[int]
    limits: list[Limit] = field(default_factory=list)


@dataclass
class Shown:
    """One of the first rows: where it is, and as the model will see it: what it is given, and what it learns to say; or
    why it is no row. What is not visible is spelt out."""

    place: str
    prompt: str = ""
    answer: str = ""
    reject: str = ""


@dataclass
class Look:
    """All of it. `failures`: the sentences in which a run would end; empty where it would begin."""

    name: str
    unit: str = "characters"
    """What lengths are counted in: `tokens` where the tokenizer is known."""
    files: list[File] = field(default_factory=list)
    layouts: dict[str, int] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Sentences on text that no row has, and how to use it."""
    read: int = 0
    train: int = 0
    test: int = 0
    tokens: int = 0
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of several sets what each gives, as reformat's record has it."""
    further_answers: int = 0
    """Rows whose prompt another row has, too."""
    rewritten: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    first: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def few_held_out(self, least: int) -> str:
        """A sentence where the held-out rows are fewer than `least` (gate.min_rows); else empty."""
        if self.failures or self.test >= least:
            return ""
        return (
            f"{plural(self.test, 'held-out row')}: too few for the gate to say which model is better; hold out "
            f"{least:,} (gate.min_rows) or more, by dataset.test_fraction, test_path or test_limit."
        )


def lengths(name: str, unit: str, values: np.ndarray, limits: list[Limit]) -> Lengths:
    """Quantiles and bins of lengths, int64 [N]."""
    import numpy as np

    if not len(values):
        return Lengths(name, unit, 0, {}, 1, [], limits)
    quantiles = np.quantile(values, list(SHARES.values()), method="nearest")
    top = int(quantiles[-2])  # the 99 % quantile: a single text of a million would leave one bin
    width = top // BINS + 1
    counts = np.bincount(values.clip(max=top) // width)
    named = {share: int(value) for share, value in zip(SHARES, quantiles, strict=True)}
    return Lengths(name, unit, len(values), named, width, counts.tolist(), limits)
