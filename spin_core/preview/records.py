"""The records of a source as they lie there: which files they are in, which columns they have, which layouts they
follow, and the first of them as the model will see them.

The rules are those of `spin_core/data`: nothing is decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from spin_core.data.choice import NOT_DATA, SUFFIXES
from spin_core.data.column_mapping import Reject, examples, layout
from spin_core.data.readers import data_files, is_saved, left_out, read
from spin_core.data.unused import unused
from spin_core.errors import printable
from spin_core.preview.facts import Column, File, Look, Shown

if TYPE_CHECKING:
    from spin_core.config.dataset import Source as Part
    from spin_core.data.rows import RawRecord, Row
    from spin_core.job import Bar

LONGEST = 4000  # characters of a prompt or answer that are shown
USES = ("training", "held out")
VISIBLE = {"\n": "␤\n", "\t": "␉"}


@dataclass(frozen=True)
class Source:
    """`name` is that of reformat's input; `use`: one of USES, and of several sets which; `part`: the set's settings."""

    name: str
    use: str
    path: Path
    split: str
    part: Part
    names: list[str] = field(default_factory=list)
    """All files there, read or not."""


def add(to: Look, source: Source, shown: int, chat: Any, bar: Bar) -> None:
    """Look at every record of `source`. Raises BadInput as `readers.read`."""
    per_file, filled, layouts = Counter[str](), Counter[str](), Counter[str](to.layouts)
    used: dict[str, set[str]] = {}
    count = 0
    for record in read(source.path, source.split, source.part.config):
        count += 1
        per_file[record.file or source.path.name] += 1
        filled.update(str(name) for name, value in record.fields.items() if value not in (None, "", [], {}))
        filled.update(dict.fromkeys(map(str, record.fields), 0))
        filled.update(name for name in unused(record.fields, source.part.columns) if "[]." in name)
        columns = source.part.columns or layout(record.fields)
        if record.fields:
            layouts[in_words(columns)] += 1
        for part, name in (columns or {}).items():
            used.setdefault(name, set()).add(part)
        if count <= shown and source.use.startswith(USES[0]):
            to.first += _shown(record, source, chat)
        bar.advance()
    to.read += count
    to.layouts = dict(layouts.most_common())
    known = {column.name: column for column in to.columns}
    for name, number in filled.items():
        column = known.setdefault(name, Column(name, 0))
        column.filled += number
        column.used_as = ", ".join(sorted({*filter(None, column.used_as.split(", ")), *used.get(name, ())}))
    to.columns = list(known.values())
    empty = {} if is_saved(source.path) else dict.fromkeys(_chosen(source), 0)
    to.files += [File(name, source.use, number) for name, number in sorted((empty | per_file).items())]


def in_words(columns: dict[str, str] | None) -> str:
    """`prompt: question, answer: answer`, as `dataset.columns` would say it."""
    return "none that is known" if columns is None else ", ".join(f"{part}: {name}" for part, name in columns.items())


def not_read(sources: Sequence[Source]) -> list[File]:
    """The files of the sources' folders that none of them reads, and why."""
    left: dict[tuple[Path, str], File] = {}
    for source in sources:
        if is_saved(source.path):  # with its splits as folders, or it is one split
            folders = sorted({name.partition("/")[0] for name in source.names if "/" in name})
            left |= {(source.path, name): File(name, "", 0, "another split") for name in folders}
        else:
            others = set(left_out(source.path, source.split, source.part.config))
            left |= {
                (source.path, name): File(name, "", 0, "of another kind" if name in others else _why(name, source))
                for name in source.names
            }
    for source in sources:
        for name in _chosen(source):
            left.pop((source.path, name), None)
    return sorted(left.values(), key=lambda file: file.name)


def _chosen(source: Source) -> list[str]:
    """The files that are read, by the names that their records have."""
    if is_saved(source.path):
        return [source.split]
    if source.path.is_file():
        return [source.path.name]
    files = data_files(source.path, source.split, source.part.config)
    return [file.relative_to(source.path).as_posix() for file in files]


def _why(file: str, source: Source) -> str:
    name = PurePosixPath(file)
    if any(part.startswith(".") for part in name.parts):
        return "hidden"
    if name.suffix.lower() not in SUFFIXES:
        return "no data file"
    if name.name in NOT_DATA:
        return "about the data"
    return "of another split or configuration" if source.part.config else "named for another split"


def _shown(record: RawRecord, source: Source, chat: Any) -> list[Shown]:
    where = f"{record.file or source.path.name}, line {record.line:,}"
    if record.reject:
        return [Shown(where, reject=f"{record.reject}: {record.detail}")]
    made = examples(record.fields, source.part.columns, source.part.turns)
    return [
        Shown(where, reject=f"{one.reason}: {one.detail}") if isinstance(one, Reject) else _seen(where, one, chat)
        for one in made
    ]


def _seen(where: str, row: Row, chat: Any) -> Shown:
    """A row as the model will see it: its ids, spelt out; without a tokenizer its turns."""
    if chat is None:
        turns = "".join(f"[{turn['role']}] {' '.join(_texts(turn))}\n" for turn in row.prompt)
        return Shown(where, visible(turns.removesuffix("\n")), visible(row.answer))
    from spin_core.modeling.encoding import Conversation, encode

    (made,) = encode(chat, [Conversation(row.prompt, (row.answer,), (True,))])
    if isinstance(made, Reject):
        return Shown(where, reject=f"{made.reason}: {made.detail}")
    prompt, answer = (
        chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in (made.prompt, made.answers[0])
    )
    return Shown(where, visible(prompt), visible(answer))


def _texts(turn: dict[str, str]) -> list[str]:
    return [text for name, text in turn.items() if name != "role" and text]


def visible(text: str) -> str:
    """`text` with a sign for each line end and tab, and an escape for what else cannot be seen."""
    cut = text[:LONGEST]
    shown = "".join(VISIBLE.get(c) or printable(c) for c in cut).removesuffix("\n")
    return shown if len(cut) == len(text) else f"{shown}… ({len(text) - LONGEST:,} more characters)"
