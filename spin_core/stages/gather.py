"""All shards of answers to one pair set: exactly one answer for each row, or an error that names the rows.

Not a filter for quality: what is odd (empty, identical to the real answer, cut, repeated) is counted in quality.json,
and only cut answers can be dropped, by `truncated: drop`. Rows whose prompt generate rejected are no pairs (counted).
Inputs: `rows` (reformat's tree) and `answers` (generate's trees or their answers.jsonl, in any order).
Output: train and test parquet with `id, real, generated, finish` (the reference's record and two more); quality.json;
with `truncated: report` truncated.jsonl, {id, split, tokens} of each cut answer; where answers have log-probs
engine_logps.jsonl (`spin_core/engine_logps.py`).
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from pydantic import Field

from spin_core import engine_logps
from spin_core.errors import StageFailed
from spin_core.job import Inputs, Job
from spin_core.rows import FILES, Pair, Row, read_rows, write_pairs
from spin_core.section import Section

VERSION = 1

MAX_IDS = 300
"""Ids of rejected rows that quality.json lists for a split; their number is there in full."""


class Gather(Section):
    """`gather:` in a profile."""

    truncated: Literal["keep", "drop", "report"] = Field(
        "keep",
        description="Answers cut at max_new_tokens. keep: they are pairs, scored without an end, as sampled. drop: no "
        "pairs, so the model never learns against its own long answers. report: keep them, and list them in "
        "truncated.jsonl, to see whether max_new_tokens is too low.",
    )


class Config(Section):
    """What the pairs depend on besides rows and answers."""

    gather: Gather


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Write the pairs tree; give counts. Raises StageFailed unless answers and rows match one to one."""
    tree, trees = inputs["rows"], inputs["answers"]
    assert isinstance(tree, Path) and isinstance(trees, list)
    rows = {split: read_rows(tree / name) for split, name in FILES.items()}
    answers = _answers(trees, sum(map(len, rows.values())), job)
    _demand_one_each({row.id for split in rows for row in rows[split]}, answers)
    one = {id: several[0] for id, several in answers.items()}
    quality, cut, sums = {}, [], []
    for split, name in FILES.items():
        found = [one[row.id] for row in rows[split]]
        pairs = [_pair(row, a) for row, a in zip(rows[split], found, strict=True) if a["finish"] != "rejected"]
        kept = [p for p in pairs if config.gather.truncated != "drop" or p.finish == "stop"]
        if not kept:
            raise StageFailed(_nothing_left(split, len(pairs), len(found)))
        write_pairs(job.out / name, kept)
        quality[split] = _quality(pairs, [one[p.id]["tokens"] for p in pairs], len(pairs) - len(kept))
        quality[split] |= _rejected(found)
        cut += [{"id": p.id, "split": split, "tokens": one[p.id]["tokens"]} for p in pairs if p.finish != "stop"]
        sums += [_sum(one[p.id], split) for p in kept if "logps" in one[p.id]]
    (job.out / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    if sums:
        _write_lines(job.out / engine_logps.FILE, sums)
    if config.gather.truncated == "report":
        _write_lines(job.out / "truncated.jsonl", cut)
        job.note(f"{len(cut)} of {len(one)} answers were cut at max_new_tokens; truncated.jsonl lists them.")
    if rejected := sum(part.get("rejected", 0) for part in quality.values()):
        job.note(f"{rejected} of {len(one)} rows are no pairs: their prompts do not fit into the model's context.")
    return {
        "train_pairs": quality["train"]["pairs"],
        "test_pairs": quality["test"]["pairs"],
        "identical_fraction": quality["train"]["identical_to_real_fraction"],
        "truncated_fraction": quality["train"]["truncated_fraction"],
        "rejected": rejected,
    }


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


def _rejected(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Count and ids, where there are any: quality.json of a run without them stays as it was."""
    ids = sorted(answer["id"] for answer in answers if answer["finish"] == "rejected")
    return {"rejected": len(ids), "rejected_ids": ids[:MAX_IDS]} if ids else {}


def _sum(answer: dict[str, Any], split: str) -> dict[str, Any]:
    """A line of engine_logps.jsonl."""
    named = {"id": answer["id"], "split": split, "model": answer["model"]}
    return named | {"token_ids": answer["token_ids"].tolist(), "logps": answer["logps"]}


def _write_lines(path: Path, lines: list[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _answers(trees: list[Path], total: int, job: Job) -> dict[str, list[dict[str, Any]]]:
    """Every answer by row id; a list, so that a doubled one is seen."""
    answers: dict[str, list[dict[str, Any]]] = {}
    with job.progress("gathering answers", total, "answers") as bar:
        for tree in trees:
            file = tree / "answers.jsonl" if tree.is_dir() else tree
            shard = list(_read_answers(file))
            for answer in shard:
                answers.setdefault(answer["id"], []).append(answer)
            bar.advance(len(shard))
    return answers


def _read_answers(file: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                number += 1
                answer = json.loads(line)
                if not (
                    isinstance(answer.get("id"), str)
                    and isinstance(answer.get("text"), str)
                    and answer.get("finish") in ("stop", "length", "rejected")
                    and isinstance(answer.get("tokens"), int)
                ):
                    raise ValueError("id, text, finish (stop, length or rejected) and tokens are not all there")
                _shorten(answer)
                answer["text"].encode()
                yield answer
    except (OSError, ValueError, AttributeError, TypeError) as error:
        place = f"{file}, line {number}" if number else file
        raise StageFailed(f"{place}: not a shard of answers ({error}); generate it again.") from error


def _shorten(answer: dict[str, Any]) -> None:
    """Keep of the tokens what is written later: 50k answers of 256 tokens with log-probs are 1 GB as lists."""
    ids, logps = answer.pop("token_ids", []), answer.pop("logps", None)
    if logps is not None:
        if len(logps) != len(ids) or not isinstance(answer.get("model"), str) or not math.isfinite(math.fsum(logps)):
            raise ValueError("logps must be a number for each of token_ids, and `model` say under which")
        answer |= {"token_ids": array("q", ids), "logps": math.fsum(logps)}


def _demand_one_each(ids: set[str], answers: dict[str, list[dict[str, Any]]]) -> None:
    found = {
        "have no answer": sorted(ids - set(answers)),
        "have more than one answer": sorted(id for id, several in answers.items() if len(several) > 1),
        "are answered that are not among the rows": sorted(set(answers) - ids),
    }
    for what, wrong in found.items():
        if wrong:
            more = ", …" if len(wrong) > 5 else ""
            raise StageFailed(
                f"{len(wrong)} rows {what}: {', '.join(wrong[:5])}{more} (there are {len(ids)} rows); "
                "give gather every shard of these rows once."
            )


def _pair(row: Row, answer: dict[str, Any]) -> Pair:
    return Pair(row.id, row.prompt, row.answer, answer["text"], answer["finish"])


def _quality(pairs: list[Pair], tokens: list[int], dropped: int) -> dict[str, Any]:
    """Of the rows that have an answer: counts, each also as a fraction of them (before any is dropped), and lengths in
    characters and tokens."""
    repeats = Counter(p.generated for p in pairs)
    counts = {
        "empty": sum(not p.generated.strip() for p in pairs),
        "identical_to_real": sum(p.generated.strip() == p.real.strip() for p in pairs),
        "truncated": sum(p.finish == "length" for p in pairs),
        "duplicate_answers": sum(n - 1 for n in repeats.values()),
        "dropped": dropped,
    }
    real, generated = [len(p.real) for p in pairs], [len(p.generated) for p in pairs]
    return {
        "rows": len(pairs),
        "pairs": len(pairs) - dropped,
        **counts,
        **{f"{name}_fraction": n / len(pairs) for name, n in counts.items()},
        "real_characters_mean": fmean(real),
        "real_characters_median": median(real),
        "generated_characters_mean": fmean(generated),
        "generated_characters_median": median(generated),
        "length_gap_mean": fmean(real) - fmean(generated),
        "generated_tokens_mean": fmean(tokens),
    }
