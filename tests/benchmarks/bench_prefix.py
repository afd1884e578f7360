"""What sharing the common first tokens of a prompt's answers would save of packed training, which computes each prompt
once and each answer in full: `python -m tests.benchmarks.bench_prefix TREE…` of pairs trees.

Counts tokens and computes nothing. Pairs of identical answers are left out, as training computes none of them where
their gradient is 0. It is the most that could be gained: a token of a shared beginning is then computed once, and what
sharing itself costs (one more branch of attention for each pair) is not taken off.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Ids = Sequence[int] | np.ndarray
Answers = tuple[int, list[Ids]]
"""Tokens of a prompt, and the ids of the answers behind it."""


class Prefix(NamedTuple):
    """`tokens` of the passes as they are; `common` of them would be saved; of `groups`, of which `identical` pairs
    were left out."""

    groups: int
    identical: int
    tokens: int
    common: int

    @property
    def share(self) -> float:
        """Of the tokens."""
        return self.common / self.tokens if self.tokens else 0.0


def shared(answers: Sequence[Ids]) -> int:
    """Tokens that a tree of the answers has fewer than the answers: of two of them their common first ones."""
    children: dict[tuple[int, int], int] = {}
    common = 0
    for ids in answers:
        node = 0
        for token in map(int, ids):
            edge = node, token
            if edge in children:
                common += 1
            else:
                children[edge] = len(children) + 1
            node = children[edge]
    return common


def prefix_of(groups: Iterable[Answers]) -> Prefix:
    """Of groups as training computes them: a prompt and its answers, equal ones once; a group of one distinct answer is
    a pair of identical answers."""
    count = identical = tokens = common = 0
    for prompt, answers in groups:
        distinct = list({tuple(map(int, ids)): ids for ids in answers}.values())
        if len(distinct) < 2:
            identical += 1
            continue
        count += 1
        tokens += prompt + sum(map(len, distinct))
        common += shared(distinct)
    return Prefix(count, identical, tokens, common)


def pairs_in(tree: Path) -> list[Answers]:
    """The train pairs of a pairs tree."""
    from spin_core.data.token_file import FILES, TokenFile

    rows = TokenFile(tree / FILES["train"])
    return [(len(row["prompt"]), [row["real"], row["generated"]]) for row in rows]


def rows_in(trees: Sequence[Path]) -> list[Answers]:
    """The same with all pairs of a row, of all trees, as one group (`finetune.order: prompts`)."""
    from spin_core.data.rows import row_of
    from spin_core.data.token_file import FILES, TokenFile

    made: dict[tuple[str, bytes], Answers] = {}
    for tree in trees:
        file = TokenFile(tree / FILES["train"])
        for id, row in zip(file.ids, file, strict=True):
            key = row_of(id), row["prompt"].tobytes() + row["real"].tobytes()
            made.setdefault(key, (len(row["prompt"]), [row["real"]]))[1].append(row["generated"])
    return list(made.values())


def sentence(name: str, found: Prefix) -> str:
    """One line of Markdown."""
    left = f", {found.identical:,} identical pairs left out" if found.identical else ""
    return f"{name}: {found.share:.1%} of {found.tokens:,} tokens ({found.groups:,} groups{left})"


def main() -> None:
    trees = [Path(one) for one in sys.argv[1:]]
    if not trees:
        sys.exit(__doc__)
    for tree in trees:
        print(sentence(f"{tree.name[:12]}, pairs apart", prefix_of(pairs_in(tree))))
    print(sentence("all trees, pairs of a row together", prefix_of(rows_in(trees))))


if __name__ == "__main__":
    main()
