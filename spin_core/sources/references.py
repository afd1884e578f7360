"""What a step reads or has written, by content; and artifacts of the store by their digest.

Is not: how a folder or hub id is found and hashed (`spin_core/sources/resolve.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spin_core.errors import BadInput
from spin_core.store.store import Store

SourceKind = Literal["model", "dataset", "tasks", "pairs", "checkpoint"]
"""`pairs` and `checkpoint`: what is imported (`folders.py`)."""


@dataclass(frozen=True)
class Ref:
    """What a step reads or has written, by content. Small: this is all that goes through Prefect.

    A tree in the store (`digest`), one file in a tree (`digest` of the file, `tree`, `file`), or a source outside
    (`path`; `kind` and `split` say what of it counts, see `resolve.py`).
    """

    digest: str
    tree: str = ""
    file: str = ""
    path: str = ""
    kind: SourceKind = "dataset"
    split: str = ""
    stamp: str = ""
    """`resolve.stamp` before it was hashed. While it is the same, the source is not hashed again; no key has it."""
    hub: str = ""
    """`org/name@commit` of a source that was downloaded; the record has it, and no key does."""

    def locate(self, store: Store) -> Path:
        if self.path:
            return Path(self.path)
        return store.input_tree(self.tree or self.digest) / self.file


RefInputs = Mapping[str, Ref | Sequence[Ref]]


def artifact(store: Store, digest: str, kind: SourceKind) -> Ref:
    """An artifact of the store, verified; where it was imported from goes to `store.notes`.

    Raises BadInput where the store has none of this digest, or one that is no `kind`.
    """
    named = [one for one in store.records() if one.digest == digest]
    record = next((hit for one in named if (hit := store.lookup(one.stage, one.key))), None)
    if record is None:
        raise BadInput(
            f"{digest[:12]}: the store has no artifact of this digest; import it again, or name the folder or hub id."
        )
    wanted = "config.json" if kind in ("model", "checkpoint") else "train_prefs-00000-of-00001.parquet"
    if not (record.path / wanted).is_file():
        raise BadInput(f"{digest[:12]}: {record.stage}'s output is no {kind} (it has no {wanted}); name another.")
    hubs: list[str] = next(iter((record.facts.get("sources") or {}).values()), [])
    hub = hubs[0] if hubs and record.stage.startswith("import") else ""
    note = f"{kind} {digest[:12]} of the store is used, {f'imported from {hub}' if hub else f'made by {record.stage}'}."
    if note not in store.notes:
        store.notes.append(note)
    return Ref(digest=digest, kind=kind, hub=hub)


def origin(ref: Ref) -> str:
    """Where it comes from, for a step's label: no path of this machine."""
    if ref.hub:
        name, _, commit = ref.hub.rpartition("@")
        return f"from {name}@{commit[:8]}"
    return "from a local copy" if ref.path else "from the store"
