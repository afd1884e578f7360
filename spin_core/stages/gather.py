"""All shards of answers to one pair set: exactly one answer for each row (of `generate.n` as many), or an error that
names the rows. Of several answers `gather.pick` says which become pairs: all, under the ids that they have (the first
under the row's, the others under `<row>#2` and on), or one, under the row's. With `gather.verifier` the hardest of the
wrong answers, and how many prompts had none is counted.

Not a filter for quality: what is odd (empty, identical to the real answer, cut, repeated) is counted in quality.json,
and only cut answers can be dropped, by `truncated: drop`. Rows whose prompt generate rejected are no pairs (counted),
nor are those that tokenize rejected.

inputs   `rows`: reformat's tree · `tokens`: tokenize's of it · `answers`: generate's trees or their answers.jsonl, in
         any order
outputs  train and test parquet with `id, real, generated, finish` (the reference's record and two more), and `source`
         where the rows have it · `train_tokens.arrow`, `test_tokens.arrow`: the same pairs as ids, the prompt's and the
         real answer's of `tokens`, and those that were sampled · `quality.json`, with how many prompts tokenize cut,
         and by source · `tokens.json`: where the ids are from · with `truncated: report` `truncated.jsonl`: {id, split,
         tokens} of each cut answer · where answers have log-probs `engine_logps.jsonl`
         (`spin_core/modeling/sampled_logps.py`)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from spin_core.config.base import Section, added_field
from spin_core.config.choices import Pick
from spin_core.config.gather import Gather
from spin_core.config.right_answer import declared, is_right
from spin_core.data import token_file
from spin_core.data.pairs import Answers, PairQuality, digests
from spin_core.data.rows import FILES, Pair, Row, answer_id, has_sources, has_tools, iter_rows, write_pairs
from spin_core.data.token_file import TokenFile
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Bar, Inputs, Job
from spin_core.modeling import sampled_logps

NAME = "gather"
VERSION = 3
"""2: pairs have ids: the prompt's and the real answer's of `tokenize`, and those that were sampled.
3: quality.json counts the prompts that `tokenize` cut."""

MAX_IDS = 300
"""Ids of rejected rows that quality.json lists for a split; their number is there in full."""


class Config(Section):
    """What the pairs depend on besides rows and answers."""

    gather: Gather
    n: int = added_field(1)
    """Answers to each row, as `generate.n` has it."""


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write the pairs tree; give counts. Raises StageFailed unless answers and rows match one to one."""
    import numpy

    tree, trees, tokens = inputs["rows"], inputs["answers"], inputs["tokens"]
    assert isinstance(tree, Path) and isinstance(trees, list) and isinstance(tokens, Path)
    real = {split: TokenFile(tokens / name) for split, name in token_file.FILES.items()}
    every = {split: [answer_id(id, k) for id in file.ids for k in range(config.n)] for split, file in real.items()}
    ids = {split: digests(of) for split, of in every.items()}
    answers = Answers()
    with job.progress("gathering answers", sum(map(len, ids.values())), "answers") as bar:
        for given in trees:
            bar.advance(answers.add(given / "answers.jsonl" if given.is_dir() else given))
    numbers = answers.demand(ids, every)
    counts = json.loads((tokens / "tokens.json").read_text(encoding="utf-8"))
    quality, cut, total, rejected = {}, 0, len(numpy.unique(numpy.concatenate(list(ids.values())))), 0
    logps_file, cut_file = job.out / sampled_logps.FILE, job.out / "truncated.jsonl"
    with (
        logps_file.open("w", encoding="utf-8") as logps,
        cut_file.open("w", encoding="utf-8") as truncated,
        job.progress("writing pairs", total, "rows") as bar,
    ):
        for split, name in FILES.items():
            made = _Pairs(split, config.gather, config.n)
            rows = _tokenized(iter_rows(tree / name), real[split].ids)
            answered = zip(rows, _by_row(answers.read(numbers[split]), config.n), strict=True)
            pairs, beside = made.of(answered, logps, truncated, bar), (has_sources(tree / name), has_tools(tree / name))
            write_pairs(job.out / name, pairs, *beside)
            made.check_verifier()
            if made.rows == made.dropped:
                raise StageFailed(_nothing_left(split, made.rows, made.rows + len(made.rejected)))
            paired = made.tokens_of(real[split], answers.read(numbers[split]))
            token_file.write(job.out / token_file.FILES[split], ("prompt", "real", "generated"), paired)
            quality[split] = made.figures() | {"prompts_cut": counts[split]["prompts_cut"]}
            cut, rejected = cut + made.cut, rejected + len(made.rejected)
    (job.out / "tokens.json").write_text(json.dumps({**counts, "ids": "sampled"}, indent=1) + "\n", encoding="utf-8")
    (job.out / "quality.json").write_text(json.dumps(quality, indent=1) + "\n", encoding="utf-8")
    if not logps_file.stat().st_size:
        logps_file.unlink()
    if config.gather.truncated != "report":
        cut_file.unlink()
    else:
        answered = sum(part["rows"] for part in quality.values())
        job.note(f"{cut} of {answered} answers were cut at max_new_tokens; truncated.jsonl lists them.")
    if rejected:
        job.note(
            f"{rejected} of {total // config.n} rows are no pairs: their prompts do not fit into the model's context."
        )
    return {
        "train_pairs": quality["train"]["pairs"],
        "test_pairs": quality["test"]["pairs"],
        "identical_fraction": quality["train"]["identical_to_real_fraction"],
        "truncated_fraction": quality["train"]["truncated_fraction"],
        "rejected": rejected,
        **{name: sum(part[name] for part in quality.values()) for name in COUNTED if name in quality["train"]},
        **({"left_out": left_out} if (left_out := _left_out(quality)) else {}),
    }


def console_note(summary: dict[str, Any]) -> str:
    """What the console shows below the finished step: answers that are in no pair, and what was not verified."""
    return "\n        ".join(summary.get("left_out", []))


COUNTED = ("not_picked", "no_wrong_answer", "not_verified")
"""Of quality.json, where there are several answers to a row, and a verifier."""


def _left_out(quality: dict[str, dict[str, Any]]) -> list[str]:
    """What is said of the answers that were left out, and of what the verifier did not decide."""
    prompts, left, right, unknown = (
        sum(part.get(name, 0) for part in quality.values()) for name in ("prompts", *COUNTED)
    )
    said = []
    if left:
        said.append(f"{left:,} answers to {prompts:,} prompts are in no pair: gather.pick takes one of each prompt's.")
    if right:
        said.append(f"{right:,} of {prompts:,} prompts had no wrong answer; their pairs have a right one.")
    if unknown:
        said.append(f"In {unknown:,} of {prompts:,} real answers gather.verifier finds no right answer; not verified.")
    return said


def _tokenized(rows: Iterator[Row], ids: list[str]) -> Iterator[Row]:
    """The rows that tokenize did not reject; its `ids` are in the order of the rows."""
    left = iter(ids)
    wanted = next(left, None)
    for row in rows:
        if row.id == wanted:
            yield row
            wanted = next(left, None)


def _by_row(answers: Iterable[dict[str, Any]], n: int) -> Iterator[tuple[dict[str, Any], ...]]:
    """The answers to each row together."""
    return zip(*[iter(answers)] * n, strict=True)


def _nothing_left(split: str, answered: int, rows: int) -> str:
    if not answered:
        return (
            f"None of the {rows} prompts of the {split} split fits into the model's context; lower "
            "chat.max_prompt_length or generate.max_new_tokens."
        )
    return (
        f"All {answered} answers of the {split} split were cut at max_new_tokens and `gather.truncated: drop` leaves "
        "no pair; raise generate.max_new_tokens or keep them."
    )


class _Pairs(PairQuality):
    """The pairs of a split as they are written, and what quality.json says of them."""

    def __init__(self, split: str, how: Gather, n: int):
        super().__init__()
        self.split, self.how, self.truncated, self.pick, self.n = split, how, how.truncated, how.pick, n
        self.tokens = self.all_right = self.undeclared = 0
        self.rejected: list[str] = []
        self.prompts = 0
        """Rows that have answers."""
        self.kept = bytearray()
        """1 for each answer that is in a pair, 0 for the others, in order."""

    def of(
        self, answered: Iterable[tuple[Row, Sequence[dict[str, Any]]]], logps: TextIO, truncated: TextIO, bar: Bar
    ) -> Iterator[Pair]:
        """Those to be written."""
        for row, own in answered:
            bar.advance(len(own))
            first = len(self.kept)
            self.kept += bytes(len(own))
            if own[0]["finish"] == "rejected":
                self.rejected.append(row.id)
                continue
            self.prompts += 1
            for number in picked(own, self.pick, self._wrong(row, own)):
                if pair := self._pair(row, number, own[number], logps, truncated):
                    self.kept[first + number] = 1
                    yield pair

    def _wrong(self, row: Row, own: Sequence[dict[str, Any]]) -> list[int]:
        """The answers that the verifier calls wrong, counted; none where it cannot say, or there is no verifier."""
        if not self.how.verifier:
            return []
        right = declared(self.how.verifier, row.answer)
        if right is None:
            self.undeclared += 1
            return []
        wrong = [n for n, one in enumerate(own) if not is_right(self.how.verifier, right, one["text"])]
        self.all_right += not wrong
        return wrong

    def check_verifier(self) -> None:
        """Raises BadInput where it found a right answer in no row at all."""
        if self.prompts and self.undeclared == self.prompts:
            raise BadInput(
                f"gather.verifier: {self.how.verifier!r} is found in none of the {self.prompts} real answers of the "
                f"{self.split} split; correct the expression, or leave it out for rows that have no one right answer."
            )

    def _pair(self, row: Row, number: int, answer: dict[str, Any], logps: TextIO, truncated: TextIO) -> Pair | None:
        """A row with its n-th answer, counted; None where `truncated` drops it."""
        id = answer_id(row.id, number) if self.pick == "all" else row.id
        pair = Pair(id, row.prompt, row.answer, answer["text"], answer["finish"], row.source)
        self.count(pair)
        self.tokens += answer["tokens"]
        if pair.finish != "stop":
            if self.truncated == "report":
                line = {"id": pair.id, "split": self.split, "tokens": answer["tokens"]}
                truncated.write(json.dumps(line) + "\n")
            elif self.truncated == "drop":
                self.drop(pair)
                return None
        if "logps" in answer:
            line = {"id": pair.id, "split": self.split, "model": answer["model"]}
            line |= {"token_ids": answer["token_ids"], "logps": answer["logps"]}
            logps.write(json.dumps(line) + "\n")
        return pair

    def tokens_of(self, real: TokenFile, answers: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
        """The ids of the pairs that `of` gave: what was sampled is what is scored."""
        kept = iter(self.kept)
        for id, row, own in zip(real.ids, real, _by_row(answers, self.n), strict=True):
            for number, answer in enumerate(own):
                if next(kept):
                    of = answer_id(id, number) if self.pick == "all" else id
                    yield of, row["prompt"], row["answer"], answer["token_ids"]

    def figures(self) -> dict[str, Any]:
        """Of the rows that have an answer, with their tokens, and the rows that were rejected."""
        figures = super().figures() | {"generated_tokens_mean": self.tokens / self.rows}
        # Where there are any: quality.json of a run without them stays as it was.
        some = {"rejected": len(self.rejected), "rejected_ids": sorted(self.rejected)[:MAX_IDS]}
        several = {"prompts": self.prompts, "not_picked": self.prompts * self.n - self.rows}
        if self.how.verifier:
            several |= {"no_wrong_answer": self.all_right, "not_verified": self.undeclared}
        return figures | (some if self.rejected else {}) | (several if self.n > 1 else {})


def picked(answers: Sequence[dict[str, Any]], pick: Pick, wrong: Sequence[int] = ()) -> list[int]:
    """Which of a row's answers become pairs; of equal ones the first. `hardest` takes one of the `wrong` ones where
    there are some. Raises StageFailed where it has no log-probs to go by."""
    if pick == "all":
        return list(range(len(answers)))
    if pick == "first":
        return [0]
    if pick == "shortest":
        return [min(range(len(answers)), key=lambda n: answers[n]["tokens"])]
    if any("logps" not in one for one in answers):
        raise StageFailed(
            f"row {answers[0]['id']}: its answers have no log-probs, by which gather.pick: hardest goes; set "
            "generate.logprobs: true, or pick otherwise."
        )
    among = wrong or range(len(answers))
    return [max(among, key=lambda n: answers[n]["logps"] / max(answers[n]["tokens"], 1))]
