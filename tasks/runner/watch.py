"""A look at a run's dataset before it trains: what is new since the last run that trained on the same profile's rows.

Is not: a step. Nothing of it is in a key, and only rows and tokens, which the run needs anyway, are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_core.config.profile import Config
from spin_core.data import row_change
from spin_core.errors import BadInput
from spin_core.report import trained
from spin_core.report.watch import Seen
from spin_core.stages.reformat import anonymous
from spin_core.store import keys
from spin_core.store.explain import differences
from spin_core.store.record import Record
from spin_core.store.store import Store

LOOKED_AT = ("reformat", "tokenize")


def settings_of(config: Config) -> str:
    """A digest of all that a run is set to but for its name, its machine, and where its rows lie: a schedule may name
    each week's file."""
    payload = keys.config_payload(config)
    del payload["runtime"], payload["name"]
    return keys.key_of(payload | {"dataset": keys.config_payload(anonymous(config.dataset))})


def look(store: Store, config: Config, run: str, now: Mapping[str, Record], asked: bool = False) -> Seen:
    """What is new for the run of this name. `now`: records of its reformat and its rows' tokenize, as far as they are
    there; `asked`: a person wants steps computed again."""
    own = settings_of(config)
    since = trained.last(store, config.name, own, run)
    about: dict[str, Any] = {
        "since": since, "least": config.runtime.min_new_rows, "asked": asked,
        "same": since is not None and since.settings == own,
    }  # fmt: skip
    if since is None:
        return Seen(**about)
    rows, tokens = store.lookup("reformat", since.rows), store.lookup("tokenize", since.tokens)
    if rows is None or not _tree(store, rows).is_dir():
        return Seen(**about, why="the rows that it trained on are no longer in the store")
    if "reformat" not in now:
        return Seen(**about, why="the rows of today are not made yet")
    if changed := differences(_bare(rows), _bare(now["reformat"])):
        return Seen(**about, why=f"rows were made otherwise then ({changed[0]})")
    both = (tokens, now["tokenize"]) if tokens and "tokenize" in now else None
    try:
        return _compared(store, about, (rows, now["reformat"]), both)
    except (BadInput, OSError, ValueError, KeyError, TypeError) as error:  # a stranger's rows are no ground to fail
        return Seen(**about, why=f"a file of rows or tokens cannot be read ({type(error).__name__})")


def _compared(
    store: Store, about: dict[str, Any], rows: tuple[Record, Record], tokens: tuple[Record, Record] | None
) -> Seen:
    """Of rows, before and now, that may be compared; lengths in tokens where both are of the same tokenizer and chat
    template. Raises what reading damaged files raises."""
    before, now = (one.facts.get("summary", {}) for one in rows)
    trees = (_tree(store, tokens[0]), _tree(store, tokens[1])) if tokens else None
    about["shards"] = row_change.new_shards(*trees) if trees else None
    if rows[0].digest == rows[1].digest:
        return Seen(**about, change=row_change.unchanged(now))
    in_characters = "the tokens of then or of now are not there"
    if tokens:
        changed = differences(*(_bare(one, "tokenizer") for one in tokens))
        others = [one for one in changed if not one.startswith("shard_rows")]
        in_characters = others[0] if others else ""
    change = row_change.compare(_tree(store, rows[0]), _tree(store, rows[1]), None if in_characters else trees)
    if change.apart:
        return Seen(**about, why="no row is in both, so it is another dataset")
    rejected = {name: (row_change.duplicates(before, name), row_change.duplicates(now, name)) for name in change.parts}
    return Seen(**about, change=change, in_characters=in_characters, duplicates=rejected)


def _tree(store: Store, record: Record) -> Path:
    """Where an output lies: in a plan's own store, or in `store`, which may have to fetch it."""
    return record.path if record.path.is_dir() else store.tree(record.digest)


def _bare(record: Record, *inputs: str) -> keys.KeyPayload:
    """What a key was made of, with these inputs alone: rows of another source are what is compared."""
    kept = {name: digest for name, digest in record.payload["inputs"].items() if name in inputs}
    return {**record.payload, "inputs": kept}
