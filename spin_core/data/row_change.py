"""What changed from one tree of rows to another: which rows are new, gone or edited, and how long their texts are.

Rows go by content, not by place or number. An answer that changed under its prompt is an edit; of a prompt that
changed nobody can know what it was before, so the old row is gone and another one new. A further answer to a prompt
is new. Is not: what the rows say; nor a comparison of rows that were made by other settings (who calls looks at
these). In memory are 40 bytes a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.data import token_file
from spin_core.data.rows import FILES, has_sources
from spin_core.data.table_file import read_batches

if TYPE_CHECKING:
    import numpy as np

SHARES = {"10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99}
TEXTS = ("prompt", "answer")
BINS = 30  # of a picture of lengths


@dataclass(frozen=True)
class Rows:
    """The rows of one split. `prompts`, `contents` (of prompt and answer): uint64 [N], a digest each; 3e-8 is the
    chance that two of a million are the same by accident. `lengths`: text's name → characters, int64 [N]. `sources`:
    str [N], empty where there is one set."""

    prompts: np.ndarray
    contents: np.ndarray
    lengths: dict[str, np.ndarray]
    sources: np.ndarray


@dataclass(frozen=True)
class Counts:
    """Rows `before` and `now`; of those now, `new` and `edited`; `gone`: of those before."""

    before: int
    now: int
    new: int
    gone: int
    edited: int

    @property
    def fresh(self) -> int:
        """Rows with a content that was not there before."""
        return self.new + self.edited

    @property
    def changed(self) -> bool:
        return bool(self.new or self.gone or self.edited)


@dataclass(frozen=True)
class Spread:
    """How long the training rows' texts were `before` and are `now`, by SHARES. `bins`: rows in each bin of `width`,
    from 0, the last one open, of both."""

    before: dict[str, int]
    now: dict[str, int]
    width: int
    bins: tuple[list[int], list[int]]


@dataclass(frozen=True)
class Part:
    """Of all rows, or of those of one set. `again`: rows before and now whose prompt another row has with another
    answer."""

    train: Counts
    test: Counts
    spreads: dict[str, Spread]
    again: tuple[int, int]


@dataclass(frozen=True)
class Change:
    """Set → what changed of it, "" of all together; alone where there is one set. `unit`: of lengths."""

    parts: dict[str, Part]
    unit: str

    @property
    def all(self) -> Part:
        return self.parts[""]

    @property
    def apart(self) -> bool:
        """Whether no row of now was there before."""
        both = (self.all.train, self.all.test)
        return all(one.now == one.new for one in both) and any(one.before for one in both)


def compare(before: Path, now: Path, tokens: tuple[Path, Path] | None) -> Change:
    """Of two trees of reformat. `tokens`: theirs of tokenize, where both have them of the same tokenizer and template;
    without, lengths are in characters. Raises BadInput where a file is not what it should be."""
    trees = (before, now)
    train, test = ([read(tree / FILES[split]) for tree in trees] for split in ("train", "test"))
    lengths = [_tokens(*both) for both in zip(tokens, trees, strict=True)] if tokens else [_of(one) for one in train]
    marks = _marked(*train), _marked(*test)
    names = sorted({str(name) for one in (*train, *test) for name in set(one.sources.tolist())} - {""})
    parts = {}
    for name in ["", *names]:
        spreads = {text: _spread(*(_chosen(one[text], one["source"], name) for one in lengths)) for text in TEXTS}
        again = [_again(_chosen(one.prompts, one.sources, name)) for one in train]
        counted = [_counts(both, states, name) for both, states in zip((train, test), marks, strict=True)]
        known = {text: spread for text, spread in spreads.items() if spread}
        parts[name] = Part(counted[0], counted[1], known, (again[0], again[1]))
    return Change(parts, "tokens" if tokens else "characters")


def unchanged(summary: Mapping[str, Any]) -> Change:
    """Of rows that are the same tree; `summary`: reformat's."""
    train, test = (int(summary.get(f"{split}_rows", 0)) for split in ("train", "test"))
    return Change({"": Part(Counts(train, train, 0, 0, 0), Counts(test, test, 0, 0, 0), {}, (0, 0))}, "")


def new_shards(before: Path, now: Path) -> tuple[int, int]:
    """Of two trees of tokens: shards of prompts that the first does not have, and all of the second."""
    old, new = (json.loads((tree / "shards.json").read_text(encoding="utf-8")) for tree in (before, now))
    known = {shard["sha256"] for shard in old}
    return sum(shard["sha256"] not in known for shard in new), len(new)


def read(path: Path) -> Rows:
    """The rows of one of reformat's files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    several = has_sources(path)
    prompts, contents = [], []
    sources: list[str] = []
    lengths: dict[str, list[Any]] = {text: [] for text in TEXTS}
    for batch in read_batches(path, ("id", "real", "source")):
        real, ids = batch.column("real"), batch.column("id").to_pylist()
        begins, turns = real.offsets.to_numpy().astype(np.int64), pc.struct_field(real.values, "content")
        sizes = pc.utf8_length(turns).to_numpy(zero_copy_only=False).astype(np.int64)
        up_to, last = np.concatenate([[0], np.cumsum(sizes)]), begins[1:] - 1  # the last turn is the answer
        lengths["prompt"].append(up_to[last] - up_to[begins[:-1]])
        lengths["answer"].append(sizes[last])
        answers = turns.take(pa.array(last)).to_pylist()
        prompts.append(np.array([int(id[:16], 16) for id in ids], np.uint64))
        contents.append(np.array([_digest(id[:16], text) for id, text in zip(ids, answers, strict=True)], np.uint64))
        sources += batch.column("source").to_pylist() if several else []
    return Rows(
        _joined(prompts, np.uint64),
        _joined(contents, np.uint64),
        {text: _joined(made, np.int64) for text, made in lengths.items()},
        np.array(sources, dtype=str) if several else np.zeros(sum(map(len, prompts)), dtype="<U1"),
    )


def _digest(prompt: str, answer: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{prompt} {answer}".encode(), digest_size=8).digest(), "little")


def _joined(parts: list[Any], kind: Any) -> np.ndarray:
    import numpy as np

    return np.concatenate(parts) if parts else np.zeros(0, kind)


def _of(rows: Rows) -> dict[str, np.ndarray]:
    return {**rows.lengths, "source": rows.sources}


def _tokens(tokens: Path, rows: Path) -> dict[str, np.ndarray]:
    """Lengths of the training rows' texts in tokens, and the set of each; rows that tokenize rejects have none."""
    import numpy as np

    file = token_file.TokenFile(tokens / token_file.FILES["train"])
    path = rows / FILES["train"]
    sources = np.array([*_sources(path, file.ids)], dtype=str) if has_sources(path) else np.zeros(len(file), "<U1")
    return {**{text: file.lengths(text) for text in TEXTS}, "source": sources}


def _sources(path: Path, ids: list[str]) -> Iterator[str]:
    """The set of each of `ids`, which are some of the file's, in its order."""
    wanted = iter(ids)
    id = next(wanted, None)
    for batch in read_batches(path, ("id", "source")):
        for one, source in zip(batch.column("id").to_pylist(), batch.column("source").to_pylist(), strict=True):
            if one == id:
                yield source
                id = next(wanted, None)


def _marked(before: Rows, now: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Of each row before and now: 0 where the other has it, 1 gone or new, 2 edited; uint8 [N]."""
    import numpy as np

    left, fresh = ~np.isin(before.contents, now.contents), ~np.isin(now.contents, before.contents)
    both = before.prompts[left], now.prompts[fresh]
    marks = left.astype(np.uint8), fresh.astype(np.uint8)
    marks[0][left] += _edited(both[0], both[1])
    marks[1][fresh] += _edited(both[1], both[0])
    return marks


def _edited(prompts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each changed row of one side whether the other side has a changed row of the same prompt to go with it."""
    import numpy as np

    made = np.zeros(len(prompts), np.uint8)
    known, counts = np.unique(others, return_counts=True)
    if not len(known):
        return made
    order = np.argsort(prompts, kind="stable")
    ordered = prompts[order]
    number = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)  # among those of its prompt
    at = np.searchsorted(known, ordered).clip(max=len(known) - 1)
    made[order] = number < np.where(known[at] == ordered, counts[at], 0)
    return made


def _counts(rows: list[Rows], marks: tuple[np.ndarray, np.ndarray], name: str) -> Counts:
    was, now = (_chosen(mark, one.sources, name) for mark, one in zip(marks, rows, strict=True))
    return Counts(len(was), len(now), int((now == 1).sum()), int((was == 1).sum()), int((now == 2).sum()))


def _chosen(values: np.ndarray, sources: np.ndarray, name: str) -> np.ndarray:
    return values[sources == name] if name else values


def _again(prompts: np.ndarray) -> int:
    import numpy as np

    return len(prompts) - len(np.unique(prompts))


def _spread(before: np.ndarray, now: np.ndarray) -> Spread | None:
    import numpy as np

    if not len(before) or not len(now):
        return None
    quantiles = [np.quantile(one, list(SHARES.values()), method="nearest") for one in (before, now)]
    top = int(max(one[-1] for one in quantiles))
    width = top // BINS + 1
    bins = [np.bincount(one.clip(max=top) // width, minlength=top // width + 1).tolist() for one in (before, now)]
    was, is_now = ({share: int(value) for share, value in zip(SHARES, one, strict=True)} for one in quantiles)
    return Spread(was, is_now, width, (bins[0], bins[1]))


def duplicates(summary: Mapping[str, Any], name: str) -> int:
    """Rows that reformat rejected because they were there already, of the set `name` or of all."""
    of = summary.get("sources", {}).get(name, {}) if name else summary
    return int(of.get("rejected", {}).get("duplicate", 0))
