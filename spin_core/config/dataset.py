"""`dataset:` in a profile: which rows, and which of them are held out."""

from __future__ import annotations

from pydantic import Field

from spin_core.config.base import Section, added_field
from spin_core.config.choices import Turns


class Dataset(Section):
    """`dataset:` in a profile."""

    path: str = Field(
        "", description="A .parquet, .jsonl or .json file, a folder of them, a hub id (org/name), or builtin:tasks."
    )
    test_path: str = Field("", description="Held-out rows in a file of their own; empty splits them off `path`.")
    split: str = Field("train", description="Split of a hub dataset (or of a folder with files named so) to train on.")
    test_split: str = Field("", description="Split of a hub dataset held out; empty splits rows off `split`.")
    revision: str = Field("", description="Hub revision; the commit it resolves to enters the key.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Your column names, where they are not messages, prompt/response, question/answer or "
        "instruction/input/output: {prompt: …, answer: …, system: …} or {messages: …}.",
    )
    turns: Turns = Field("first", description="Which assistant turns of a conversation become rows.")
    limit: int = Field(0, ge=0, description="At most this many training rows, drawn by seed; 0 is all.")
    test_limit: int = Field(0, ge=0, description="At most this many held-out rows, drawn by seed; 0 is all.")
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="Part of the rows held out when there is no test set of its own."
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
    frac_len: int = added_field(
        0,
        ge=0,
        description="Take only one slice of so many rows of each split, as the published scripts do: the rows in "
        "source order (rejects count), shuffled by numpy's default_rng(42), slice number `data_frac`. test_fraction, "
        "limit and test_limit then apply to the slice. 0 is all rows.",
    )
    data_frac: int = added_field(0, ge=0, description="Which slice of `frac_len` rows, from 0.")
