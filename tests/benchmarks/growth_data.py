"""Synthetic rows and answers for bench_growth: made by a seed, of lengths as in public SFT sets, no model.

Not text that means something: words are drawn from 5,000, so that parquet compresses them about as it does prose.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

WORDS, POOL = 5000, 4 << 20  # words, and characters of them that a text is a slice of
PROMPT, ANSWER, GENERATED = (180, 0.8), (350, 0.8), (300, 0.7)  # characters: median, and σ of the logarithm


class Texts:
    """Texts of log-normal length, cut from one pool of random words."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        words = ["".join(self.draw.choices(letters, k=self.draw.randint(2, 9))) for _ in range(WORDS)]
        self.pool = " ".join(self.draw.choices(words, k=POOL // 6))

    def one(self, shape: tuple[int, float]) -> str:
        length = min(20_000, max(2, int(self.draw.lognormvariate(0, shape[1]) * shape[0])))
        start = self.draw.randrange(len(self.pool) - length)
        return self.pool[start : start + length].strip() or "x"


def rows(count: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """SFT rows `{"messages": […]}`: 5 % with a system turn, 10 % of several turns; of each hundred one is there twice,
    one has a prompt that came before with another answer, and one in 200 has no answer."""
    texts = Texts(seed)
    for number in range(count):
        # The full row from its number, so that a later one can be the same again without being kept.
        kind = number % 200
        of = number - 100 if kind in (150, 151, 152, 153) else number
        draw = texts.draw = random.Random(f"{seed}-{of}")
        turns = [{"role": "user", "content": f"{texts.one(PROMPT)} ({of})"}]
        turns.append({"role": "assistant", "content": texts.one(ANSWER)})
        if draw.random() < 0.05:
            turns.insert(0, {"role": "system", "content": "You answer in one word where you can."})
        if draw.random() < 0.1:
            turns += [{"role": "user", "content": texts.one(PROMPT)}, {"role": "assistant", "content": "Yes."}]
        if kind in (152, 153):
            turns[-1]["content"] = turns[-1]["content"] + "!"
            next(t for t in turns if t["role"] == "assistant")["content"] += f" ({number})"
        if kind == 7:
            next(t for t in turns if t["role"] == "assistant")["content"] = " "
        yield {"messages": turns}


def write_jsonl(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def write_parquet(path: Path, count: int) -> None:
    """The same rows, in row groups of 10,000."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("messages", pa.list_(turn))])
    with pq.ParquetWriter(path, schema) as file:
        held: list[dict] = []
        for row in rows(count):
            held.append(row)
            if len(held) == 10_000:
                file.write_table(pa.Table.from_pylist(held, schema))
                held = []
        if held:
            file.write_table(pa.Table.from_pylist(held, schema))


def write_tokens(tree: Path, out: Path) -> None:
    """Made-up ids of a rows tree's texts as tokenize writes them, in one shard a split: for what reads them."""
    from spin_core.data import rows, token_file

    (out / "prompts").mkdir(parents=True)
    listed = []
    for split, name in rows.FILES.items():
        shard = f"prompts/{split}-all.jsonl"
        with (out / shard).open("w") as file:
            lines = _ids(tree / name, file)
            count = token_file.write(out / token_file.FILES[split], ("prompt", "answer"), lines)
        listed.append({"file": shard, "sha256": "", "split": split, "rows": count})
    (out / "shards.json").write_text(json.dumps(listed))
    counts = {part["split"]: {"rows": part["rows"], "prompts_cut": 0, "rejected": {}} for part in listed}
    (out / "tokens.json").write_text(json.dumps({"ids": "of the text", **counts}))


def _ids(tree: Path, shard: TextIO) -> Iterator[tuple[str, list[int], list[int]]]:
    from spin_core.data.rows import iter_rows

    draw = random.Random(3)
    for row in iter_rows(tree):
        lengths = (sum(len(turn["content"]) for turn in row.prompt), len(row.answer))
        prompt, answer = ([draw.randrange(32_000) for _ in range(length // 4 + 1)] for length in lengths)
        shard.write(json.dumps({"id": row.id, "prompt": prompt}) + "\n")
        yield row.id, prompt, answer


def write_answers(tree: Path, out: Path, logprobs: bool = False) -> list[Path]:
    """Answers to every shard of a tokens tree as generate writes them, a folder for each; 5 % are cut, 1 % empty."""
    texts, made = Texts(2), []
    for number, shard in enumerate(json.loads((tree / "shards.json").read_text())):
        folder = out / f"{number:06}"
        folder.mkdir(parents=True)
        made.append(folder)
        with (tree / shard["file"]).open("rb") as prompts, (folder / "answers.jsonl").open("w") as file:
            for line in prompts:
                file.write(_answer(json.loads(line)["id"], texts, logprobs))
    return made


def _answer(id: str, texts: Texts, logprobs: bool) -> str:
    draw = texts.draw
    text = "" if draw.random() < 0.01 else texts.one(GENERATED)
    ids = [draw.randrange(32_000) for _ in range(len(text) // 4 + 1)]
    line: dict[str, Any] = {"id": id, "text": text, "finish": "length" if draw.random() < 0.05 else "stop"}
    line |= {"tokens": len(ids), "token_ids": ids}
    if logprobs:
        line |= {"logps": [-draw.random() for _ in ids], "model": "0" * 64}
    return json.dumps(line) + "\n"
