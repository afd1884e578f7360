"""Imported things by name: what a profile or the command line calls a pair set or a checkpoint from elsewhere.

Is not: the import (`spin_core/stages/import_pairs.py`, `import_model.py`), nor the choice of files
(`spin_core/sources/published_files.py`). A name is a folder, a hub id (`org/name`, `org/name/folder`, with
`@revision`), or the content digest of an artifact that the store has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_core.errors import BadInput
from spin_core.sources import resolve
from spin_core.store.keys import DIGEST
from spin_core.store.store import Store

AT = re.compile(r"([\w.-]+/[\w./-]+)@([\w./-]+)")


@dataclass(frozen=True)
class Ref:
    """What a step reads or has written, by content. Small: this is all that goes through Prefect.

    A tree in the store (`digest`), one file in a tree (`digest` of the file, `tree`, `file`), or a source outside
    (`path`; `kind` and `split` say what of it counts, see `sources.resolve`).
    """

    digest: str
    tree: str = ""
    file: str = ""
    path: str = ""
    kind: resolve.SourceKind = "dataset"
    split: str = ""
    stamp: str = ""
    """`sources.stamp` when it was hashed. While it is the same, the source is not hashed again; no key has it."""
    hub: str = ""
    """`org/name@commit` of a source that was downloaded; the record has it, and no key does."""

    def locate(self, store: Store) -> Path:
        if self.path:
            return Path(self.path)
        return store.input_tree(self.tree or self.digest) / self.file


RefInputs = Mapping[str, Ref | Sequence[Ref]]


def source(
    path: str, kind: resolve.SourceKind, revision: str, base_dir: Path, split: str, notes: list[str] | None = None
) -> Ref:
    """A model or dataset outside the store, by its content at this moment; `notes` gets what the user should know of
    it. Raises BadInput naming it."""
    resolved = resolve.resolve(path, kind, revision, base_dir, split)
    if resolved.note and notes is not None and resolved.note not in notes:
        notes.append(resolved.note)
    return Ref(
        digest=resolved.digest,
        path=str(resolved.path),
        kind=kind,
        split=split,
        stamp=resolved.stamp or resolve.stamp(resolved.path),
        hub=f"{path}@{resolved.revision}" if resolved.revision else "",
    )


def find(
    store: Store, place: str, kind: resolve.SourceKind, revision: str = "", base_dir: Path = Path(), split: str = ""
) -> Ref:
    """What `place` names, by content: a model, dataset or pair set outside the store, or an artifact of it.

    The revision may stand behind a hub id. What the user should know goes to `store.notes`. Raises BadInput
    naming the place.
    """
    if DIGEST.fullmatch(place):
        return artifact(store, place, kind)
    if not is_here(place, base_dir) and not revision and (named := AT.fullmatch(place)):
        place, revision = named[1], named[2]
    return source(place, kind, revision, base_dir, split, store.notes)


def is_here(place: str, base_dir: Path) -> bool:
    """Whether `place` is a path of this machine, which no page that is sent on should have."""
    return any(path.exists() for path in (base_dir / place, Path(place)))


def artifact(store: Store, digest: str, kind: resolve.SourceKind) -> Ref:
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
