"""All shards of answers to one pair set: exactly one answer for each row, or an error that names the rows.

Not a filter for quality: what is odd (empty, identical to the real answer, cut, repeated) is counted in quality.json,
and only cut answers can be dropped, by `truncated: drop`.
Inputs: `rows` (reformat's tree) and `answers` (generate's trees or their answers.jsonl, in any order).
Output: train and test parquet with `id, real, generated, finish` (the reference's record and two more); quality.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from pydantic import Field

from spin_core.errors import StageFailed
from spin_core.job import Inputs, Job
from spin_core.rows import FILES, Pair, Row, read_rows, write_pairs
from spin_core.section import Section

VERSION = 1


class Gather(Section):
    """`gather:` in a profile."""

    truncated: Literal["keep", "drop"] = Field(
        "keep", description="Answers cut at max_new_tokens: keep them as pairs or drop them (counted)."
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
    quality = {}
    for split, name in FILES.items():
        found = [answers[row.id][0] for row in rows[split]]
        pairs = [_pair(row, answer) for row, answer in zip(rows[split], found, strict=True)]
        kept = [p for p in pairs if config.gather.truncated == "keep" or p.finish == "stop"]
        if not kept:
            raise StageFailed(
                f"All {len(pairs)} answers of the {split} split were cut at max_new_tokens and `gather.truncated: "
                "drop` leaves no pair; raise generate.max_new_tokens or keep them."
            )
        write_pairs(job.out / name, kept)
        quality[split] = _quality(pairs, [answer["tokens"] for answer in found], len(pairs) - len(kept))
    (job.out / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    return {
        "train_pairs": quality["train"]["pairs"],
        "test_pairs": quality["test"]["pairs"],
        "identical_fraction": quality["train"]["identical_to_real_fraction"],
        "truncated_fraction": quality["train"]["truncated_fraction"],
    }


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
                    and answer.get("finish") in ("stop", "length")
                    and isinstance(answer.get("tokens"), int)
                ):
                    raise ValueError("id, text, finish (stop or length) and tokens are not all there")
                answer["text"].encode()
                yield answer
    except (OSError, ValueError, AttributeError) as error:
        place = f"{file}, line {number}" if number else file
        raise StageFailed(f"{place}: not a shard of answers ({error}); generate it again.") from error


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


def _quality(pairs: list[Pair], tokens: list[int], dropped: int) -> dict[str, float]:
    """Counts, each also as a fraction of all answers (before any is dropped), and lengths in characters and tokens."""
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
