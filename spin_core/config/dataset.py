"""`dataset:` in a profile: which rows, and which of them are held out."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from pydantic import Field, model_validator

from spin_core.config.base import Section, added_field
from spin_core.config.choices import Turns

ENDINGS = re.compile(r"(\.(parquet|arrow|jsonl?|ndjson|csv|tsv|txt|gz|zst|bz2|xz|zip))+$", re.IGNORECASE)


class Source(Section):
    """One set: where its rows are, what of them is read, and which part is used."""

    path: str = Field(
        "",
        description="A .jsonl, .json, .parquet, .csv, .tsv, .arrow or .txt file (text also as .gz, .bz2 or .zst), a "
        "folder of them, a hub id (org/name), builtin:docstrings (sentences of this Python's "
        "standard library), or one of the sets made by rule: builtin:tasks, builtin:bland, builtin:rare-bland.",
    )
    test_path: str = Field("", description="Held-out rows in a file of their own; empty splits them off `path`.")
    split: str = Field("train", description="Split of a hub dataset or a folder, as `datasets` names it, to train on.")
    test_split: str = Field("", description="Split of a hub dataset held out; empty splits rows off `split`.")
    config: str = added_field(
        "", description="Configuration of a set that has several (its README.md names them); empty is its default."
    )
    revision: str = Field("", description="Hub revision; the commit it resolves to enters the key.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Your column names, where they are not messages, prompt/response, question/answer, "
        "instruction/input/output or chosen/rejected (docs/data.md): {prompt: …, answer: …} or {messages: …}, each "
        "with system, context, history, label, …",
    )
    turns: Turns = Field("first", description="Which assistant turns of a conversation become rows.")
    limit: int = Field(0, ge=0, description="At most this many training rows, drawn by seed; 0 is all.")
    test_limit: int = Field(0, ge=0, description="At most this many held-out rows, drawn by seed; 0 is all.")
    frac_len: int = added_field(
        0,
        ge=0,
        description="Take only one slice of so many rows of each split, as the published scripts do: the rows in "
        "source order (rejects count), shuffled by numpy's default_rng(42), slice number `data_frac`. test_fraction, "
        "limit and test_limit then apply to the slice. 0 is all rows.",
    )
    data_frac: int = added_field(0, ge=0, description="Which slice of `frac_len` rows, from 0.")

    @property
    def places(self) -> list[tuple[str, str]]:
        """Path and split of what is trained on and, where that is a set of its own, of what is held out."""
        own = self.test_path or (self.path if self.test_split else "")
        return [(self.path, self.split), *[(own, self.test_split)] * bool(own)]


class MixedSet(Source):
    """One of several sets that are mixed (`dataset.sets`)."""

    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,39})?$",
        description="What its rows say they are from; empty is the last part of `path`, without the file's ending.",
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="Its share of the training rows is this over the sum of all weights, rounded down; all sets have "
        "one or none has. The rows of smallest seeded hash are drawn, none twice: a set that grows, or a larger total, "
        "keeps what it drew before but for its share of the new rows. The total is dataset.limit, or as many as the "
        "set with the fewest rows for its weight allows: it is said which set that is, and how many rows the others "
        "do not give. Held-out rows are not weighed.",
    )

    @property
    def called(self) -> str:
        """`name`, or what `path` is called."""
        last = ENDINGS.sub("", PurePosixPath(self.path.rpartition(":")[2]).name)
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", last)[:40].strip(".-_")


class Dataset(Source):
    """`dataset:` in a profile."""

    sets: list[MixedSet] = added_field(
        [],
        description="Several sets, mixed: each {path: …} with its own split, test_path, columns, turns, limit and so "
        "on, and with a weight or a limit; then these stay empty beside `sets`, but for limit and test_limit, which "
        "are of all sets together. A prompt that several have counts once, with the answers of the first.",
    )
    test_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Part of the rows held out when there is no test set of its own: of all conversations that begin "
        "alike (through the first user turn) all or none.",
    )
    max_rejected: float = added_field(
        0.5,
        ge=0,
        le=1,
        description="The run fails where a larger part of a source's rows is rejected; rows that are there twice do "
        "not count. 1 takes what is left.",
    )
    shard_rows: int = Field(
        512,
        ge=1,
        description="Aimed-at rows in a shard of prompts; real shards have a quarter to twice as many, the last one "
        "of a split possibly fewer.",
    )

    @property
    def parts(self) -> dict[str, Source]:
        """Name → set, in order; one set alone has the empty name: none of its rows has to say where it is from."""
        return {one.called: one for one in self.sets} if self.sets else {"": self}

    @property
    def weights(self) -> list[float]:
        """Of the sets in order; empty where they are not weighed."""
        return [one.weight for one in self.sets if one.weight is not None]

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, given: object) -> object:
        if isinstance(given, list):
            raise ValueError("is one mapping; write several sets as `sets: […]` in it")
        return given

    @model_validator(mode="after")
    def _sets_are_clear(self) -> Dataset:
        """Every set is named once, and nothing is said both of one set and of all."""
        if not self.sets:
            return self
        if len(self.sets) == 1:
            raise ValueError("`sets` is for two or more; write one set without it, as dataset.path and so on")
        for name, field in Source.model_fields.items():
            if name not in ("limit", "test_limit") and getattr(self, name) != field.get_default(
                call_default_factory=True
            ):
                raise ValueError(f"`{name}` stands beside `sets`; put it into the set that it is of")
        for number, one in enumerate(self.sets):
            if not one.called:
                raise ValueError(f"sets.{number} has no name; give it a path that ends in one, or `name`")
            if one.weight and one.limit:
                raise ValueError(f"sets.{number} ({one.called}) has both a weight and a limit; give one of them")
        twice = [name for name, times in Counter(one.called for one in self.sets).items() if times > 1]
        if twice:
            raise ValueError(f"`sets` has the name {twice[0]} twice; tell them apart with `name`")
        if 0 < len(self.weights) < len(self.sets):
            lacking = next(one.called for one in self.sets if one.weight is None)
            raise ValueError(f"`sets` has weights, and {lacking} has none; give every set one, or none")
        return self
