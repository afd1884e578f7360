"""Token files to the sequences of prompt and answer that a model reads; and the reference's own collation.

What it is *not*: no tokenisation (that is `encoding`; here is only the published code's way, for reproducing its
numbers), no batches (that is `packing`), no model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from spin_core.data.rows import row_of
from spin_core.data.token_file import FILES, TokenFile
from spin_core.errors import BadInput
from spin_core.job import Job

MANY = 0.05
"""Share of cut answers from which a note says so."""


@dataclass(frozen=True)
class Tokens:
    """One prompt and answer. `ids` int32 [T] (50k pairs of 2 × 1,024 tokens take 0.4 GB; lists 3 GB)."""

    ids: np.ndarray
    prompt: int
    """How many of `ids` are prompt; the rest is the answer, and its labels."""
    masked: np.ndarray | None = None
    """Positions with attention 0 (the reference hides each EOS inside a text); None: none."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def answer(self) -> int:
        """How many of `ids` are answer."""
        return len(self.ids) - self.prompt

    @property
    def targets(self) -> int:
        """How many labels a causal model can predict: the very first token has nothing before it."""
        return len(self.ids) - max(self.prompt, 1) if len(self.ids) else 0

    def mask(self) -> np.ndarray:
        mask = np.ones(len(self.ids), np.int64)
        if self.masked is not None:
            mask[self.masked] = 0
        return mask


@dataclass(frozen=True)
class Further:
    """One more generated answer of groups: `rows` int64 [N] says which row of the pairs in `file` has it, −1 none.
    `scored`: which of the sets of pairs that are scored `file` is."""

    file: TokenFile
    rows: np.ndarray
    scored: int = 0


class Groups(Sequence[tuple[Tokens, ...]]):
    """The rows of token files, one file after the other: prompt and answer (of rows), or prompt and both answers (of
    pairs), and behind these the further answers that a group has. Made where they are used, from pages that all
    processes of a machine share; no group is held here.

    What is over `max_length` loses the end of its answer; `cut` counts these.
    """

    def __init__(
        self, files: Sequence[TokenFile], max_length: int, answers: Sequence[str] = ("real", "generated"),
        further: Sequence[Further] = (), chosen: np.ndarray | None = None,
    ):  # fmt: skip
        """`chosen`: numbers of the rows that are groups, int64; None: all.

        Raises BadInput where a prompt leaves no room for an answer.
        """
        self.files, self.max_length, self.answers = list(files), max_length, tuple(answers)
        self.further = list(further)
        self._first = list(accumulate(map(len, self.files), initial=0))
        ids = [id for file in self.files for id in file.ids]
        self.chosen = np.arange(len(ids)) if chosen is None else chosen
        self.ids = ids if chosen is None else [ids[row] for row in chosen]
        for file in self.files:
            prompts = file.lengths("prompt")
            if len(prompts) and int(prompts.max()) >= max_length:
                raise BadInput(
                    f"row {file.ids[int(prompts.argmax())]}: the prompt's {int(prompts.max())} tokens leave no room "
                    f"for an answer in max_length {max_length}; lower chat.max_prompt_length or raise max_length"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = int(self.chosen[index])
        which = bisect_right(self._first, at) - 1
        row = self.files[which].row(at - self._first[which])
        prompt = row["prompt"]
        made = []
        for name in self.answers:
            ids = np.concatenate([prompt, row[name]])[: self.max_length]
            hidden = row.get(f"hidden_{name}")
            made.append(Tokens(ids, len(prompt), hidden if hidden is not None and len(hidden) else None))
        for one in self.further:
            if (at := int(one.rows[index])) >= 0:
                ids = np.concatenate([prompt, one.file.row(at)["generated"]])[: self.max_length]
                made.append(Tokens(ids, len(prompt)))
        return tuple(made)

    def _of(self, name: str) -> np.ndarray:
        """How many ids each group has in a column, int64 [N]. 50,000 groups made one by one take half a second."""
        return np.concatenate([np.zeros(0, np.int64), *(file.lengths(name) for file in self.files)])[self.chosen]

    def there(self) -> np.ndarray:
        """Which of its answers each group has, bool [N, answers]: all but further ones."""
        all_ = np.ones((len(self), len(self.answers)), bool)
        return np.concatenate([all_, *((one.rows >= 0)[:, None] for one in self.further)], axis=1)

    def lengths(self) -> np.ndarray:
        """Tokens of each group's sequences, int64 [N, answers]; 0 where it has none."""
        prompts = self._of("prompt")
        columns = [prompts + self._of(name) for name in self.answers]
        columns += [prompts + np.append(one.file.lengths("generated"), 0)[one.rows] for one in self.further]
        return np.where(self.there(), np.stack(columns, axis=1).clip(max=self.max_length), 0)

    def targets(self) -> np.ndarray:
        """Labels of each group's sequences, int64 [N, answers], as `Tokens.targets`."""
        lengths = self.lengths()
        return np.where(lengths > 0, lengths - self._of("prompt").clip(min=1)[:, None], 0)

    def answer_lengths(self) -> np.ndarray:
        """Answer tokens of each group's sequences as they are cut, int64 [N, answers]; 0 where it has none."""
        lengths = self.lengths()
        return np.where(lengths > 0, lengths - self._of("prompt")[:, None], 0)

    def packed(self) -> np.ndarray:
        """Tokens that each group takes packed, int64 [N], as `packing.tokens_of`."""
        return self.lengths().sum(axis=1) - (self.there().sum(axis=1) - 1) * self._of("prompt")

    def cut(self, answer: str) -> int:
        """How many of an answer's sequences lose their end."""
        return int((self._of("prompt") + self._of(answer) > self.max_length).sum())


def read_groups(
    trees: Sequence[Path], split: str, max_length: int, answers: Sequence[str] = ("real", "generated")
) -> Groups:
    """The groups of a split of tokens or pairs trees. Raises BadInput naming a file that is no file of tokens."""
    return Groups([TokenFile(tree / FILES[split]) for tree in trees], max_length, answers)


def further(groups: Groups, tree: Path, split: str, scored: int = 0) -> Further:
    """The generated answers of another pairs tree to the prompts of `groups`, by id; where a row has fewer answers
    there, its first."""
    file = TokenFile(tree / FILES[split])
    at = {id: row for row, id in enumerate(file.ids)}
    for row, id in enumerate(file.ids):
        at.setdefault(row_of(id), row)
    return Further(file, np.array([at.get(id, at.get(row_of(id), -1)) for id in groups.ids], np.int64), scored)


def all_answers(trees: Sequence[Path], split: str, max_length: int) -> Groups:
    """A group for each row of the newest (last) of some pairs trees, of its real answer and all its generated ones, the
    newest first. Raises BadInput as `read_groups`."""
    files = [TokenFile(tree / FILES[split]) for tree in trees]
    of = [_by_row(file) for file in files]
    firsts = [rows[0] for rows in of[-1].values()]
    columns = []
    for number in reversed(range(len(files))):
        newest = number == len(files) - 1  # of which the first answer is the pair's own
        for k in range(newest, max(map(len, of[number].values()), default=0)):
            own = (of[number].get(row, []) for row in of[-1])
            columns.append(
                Further(files[number], np.array([r[k] if k < len(r) else -1 for r in own], np.int64), number)
            )
    return Groups(files[-1:], max_length, further=columns, chosen=np.array(firsts, np.int64))


def _by_row(file: TokenFile) -> dict[str, list[int]]:
    """Row → the numbers of its pairs in the file, in their order."""
    rows: dict[str, list[int]] = {}
    for number, id in enumerate(file.ids):
        rows.setdefault(row_of(id), []).append(number)
    return rows


def equal(one: Tokens, other: Tokens) -> bool:
    """Whether two sequences are the same to a model, labels among it."""
    same = len(one) == len(other) and one.prompt == other.prompt and np.array_equal(one.ids, other.ids)
    return same and (one.masked is other.masked or np.array_equal(one.mask(), other.mask()))


def identical(groups: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """Of each group whether its second answer is its first in tokens (as they are cut), bool [N]."""
    result = np.zeros(len(groups), bool)
    alike: Iterable[int] = range(len(groups))
    if isinstance(groups, Groups):  # of most pairs the lengths say it
        lengths = groups.lengths()
        alike = np.flatnonzero(lengths[:, 0] == lengths[:, 1]).tolist()
    for i in alike:
        result[i] = equal(*groups[i][:2])
    return result


def longest_of(groups: Sequence[Sequence[Tokens]]) -> int:
    """Tokens of the longest sequence."""
    if isinstance(groups, Groups):
        return int(groups.lengths().max())
    return max(len(tokens) for group in groups for tokens in group)


def note_cuts(groups: Groups, split: str, setting: str, job: Job) -> dict[str, int]:
    """How many answers of each side `setting` (such as finetune.max_length) cuts; says so from MANY on."""
    counts = {name: groups.cut(name) for name in groups.answers}
    for name, count in counts.items():
        if count > MANY * len(groups):
            job.note(
                f"{count:,} of {len(groups):,} {name} answers of the {split} split ({count / len(groups):.0%}) are "
                f"over {setting} {groups.max_length} with their prompt and lose their end; raise it."
            )
    return counts


def encode_reference(
    texts: dict[str, str], tokenizer: Any, max_length: int, max_prompt_length: int, truncation_mode: str = "keep_end"
) -> tuple[Tokens, Tokens]:
    """(real, generated) as the reference's `DataCollatorWithPadding.tokenize_batch_element` makes them of its three
    texts.

    `texts`: `text_prompt`, `text_real`, `text_generated`. Prompt and answers are tokenised apart, without special
    tokens; an EOS in them is hidden (attention 0) yet stays a label; one more EOS is appended. If prompt and longer
    answer are over `max_length`, the prompt is cut to `max_prompt_length` (its last tokens: keep_end, its first:
    keep_start), and if that is not enough, *both* answers to their first `max_length − max_prompt_length` tokens.
    Python's slice rules apply to degenerate lengths, as they did there. Raises ValueError for another mode, once a cut
    is needed.
    """
    names = ("text_prompt", "text_real", "text_generated")
    prompt, real, generated = (list(tokenizer(texts[name], add_special_tokens=False)["input_ids"]) for name in names)
    eos = tokenizer.eos_token_id
    answers = [([*ids, eos], [i for i, token in enumerate(ids) if token == eos]) for ids in (real, generated)]
    longest = max(len(ids) for ids, _ in answers)
    hidden = [i for i, token in enumerate(prompt) if token == eos]
    if len(prompt) + longest > max_length:
        if truncation_mode not in ("keep_start", "keep_end"):
            raise ValueError(f"truncation_mode must be keep_end or keep_start, not {truncation_mode!r}")
        start, end = (None, max_prompt_length) if truncation_mode == "keep_start" else (-max_prompt_length, None)
        kept = range(len(prompt))[start:end]
        hidden, prompt = [i - kept.start for i in hidden if i in kept], prompt[start:end]
    if len(prompt) + longest > max_length:
        answers = [(ids[: max_length - max_prompt_length], masked) for ids, masked in answers]

    def tokens(ids: list[int], masked: list[int]) -> Tokens:
        at = hidden + [len(prompt) + i for i in masked if i < len(ids)]
        return Tokens(np.array(prompt + ids, np.int32), len(prompt), np.array(at, np.int32) if at else None)

    return tokens(*answers[0]), tokens(*answers[1])
