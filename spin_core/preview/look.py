"""A look at a dataset: the stages reformat and tokenize, run as a run would run them, into a folder that goes.

Their summaries, rejects and outputs are what is shown. Read once more here are only the records themselves, for what
no output keeps: which columns and layouts there are, and how the first rows look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, Literal

from spin_core.data.readers import file_names
from spin_core.data.rows import FILES, iter_ids, iter_rows
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.preview import records
from spin_core.preview.facts import Example, Limit, Look, Rejected, lengths
from spin_core.sources import hub
from spin_core.sources.resolve import Ref, resolve
from spin_core.stages import demo_model, demo_rows, docstring_rows, reformat, tokenize

if TYPE_CHECKING:
    import numpy as np

    from spin_core.config.profile import Config

EXAMPLES = 3
NO_LIMIT = 1 << 30

Send = Callable[[str, dict], None]
"""Given a stage's name and an event of its Job."""


def look(
    config: Config, base_dir: Path, name: str, shown: int, send: Send, tokens: bool = True, rejects: Path | None = None
) -> Look:
    """What a run of `config` would read. `shown`: how many of the first rows; `tokens` False: the model is not known;
    `rejects`: a file for all of them, a JSON object a line. Raises BadInput where nothing can be read at all; what
    would end a run later is in `failures`."""
    made = Look(name)
    with ExitStack() as held:
        folder = held.enter_context(TemporaryDirectory(prefix="spinloop-data-"))
        file = held.enter_context(rejects.open("w", encoding="utf-8")) if rejects else None
        work = _Work(config, base_dir, Path(folder), made, send, file)
        sources = work.sources()
        tokenizer: Path | None = work.attempt(work.tokenizer) if tokens else None
        chat = work.attempt(partial(_chat, tokenizer, config)) if tokenizer else None
        job = work.job("records")
        for source in sources:
            with job.progress(f"looking at {source.use}", 0, "rows") as bar:
                records.add(made, source, shown, chat, bar)
        made.files += records.not_read(sources)
        tree = work.reformatted(sources)
        if tree and tokenizer and chat:
            work.tokenized(tree, tokenizer)
        elif tree:
            work.counted(tree)
    made.notes += filter(None, [made.few_held_out(config.gate.min_rows)])
    return made


def _chat(tokenizer: Path, config: Config) -> Any:
    from spin_core.modeling.loading import load_chat

    return load_chat(tokenizer, config.chat)


@dataclass
class _Work:
    """The steps of one look."""

    config: Config
    base_dir: Path
    folder: Path
    made: Look
    send: Send
    every: IO[str] | None
    """Gets all rejects."""

    def job(self, name: str) -> Job:
        """A folder of its own; notes are kept."""
        out, scratch = self.folder / name, self.folder / f"{name}-scratch"
        out.mkdir()
        scratch.mkdir()

        def send(event: dict) -> None:
            if "note" in event:
                self.made.notes.append(event["note"])
            else:
                self.send(name, event)

        return Job(out, scratch, send=send)

    def attempt(self, do: Callable[[], Any]) -> Any:
        """What `do` gives; None where it raises BadInput, whose sentence is kept."""
        try:
            return do()
        except BadInput as error:
            if str(error) not in self.made.failures:
                self.made.failures.append(str(error))
            return None

    def sources(self) -> list[records.Source]:
        """Of each set what is trained on and, where that is another, what is held out."""
        every = []
        for name, part in self.config.dataset.parts.items():
            own = part.places
            if part.path in demo_rows.SETS:
                own = [(str(self._demo_rows(part.path, split)), split) for split in ("train", "test")]
            if part.path == "builtin:docstrings":
                own = [(str(self._docstring_rows()), "train")]
            uses = [f"{use} ({name})" if name else use for use in records.USES]
            for use, called, (path, split) in zip(uses, reformat.inputs_of(name), own, strict=False):
                ref = resolve(path, "dataset", part.revision, self.base_dir, split, self.made.notes, part.config)
                every.append(records.Source(called, use, Path(ref.path), split, part, _names(ref)))
        return every

    def _demo_rows(self, path: str, split: Literal["train", "test"]) -> Path:
        job = self.job(f"{path.removeprefix('builtin:')}-{split}")
        demo_rows.run({}, demo_rows.Config(seed=self.config.seed, split=split, **demo_rows.SETS[path]), job)
        return job.out / "rows.jsonl"

    def _docstring_rows(self) -> Path:
        job, files = self.job("docstrings"), docstring_rows.library_files()
        docstring_rows.run({}, docstring_rows.Config(library=docstring_rows.digest_of(files)), job)
        return job.out / "rows.jsonl"

    def tokenizer(self) -> Path:
        """The folder that has the model's tokenizer. No weights are fetched."""
        model = self.config.model
        if model.path == "builtin:tiny-llama":
            out = self.job("demo-model").out
            demo_model.write_settings(demo_model.Config(seed=self.config.seed), out)
            return out
        return Path(resolve(model.path, "tokenizer", model.revision, self.base_dir, notes=self.made.notes).path)

    def reformatted(self, sources: list[records.Source]) -> Path | None:
        """The rows tree; None where there are no rows."""
        inputs: Inputs = {source.name: source.path for source in sources}
        places = {source.name: source for source in sources}
        dataset = self.config.dataset
        for trial, share in enumerate((dataset.max_rejected, 1.0)):  # where too many are rejected, the others are shown
            part = reformat.anonymous(dataset).model_copy(update={"max_rejected": share})
            job = self.job(f"reformat{trial or ''}")
            how = reformat.Config(dataset=part, seed=self.config.seed)
            summary = self.attempt(partial(reformat.run, inputs, how, job))
            if summary:
                break
        written = job.out if summary else job.scratch
        self.rejects(written / reformat.REJECTS, "reformat", partial(_in_words, places))
        self.made.sets = (summary or {}).get("sources", {})
        for sentence in (summary or {}).get("unused", []):
            name, _, said = sentence.partition(": ")
            self.made.unused.append(f"{places[name].path.name}: {said}")
        if not all((job.out / name).is_file() for name in FILES.values()):
            return None
        further = {split: ["-" in id for id in iter_ids(job.out / name)] for split, name in FILES.items()}
        self.made.train, self.made.test = len(further["train"]), len(further["test"])
        self.made.further_answers = sum(map(sum, further.values()))
        return job.out

    def rejects(self, file: Path, step: str, example: Callable[[dict], Example]) -> None:
        """Count what a stage rejected, by reason, with the first of each."""
        found: dict[str, Rejected] = {}
        for one in _lines(file):
            held = found.setdefault(one["reason"], Rejected(one["reason"], 0, step))
            held.count += 1
            if self.every or len(held.examples) < EXAMPLES:
                seen = example(one)
                held.examples += [seen] if len(held.examples) < EXAMPLES else []
            if self.every:
                self.every.write(json.dumps({"step": step, "reason": held.reason, **vars(seen)}) + "\n")
        self.made.rejected += sorted(found.values(), key=lambda one: (-one.count, one.reason))

    def tokenized(self, tree: Path, tokenizer: Path) -> None:
        """Lengths in tokens, cuts, and what the tokenizer makes of the rows. Where prompts are cut, their whole lengths
        are those of a second pass without the limit."""
        config, made = self.config, self.made

        def encoded(name: str, share: float, most: int) -> tuple[dict[str, Any], Path]:
            chat = config.chat.model_copy(update={"max_prompt_length": most})
            how = tokenize.Config(chat=chat, max_rejected=share, shard_rows=config.dataset.shard_rows)
            job = self.job(name)
            return tokenize.run({"rows": tree, "tokenizer": tokenizer}, how, job), job.out

        most = config.chat.max_prompt_length
        done = self.attempt(partial(encoded, "tokenize", config.dataset.max_rejected, most))
        done = done or self.attempt(partial(encoded, "tokenize-all", 1.0, most))
        if not done:
            return
        summary, out = done
        made.unit, made.tokens, made.rewritten = "tokens", summary["tokens"], summary["rewritten"]
        self.rejects(out / reformat.REJECTS, "tokenize", lambda one: Example(f"row {one['id']}", one["detail"]))
        whole = out
        if summary["prompts_cut"] or "prompt too long" in summary["rejected"]:
            notes = list(made.notes)
            _, whole = self.attempt(partial(encoded, "tokenize-whole", 1.0, NO_LIMIT)) or (None, out)
            made.notes = notes  # the same rows were noted before
        cut = Limit("chat.max_prompt_length", most, summary["prompts_cut"])
        made.lengths.append(lengths("prompt", "tokens", _token_lengths(whole, "prompt"), [cut]))
        made.lengths.append(lengths("answer", "tokens", _token_lengths(whole, "answer"), self._answer_limits(out)))

    def _answer_limits(self, out: Path) -> list[Limit]:
        from spin_core.modeling.collate import read_groups

        settings = {"finetune.max_length": self.config.finetune.max_length}
        if self.config.sft:
            settings["sft.max_length"] = self.config.sft.max_length
        return [
            Limit(setting, most, sum(read_groups([out], split, most, ("answer",)).cut("answer") for split in FILES))
            for setting, most in settings.items()
        ]

    def counted(self, tree: Path) -> None:
        """Lengths in characters."""
        import numpy as np

        rows = (row for name in FILES.values() for row in iter_rows(tree / name))
        sizes = ((sum(len(text) for turn in row.prompt for text in turn.values()), len(row.answer)) for row in rows)
        both = np.fromiter(chain.from_iterable(sizes), np.int64).reshape(-1, 2)
        for name, values in (("prompt", both[:, 0]), ("answer", both[:, 1])):
            self.made.lengths.append(lengths(name, "characters", values, []))


def _token_lengths(out: Path, column: str) -> np.ndarray:
    import numpy as np

    from spin_core.data import token_file

    return np.concatenate([token_file.TokenFile(out / name).lengths(column) for name in token_file.FILES.values()])


def _names(ref: Ref) -> list[str]:
    """All files of a folder or of what the hub has of it, by relative name; of a file none."""
    if not ref.hub:
        return file_names(Path(ref.path)) if Path(ref.path).is_dir() else []
    place, _, commit = ref.hub.rpartition("@")
    repo, inner = "/".join(place.split("/")[:2]), "/".join([*place.split("/")[2:], ""])
    names = hub.listing(repo, "dataset", commit).names
    return [name.removeprefix(inner) for name in names if name.startswith(inner)]


def _in_words(sources: dict[str, records.Source], one: dict[str, Any]) -> Example:
    """A reject of reformat, which names the source and not its path, as people know it: `file, line 3`."""

    def named(place: re.Match[str]) -> str:
        return place["file"] or sources[place["source"]].path.name

    names = "|".join(sorted(map(re.escape, sources), reverse=True))  # the longer of two that begin alike first
    known = re.compile(rf"\b(?P<source>{names})(?:/(?P<file>\S+?))?(?=, line \d)")
    return Example(*(known.sub(named, text) for text in (f"{one['source']}, line {one['line']:,}", one["detail"])))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
