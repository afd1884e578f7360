"""Rows, or pairs that come as text, to token ids: once for all iterations, for every stage that reads tokens.

Not a filter for quality: a row is rejected only where its tokens would not be what it says, and every reject is counted
with its reason (`spin_core/modeling/encoding.py` has the rules). No weights are read.

inputs   `tokenizer`: a model directory, of which the tokenizer's files count · `rows`: reformat's tree, or `pairs`: a
         pairs tree whose answers have no ids of their own (imported, or sampled under another prompt)
outputs  `train_tokens.arrow`, `test_tokens.arrow` (`spin_core/data/token_file.py`), sorted by id: of rows `prompt` and
         `answer` (and `generation_prompt`, which is sampled from, where that is another), of pairs `prompt`, `real` and
         `generated` (with `collation: reference` also `hidden_real` and `hidden_generated`, positions that attention
         does not see) · `tokens.json`: counts by split, and where generated answers' ids are from · `rejects.jsonl`:
         {id, split, reason, detail} · of rows also `prompts/*.jsonl`: shards of {id, prompt} with ids (no answers in
         them, so that editing an answer regenerates nothing), and `shards.json`
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from spin_core.config.base import Section
from spin_core.config.chat import ChatSection
from spin_core.data import token_file
from spin_core.data.column_mapping import Reject, reasons
from spin_core.data.rows import FILES, Cutter, Pair, Row, ShardEntry, iter_rows, of_tools, read_pairs
from spin_core.errors import BadInput
from spin_core.job import Bar, Inputs, Job

if TYPE_CHECKING:
    import numpy as np

    from spin_core.modeling.chat import Chat
    from spin_core.modeling.encoding import Encoded

NAME = "tokenize"
VERSION = 1
BATCH, CHARACTERS = 1000, 1 << 18
"""Rows, and characters of their texts, that are rendered and tokenised at once. Where each character is a token, ids of
that many characters take 40 MB as Python's numbers, for each batch that is at work."""
SHOWN = 5  # ids in a note
MANY = 0.05
"""Share of cut prompts from which a note says so."""

Line = tuple[Any, ...]
"""(id, ids of each column) of a row."""
AHEAD = 2
"""Batches that are worked on at once: while one is tokenised here, another's texts are rendered in the templates' own
process."""


class Made(NamedTuple):
    """A row's ids of each column, int32 [T], and what it adds to the counts."""

    ids: list[np.ndarray]
    counts: dict[str, int]


class Config(Section):
    """What the ids depend on besides the texts and the tokenizer. `shard_rows`: of rows, how many prompts a shard is to
    have; `reference_length`: of pairs that are collated as the published code did, its max_length."""

    chat: ChatSection
    max_rejected: float
    shard_rows: int = 0
    reference_length: int = 0


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write the tokens tree; give counts. Raises BadInput where too many rows are rejected, or a split has none
    left."""
    from spin_core.modeling.loading import load_chat

    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # no process is forked here while it is at work
    chat = load_chat(cast(Path, inputs["tokenizer"]), config.chat)
    chat.ids(["."])  # takes off what it was saved with (truncation): while one thread tokenises, another may not
    of_rows = "rows" in inputs
    tree = cast(Path, inputs["rows" if of_rows else "pairs"])
    writer = _Writer(chat, config, job)
    listed: list[ShardEntry] = []
    for split, name in FILES.items():
        texts: Iterator[Row] | Iterator[Pair] = iter_rows(tree / name) if of_rows else iter(read_pairs(tree / name))
        with job.progress(f"tokenize {split}", 0, "rows") as bar:
            listed += writer.write(split, texts, bar)
    counts = writer.finish()
    if of_rows:
        (job.out / "shards.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    rejected = sum((Counter(part["rejected"]) for part in counts.values()), Counter[str]())
    return {
        **{f"{split}_rows": part["rows"] for split, part in counts.items()},
        "tokens": sum(part["tokens"] for part in counts.values()),
        "prompts_cut": sum(part["prompts_cut"] for part in counts.values()),
        "rewritten": sum(part["rewritten"] for part in counts.values()),
        "rejected": dict(sorted(rejected.items())),
        **({"shards": len(listed)} if of_rows else {}),
    }


class _Writer:
    """Writes the splits, and counts."""

    def __init__(self, chat: Chat, config: Config, job: Job):
        self.chat, self.config, self.job = chat, config, job
        self.counts: dict[str, Any] = {}
        self.rejects: list[dict[str, str]] = []
        self.seen = 0
        self.examples: dict[str, list[str]] = {"prompts_cut": [], "rewritten": []}

    def write(self, split: str, texts: Iterator[Any], bar: Bar) -> list[ShardEntry]:
        """One split's tokens, and of rows its shards."""
        own = self.counts[split] = Counter[str]()
        self.rejected = Counter[str]()
        listed: list[ShardEntry] = []
        made = self._lines(split, texts, own, bar)
        lines: Iterator[Line] = (line for _, line in made)
        columns: tuple[str, ...]
        if self.config.reference_length:
            columns = ("prompt", "real", "generated", "hidden_real", "hidden_generated")
        elif self.config.shard_rows:
            columns = ("prompt", "answer", *(["generation_prompt"] if self.config.chat.template == "paper" else []))
            lines = self._sharded(split, made, listed)
        else:
            columns = ("prompt", "real", "generated")
        own["rows"] = token_file.write(self.job.out / token_file.FILES[split], columns, lines)
        self.counts[split] = {**{name: own[name] for name in COUNTED}, "rejected": dict(sorted(self.rejected.items()))}
        return listed

    def _sharded(self, split: str, made: Iterator[tuple[str, Line]], listed: list[ShardEntry]) -> Iterator[Line]:
        """The lines as they come; the shards of each set are cut by themselves, so that a set that is added or changed
        changes none of another's."""
        (self.job.out / "prompts").mkdir(exist_ok=True)
        cutters: dict[str, Cutter[Line]] = {}
        for source, line in made:
            cutter = cutters.setdefault(source, Cutter(self.config.shard_rows))
            if shard := cutter.add(line, str(line[0])):
                listed.append(self._shard(split, shard))
            yield line
        for cutter in cutters.values():
            listed.extend(self._shard(split, shard) for shard in cutter.rest())

    def _shard(self, split: str, lines: list[Line]) -> ShardEntry:
        column = 3 if self.config.chat.template == "paper" else 1
        data = "".join(json.dumps({"id": line[0], "prompt": line[column].tolist()}) + "\n" for line in lines).encode()
        sha256 = hashlib.sha256(data).hexdigest()
        file = f"prompts/{split}-{sha256[:12]}.jsonl"
        (self.job.out / file).write_bytes(data)
        return {"file": file, "sha256": sha256, "split": split, "rows": len(lines)}

    def _lines(self, split: str, texts: Iterator[Any], own: Counter[str], bar: Bar) -> Iterator[tuple[str, Line]]:
        """Each row with the set that it is of."""
        encode = self._reference if self.config.reference_length else self._exact
        sides = 2 if self.config.shard_rows else 3  # of a row prompt and answer, of a pair prompt and both answers
        for part, lines in _in_turn(encode, _parts(texts)):
            for one, line in zip(part, lines, strict=True):
                self.seen += 1
                if isinstance(line, Reject):
                    self.rejected[line.reason] += 1
                    reject = {"id": one.id, "split": split, "reason": line.reason, "detail": line.detail}
                    self.rejects.append(reject)
                    continue
                own.update(line.counts)
                for name, shown in self.examples.items():
                    if line.counts.get(name) and len(shown) < SHOWN:
                        shown.append(one.id)
                own["tokens"] += sum(map(len, line.ids[:sides]))
                yield one.source, (one.id, *line.ids)
            bar.advance(len(part))

    def _exact(self, part: list[Any]) -> list[Made | Reject]:
        from spin_core.modeling.encoding import Conversation, encode, encode_paper

        def of(one: Row | Pair) -> Conversation:
            if isinstance(one, Row):
                return Conversation(one.prompt, (one.answer,), (True,))
            # A published answer has lost its leading white space, so its real one is compared without it, too.
            return Conversation(one.prompt, (one.real.lstrip(), one.generated.lstrip()), (True, one.finish == "stop"))

        made = encode(self.chat, [of(one) for one in part])
        others: list[Any] = [None] * len(part)
        if self.config.shard_rows and self.config.chat.template == "paper":
            others = list(encode_paper(self.chat, [one.prompt for one in part]))
        return [
            ids if isinstance(ids, Reject)
            else other if isinstance(other, Reject)
            else Made(_arrays([ids.prompt, *ids.answers, *([] if other is None else [other])]), _counts(ids))
            for ids, other in zip(made, others, strict=True)
        ]  # fmt: skip

    def _reference(self, part: list[Pair]) -> list[Made | Reject]:
        from spin_core.modeling.chat import reference_texts
        from spin_core.modeling.collate import encode_reference

        lines: list[Made | Reject] = []
        for one in part:
            if of_tools(one.prompt):
                lines.append(Reject("tools", "the published code has no room for them; set collation: exact"))
                continue
            answers = {"real": one.real, "generated": one.generated}
            record = {name: [*one.prompt, {"role": "assistant", "content": text}] for name, text in answers.items()}
            texts = reference_texts(record, self.chat.tokenizer)
            length, limit = self.config.chat.max_prompt_length, self.config.reference_length
            real, generated = encode_reference(texts, self.chat.tokenizer, limit, length)
            counts = {}
            if real.prompt >= length or max(real.answer, generated.answer) >= limit - length:  # else nothing was cut
                whole = encode_reference(texts, self.chat.tokenizer, sys.maxsize, length)
                counts["prompts_cut"] = int(real.prompt < whole[0].prompt)
                counts["cut_real"] = int(real.answer < whole[0].answer)
                counts["cut_generated"] = int(generated.answer < whole[1].answer)
            hidden = [[] if side.masked is None else side.masked.tolist() for side in (real, generated)]
            prompt = real.ids[: real.prompt]
            ids = [prompt, real.ids[real.prompt :], generated.ids[generated.prompt :], *hidden]
            lines.append(Made(_arrays(ids), counts))
        return lines

    def finish(self) -> dict[str, Any]:
        """Write the counts, say what a person should know. Raises BadInput where too much is rejected."""
        out, counts = self.job.out, self.counts
        rejected = sum((Counter(part["rejected"]) for part in counts.values()), Counter[str]())
        if rejected.total() > self.config.max_rejected * self.seen:
            first = self.rejects[0]
            raise BadInput(
                f"{rejected.total():,} of {self.seen:,} rows cannot be used with this tokenizer and chat template "
                f"({reasons(rejected)}; first: row {first['id']}: {first['detail']}); correct them, see chat.* of the "
                "profile, or raise dataset.max_rejected."
            )
        for split, part in counts.items():
            if not part["rows"] and part["rejected"]:
                raise BadInput(f"No {split} row is left: {reasons(Counter(part['rejected']))}; correct them.")
        (out / "tokens.json").write_text(
            json.dumps({"ids": "of the text", **counts}, indent=1) + "\n", encoding="utf-8"
        )
        with (out / "rejects.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in self.rejects)
        if rejected:
            ids = ", ".join(one["id"] for one in self.rejects[:SHOWN])
            self.job.note(f"{rejected.total():,} of {self.seen:,} rows are left out ({reasons(rejected)}): {ids}.")
        self._note_shares()
        return counts

    def _note_shares(self) -> None:
        rows = max(1, sum(part["rows"] for part in self.counts.values()))
        cut, rewritten = (sum(part[name] for part in self.counts.values()) for name in ("prompts_cut", "rewritten"))
        if cut > MANY * rows:
            self.job.note(
                f"{cut:,} of {rows:,} prompts ({cut / rows:.0%}) are longer than chat.max_prompt_length "
                f"{self.config.chat.max_prompt_length} and lose a part of their text: "
                f"{_some(self.examples['prompts_cut'])}."
            )
        if rewritten:
            self.job.note(
                f"The chat template makes another text of {rewritten:,} answers ({rewritten / rows:.0%} of the rows); "
                f"they are scored as prompt, answer, end of turn: {_some(self.examples['rewritten'])}."
            )


COUNTED = ("rows", "tokens", "prompts_cut", "rewritten", "across", "ended", "cut_real", "cut_generated")
"""Counts of tokens.json, by split; `across`: answers that begin inside of a token of the whole conversation; `ended`:
answers from whose text an end of turn was taken; `cut_real` and `cut_generated`: of pairs that are collated as the
published code did (the others' answers are cut where they are read)."""


def _arrays(lists: list[Any]) -> list[np.ndarray]:
    """A tenth of the memory of Python's numbers."""
    import numpy as np

    return [np.array(ids, np.int32) for ids in lists]


def _counts(ids: Encoded) -> dict[str, int]:
    """Only what is not 0: of most rows nothing."""
    counts = {"prompts_cut": int(ids.cut), "rewritten": ids.rewritten, "across": ids.across, "ended": ids.ended}
    return {name: count for name, count in counts.items() if count}


def _in_turn(encode: Callable[[list[Any]], list[Any]], parts: Iterator[list[Any]]) -> Iterator[tuple[Any, Any]]:
    """Each batch and what `encode` makes of it, in order, AHEAD of them at work."""
    with ThreadPoolExecutor(AHEAD) as pool:
        working: deque[tuple[list[Any], Future[list[Any]]]] = deque()
        for part in parts:
            working.append((part, pool.submit(encode, part)))
            if len(working) > AHEAD:
                done, made = working.popleft()
                yield done, made.result()
        for done, made in working:
            yield done, made.result()


def _some(ids: list[str]) -> str:
    return f"rows {', '.join(ids)}" + (", …" if len(ids) == SHOWN else "")


def _parts(texts: Iterator[Any]) -> Iterator[list[Any]]:
    """Batches of at most BATCH rows and about CHARACTERS."""
    held, size = [], 0
    for one in texts:
        held.append(one)
        size += sum(len(text) for turn in one.prompt for text in turn.values())
        size += len(one.answer) if isinstance(one, Row) else len(one.real) + len(one.generated)
        if len(held) == BATCH or size > CHARACTERS:
            yield held
            held, size = [], 0
    if held:
        yield held
