"""A published pair set (parquet files with `real` and `generated` message lists) to the tree that gather would write.

Is not: a filter for quality, nor a generation: whose answers they are is not known here. A row is left out only where
it can be no pair, and every one is counted with its reason. A pair of a held-out row is a test pair whatever file it
came from, and what would train on the beginning of a held-out conversation, or measure on another, is left out. A pairs
tree that spinloop itself wrote is taken as it is, after the same checks. Ids are those of the run's rows with the same
prompt and real answer; of other pairs the ids they have, if of reformat's form, else made as reformat makes them.
Answers without `finish` count as finished. Of a row that is there several times (the first published SPIN_iter0 had
each twice) the first counts. All pairs are held in memory, 1.7 kB each; gather's are not.

inputs   `source`: a folder with train and test files (`spin_core/sources/folders.py`), or one file · where a run
         imports it `rows`: reformat's tree · with `tokens` (tokenize's of them) and `tokenizer` the ids that spinloop's
         own pairs have are kept where they are of the same tokenizer and template and say what the texts say
outputs  as gather's: train and test parquet with `id, real, generated, finish`, sorted by id · `quality.json`, without
         token counts · `rejects.jsonl` where rows were left out
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, cast

from spin_core.config.base import Section
from spin_core.data import token_file
from spin_core.data.column_mapping import Reject, examples, reasons
from spin_core.data.pairs import PairQuality
from spin_core.data.readers import file_names, read_parquet
from spin_core.data.rows import (
    FILES,
    Pair,
    answer_id,
    beginning_id,
    of_tools,
    parts_of,
    prompt_id,
    read_pairs,
    read_rows,
    row_of,
    write_pairs,
)
from spin_core.data.token_file import TokenFile
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.sources import folders
from spin_core.stages import tokenize

NAME = "import_pairs"
VERSION = 6
"""2: pairs of spinloop's own keep their sampled ids.
3: a pair whose real answer has its reasoning in a field of its own is rejected.
4: held-out rows are known by what a conversation begins with.
5: tools are parts of the prompt.
6: several generated answers to one real answer are several pairs."""
MOST_REJECTED = 0.5
"""Of the rows, as `dataset.max_rejected` is by default: where more is left out, something else was meant."""
ID = re.compile(r"[0-9a-f]{16}(-\d+)?")
TWICE = "the same pair again"


class Config(Section):
    """Nothing: pairs depend on the source and the rows alone."""


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write the pairs tree; give counts. Raises BadInput where the source is no pair set, or leaves no pair of a
    split."""
    source = cast(Path, inputs["source"])
    files = _files(source)
    pair_set = _PairSet()
    with job.progress("reading pairs", 0, "rows") as bar:
        for split, paths in reversed(files.items()):  # of a pair in both, that of the test file counts
            for path in paths:
                pair_set.read(path, split, bar)
    pairs = pair_set.split(cast(Path | None, inputs.get("rows")))
    _check(source, pair_set, pairs)
    if not _copied(source, files, pairs, inputs, job):
        _write(job.out, pairs, pair_set.rejects)
    counts = Counter(reject["reason"] for reject in pair_set.rejects)
    if counts:
        job.note(f"{counts.total():,} of {pair_set.total:,} rows are no pairs here ({reasons(counts)}).")
    summary: dict[str, Any] = {f"{split}_pairs": len(part) for split, part in pairs.items()}
    return {**summary, "rejected": dict(sorted(counts.items()))}


def _files(source: Path) -> dict[str, list[Path]]:
    if source.is_file():
        return {"train": [source], "test": []}
    files = folders.pair_files(file_names(source), str(source))
    return {split: [source / name for name in part] for split, part in files.items()}


class _PairSet:
    """What the files hold: pairs with the split they come from, and the rows that are none."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, dict[str, Any], Pair, int]] = []
        """With the number that its id says (`answer_id`), 0 where it says none."""
        self.rejects: list[dict[str, Any]] = []
        self.total = 0
        self._given: dict[tuple[str, str], str] = {}

    def read(self, path: Path, split: str, bar: Any) -> None:
        """Take one file. Raises BadInput where it is no parquet file of pairs."""
        for number, fields in enumerate(_rows_of(path), 1):
            self.total += 1
            place = {"file": path.name, "row": number}
            if why := self._take(fields, split, place):
                self._reject(place, why)
            if number % 500 == 0:
                bar.advance(500)

    def _take(self, fields: dict[str, Any], split: str, place: dict[str, Any]) -> Reject | None:
        """Keep a row, or say why not."""
        sides = []
        for name in ("real", "generated"):
            made = _conversation(fields.get(name), name)
            if isinstance(made, Reject):
                return made
            sides.append(made)
        (prompt, real), (other, generated) = sides
        if other != prompt:
            return Reject("another prompt", "real and generated do not answer the same prompt")
        if not real.strip():
            return Reject("no answer", "the real answer is empty")
        finish: Literal["stop", "length"] = fields.get("finish") or "stop"  # type: ignore[assignment]
        if finish not in ("stop", "length"):
            return Reject("wrong finish", f"finish is {finish!r}; it must be stop or length")
        pair = Pair(prompt_id(prompt), prompt, real, generated, finish)
        row, number = parts_of(str(fields.get("id") or ""))
        self.pairs.append((split, place, pair, number))
        self._given.setdefault((pair.id, real), row)
        return None

    def split(self, tree: Path | None) -> dict[str, list[Pair]]:
        """Split → its pairs with their ids, sorted by them; `tree`: the run's rows, which say what is held out."""
        rows = {split: read_rows(tree / name) for split, name in FILES.items()} if tree else {}
        ids = self._ids({(prompt_id(row.prompt), row.answer): row.id for part in rows.values() for row in part})
        held_out = {row.id for row in rows["test"]} if tree else set()
        sources = {row.id: row.source for part in rows.values() for row in part if row.source}
        test = rows["test"] if tree else [pair for split, _, pair, _ in self.pairs if split == "test"]
        begun = {beginning_id(one.prompt) for one in test}
        kept: dict[str, list[Pair]] = {"train": [], "test": []}
        taken: dict[tuple[str, str], dict[int, str]] = {}
        for split, place, pair, number in self.pairs:
            id = ids[pair.id, pair.real]
            held = beginning_id(pair.prompt) in begun
            now = "test" if (id in held_out if tree else held) else "train"
            also = (now == "train" and held) or (now, split, tree) == ("test", "train", None)
            why = None
            if also or (now, split) == ("train", "test"):
                why = Reject("also held out" if also else "not held out", f"prompt {pair.id}")
            own = taken.setdefault((pair.id, pair.real), {})
            # Of a row's answers two may be the same text where their ids say that they were drawn apart.
            apart = number and number not in own
            if not why and not apart and pair.generated in own.values():
                why = Reject(TWICE, f"prompt {pair.id}")
            if why:
                self._reject(place, why)
            else:
                number = max(own) + 1 if number in own else number
                own[number] = pair.generated
                kept[now].append(replace(pair, id=answer_id(id, number), source=sources.get(id, "")))
        return {split: sorted(part, key=lambda pair: parts_of(pair.id)) for split, part in kept.items()}

    def _reject(self, place: dict[str, Any], why: Reject) -> None:
        self.rejects.append({**place, "reason": why.reason, "detail": why.detail[:200]})

    def _ids(self, known: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """(prompt's id, real answer) → id: that of its row (`known`), else the one it has, else, as in reformat, that
        of the prompt, and for a second real answer (by text) `<id>-1`."""
        made = {pair: known[pair] for pair in self._given if pair in known}
        used = set(made.values())
        for pair in sorted(self._given.keys() - made.keys()):
            of_prompt, given = pair[0], self._given[pair]
            own = bool(ID.fullmatch(given)) and given[:16] == of_prompt
            names = chain([given] * own, [of_prompt], (f"{of_prompt}-{n}" for n in count(1)))
            made[pair] = next(name for name in names if name not in used)
            used.add(made[pair])
        return made


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Every row's fields. Raises BadInput for what is no readable parquet file with the two columns."""
    for number, record in enumerate(read_parquet(path, path.name)):
        if number == 0 and not {"real", "generated"} <= set(record.fields) and not record.reject:
            raise BadInput(
                f"{path}: needs the columns real and generated, and has {', '.join(map(str, record.fields))}; name a "
                "set of pairs (a dataset of answers alone is `dataset.path`)."
            )
        yield record.fields


def _conversation(value: Any, name: str) -> tuple[list[Any], str] | Reject:
    """(prompt, answer) of one side; the answer may be empty."""
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[-1], dict):
        return Reject("no conversation", f"{name} is no list of at least two messages")
    content = value[-1].get("content")
    if value[-1].get("role") != "assistant" or not isinstance(content, str):
        return Reject("bad role order", f"{name} does not end with a text of the assistant")
    # An opponent may say nothing; all else is as in an SFT set.
    stand_in = [*value[:-1], {"role": "assistant", "content": content if content.strip() else "-"}]
    made = examples({"messages": stand_in}, {"messages": "messages"}, "last")[0]
    return Reject(made.reason, f"{name}: {made.detail}") if isinstance(made, Reject) else (made.prompt, content)


def _check(source: Path, pair_set: _PairSet, pairs: dict[str, list[Pair]]) -> None:
    """Raise BadInput where what is left is no sample of the set, or a split has no pair."""
    counts = Counter(reject["reason"] for reject in pair_set.rejects)
    wrong = counts.total() - counts[TWICE]
    if wrong > MOST_REJECTED * (pair_set.total - counts[TWICE]):
        raise BadInput(
            f"{source}: {wrong:,} of its {pair_set.total:,} rows are no pairs here ({reasons(counts)}); name pairs of "
            "the profile's dataset, with the same rows held out."
        )
    for split in (split for split, part in pairs.items() if not part):
        raise BadInput(
            f"{source}: it leaves no {split} pairs ({reasons(counts) or 'it has none'}); each split needs at least "
            "one, and test pairs are those whose prompts the profile's dataset holds out."
        )


def _copied(source: Path, files: dict[str, list[Path]], pairs: dict[str, list[Pair]], inputs: Inputs, job: Job) -> bool:
    """Copy a tree that gather wrote, if that is what `source` is and all of it is pairs here: it has what cannot be
    made again (the ids that were sampled, and their number), and the same content must stay the same artifact."""
    folder = files["train"][0].parent
    if not (folder / folders.QUALITY).is_file() or any(len(part) != 1 for part in files.values()):
        return False
    for split, part in files.items():
        there = read_pairs(part[0]) if part[0].name == FILES[split] else []
        if "rows" not in inputs:  # which say the sets of a mix
            there = [replace(pair, source="") for pair in there]
        if there != pairs[split]:
            return False
    try:
        quality = json.loads((folder / folders.QUALITY).read_bytes())
        if any(quality[split]["pairs"] != len(part) for split, part in pairs.items()):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    left_out: tuple[str, ...] = ()
    if why := _strange_ids(folder, inputs, pairs) if "tokens" in inputs else "":
        left_out = folders.TOKENS
        job.note(f"The ids that these pairs bring are not used, and their texts are tokenized: {why}.")
    for name in (*FILES.values(), *folders.WITH_PAIRS):
        if (folder / name).is_file() and name not in left_out:
            shutil.copyfile(folder / name, job.out / name)
    return True


def _strange_ids(folder: Path, inputs: Inputs, pairs: dict[str, list[Pair]]) -> str:
    """Why the pairs' own ids cannot be used, or empty. They are a stranger's: they must be of this run's tokenizer and
    template (the prompts and real answers of `tokens`), and must say what the texts say that a person can read."""
    import numpy as np

    from spin_core.modeling.loading import load_tokenizer

    try:
        counts = json.loads((folder / "tokens.json").read_bytes())
        named = [counts[split][name] for split in FILES for name in tokenize.COUNTED]
    except (OSError, ValueError, KeyError, TypeError):
        named = [None]
    if any(type(number) is not int for number in named) or counts.get("ids") != "sampled":
        return "their tokens.json does not say that they were sampled"
    tokenizer = load_tokenizer(cast(Path, inputs["tokenizer"]))
    size = max(tokenizer.get_vocab().values()) + 1
    for split, name in token_file.FILES.items():
        if not (folder / name).is_file():
            return f"there is no {name}"
        ours = TokenFile(cast(Path, inputs["tokens"]) / name)
        try:
            theirs = TokenFile(folder / name)
        except BadInput as error:
            return str(error).rstrip(".")
        if theirs.ids != [pair.id for pair in pairs[split]] or theirs.columns != ["prompt", "real", "generated"]:
            return f"{name} is not of these pairs"
        place = {id: i for i, id in enumerate(ours.ids)}
        for pair, row in zip(pairs[split], theirs, strict=True):
            at = place.get(pair.id, place.get(row_of(pair.id)))
            own = None if at is None else ours.row(at)
            if not own or not all(map(np.array_equal, (row["prompt"], row["real"]), (own["prompt"], own["answer"]))):
                return f"pair {pair.id} has other ids under this run's tokenizer and chat template"
            ids = row["generated"].tolist()
            inside = all(0 <= id < size for id in ids)
            text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if inside else ""
            if not inside or str(text).lstrip() != pair.generated:
                return f"the generated ids of pair {pair.id} do not say what its text says"
    return ""


def _write(out: Path, pairs: dict[str, list[Pair]], rejects: list[dict[str, Any]]) -> None:
    quality = {}
    for split, part in pairs.items():
        sources, tools = any(pair.source for pair in part), any(of_tools(pair.prompt) for pair in part)
        write_pairs(out / FILES[split], part, sources, tools)
        counted = PairQuality()
        for pair in part:
            counted.count(pair)
        quality[split] = counted.figures()
    (out / folders.QUALITY).write_text(json.dumps(quality, indent=1) + "\n", encoding="utf-8")
    if rejects:
        lines = [json.dumps(reject) + "\n" for reject in rejects]
        (out / "rejects.jsonl").write_text("".join(lines), encoding="utf-8")
