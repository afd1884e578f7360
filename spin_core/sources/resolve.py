"""Where a model, dataset or pair set comes from: what a profile or the command line calls it, to files on disk and the
digest of their content.

A name is a folder, a hub id (`org/name`, `org/name/folder`), or the content digest of an artifact that the store has.
Reads and downloads only; runs no code that comes with a model or a dataset, and refuses a model that needs some.
An existing local path wins over a hub id of the same name. Hub ids are downloaded at one commit into huggingface_hub's
own cache; only the files that are used are fetched, and only they enter the digest (`spin_core/sources/hub.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spin_core.data.choice import README, SUFFIXES, Choice, choose
from spin_core.data.readers import below, chosen, file_names, is_saved, read_readme
from spin_core.errors import BadInput
from spin_core.sources import folders, hub, pointers, task_folder
from spin_core.store.digest import FileEntry, file_digest, tree_digest
from spin_core.store.keys import DIGEST
from spin_core.store.store import Store

AT = re.compile(r"([\w.-]+/[\w./-]+)@([\w./-]+)")
SourceKind = Literal["model", "dataset", "tasks", "pairs", "checkpoint", "tokenizer"]
"""`pairs` and `checkpoint`: what is imported (`folders.py`); `tokenizer`: of a model what its tokens depend on."""


@dataclass(frozen=True)
class Ref:
    """What a step reads or has written, by content. Small: this is all that goes through Prefect.

    A tree in the store (`digest`), one file in a tree (`digest` of the file, `tree`, `file`), or a source outside
    (`path`; `kind`, `split` and `config` say what of it counts, see `resolve`).
    """

    digest: str
    tree: str = ""
    file: str = ""
    path: str = ""
    kind: SourceKind = "dataset"
    split: str = ""
    config: str = ""
    stamp: str = ""
    """`resolve.stamp` before it was hashed. While it is the same, the source is not hashed again; no key has it."""
    hub: str = ""
    """`org/name@commit` of a source that was downloaded; the record has it, and no key does."""

    def locate(self, store: Store) -> Path:
        if self.path:
            return Path(self.path)
        return store.input_tree(self.tree or self.digest) / self.file


RefInputs = Mapping[str, Ref | Sequence[Ref]]


def stamp(path: Path) -> str:
    """Sizes, modification times and inode numbers of the files below: the same while nobody writes to them."""
    files = sorted(below(path)) if path.is_dir() else [path]
    facts = [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino) for file in files for stat in [_stat(file)]]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _stat(file: Path) -> os.stat_result:
    """Of what a link leads to; of the link itself where it leads nowhere, which only matters if the file is needed."""
    try:
        return file.stat()
    except OSError:
        return file.lstat()


def find(
    store: Store,
    place: str,
    kind: SourceKind,
    revision: str = "",
    base_dir: Path = Path(),
    split: str = "",
    config: str = "",
) -> Ref:
    """What `place` names, by content: a model, dataset or pair set outside the store, or an artifact of it.

    The revision may stand behind a hub id. What the user should know goes to `store.notes`. Raises BadInput
    naming the place.
    """
    if DIGEST.fullmatch(place):
        return artifact(store, place, kind)
    if not is_here(place, base_dir) and not revision and (named := AT.fullmatch(place)):
        place, revision = named[1], named[2]
    return resolve(place, kind, revision, base_dir, split, store.notes, config)


def resolve(
    path: str,
    kind: SourceKind,
    revision: str,
    base_dir: Path,
    split: str = "",
    notes: list[str] | None = None,
    config: str = "",
) -> Ref:
    """Find `path` (from `base_dir`, then from here), or on the hub at `revision` (empty: its main branch).

    Of a dataset folder only the files of `split` in the configuration `config` count (`readers.chosen`), and its
    README.md where it says how they are read; `org/name/folder` picks a folder of a hub dataset. `notes` gets what the
    user should know of it. Raises BadInput for what is missing or cannot be used, with the remedy.
    """
    local = _local(path, base_dir)
    if local is None and kind == "tasks":
        raise BadInput(f"harness.include_path: there is no folder {path}; give the one that has the task files.")
    if local is None:
        return _from_hub(path, kind, revision, split, notes, config)
    if revision:
        raise BadInput(f"{kind}.revision: {path} is a local {kind}, which has no revisions; leave `revision` empty.")
    try:
        before = stamp(local)
        digest = _digest(local, _files(local, kind, split, config))
        return Ref(digest, path=str(local), kind=kind, split=split, config=config, stamp=before)
    except OSError as error:
        raise BadInput(f"{local}: cannot be read ({error.strerror}); fix its permissions or name another.") from error


def _files(place: Path, kind: SourceKind, split: str, config: str) -> list[str]:
    """The relative names of the files that count. Raises BadInput for what cannot be used."""
    if kind == "tasks":
        return task_folder.files(place)
    if kind == "tokenizer":
        folders.check_model(place, weights=False)
        return folders.tokenizer_files(file_names(place))
    if kind in ("model", "checkpoint"):
        folders.check_model(place)
    elif kind == "dataset" or not place.is_dir():
        if is_saved(place):
            return file_names(place)
        made = chosen(place, split, config)
        return [*made.files, README] if made.by_readme and (place / README).is_file() else made.files
    elif kind == "pairs":
        for name in pointers.links(place):
            pointers.refuse_link(place / name)
    return _chosen(kind, file_names(place), str(place))


def _chosen(kind: SourceKind, names: list[str], where: str) -> list[str]:
    """Of the names of all files those that count. Raises BadInput, naming `where`, where there are none."""
    if kind == "pairs":
        return folders.pair_names(names, where)
    if kind == "tokenizer":
        return folders.tokenizer_files(names)
    folders.require_weights(where, names)
    return folders.checkpoint_files(names) if kind == "checkpoint" else folders.model_files(names)


def is_here(path: str, base_dir: Path) -> bool:
    """Whether `path` is a place of this machine, which no page that is sent on should have."""
    return bool(path) and _place(path, base_dir) is not None


def _place(path: str, base_dir: Path) -> Path | None:
    """The existing local path. Raises BadInput where it may not be looked at, or its content was not fetched."""
    try:
        given = Path(path).expanduser()
    except RuntimeError:  # ~name, of nobody here
        given = Path(path)
    for place in (base_dir / given, given):
        try:
            if place.exists():
                return place.resolve()
            pointers.refuse_link(place)
        except OSError as error:
            raise BadInput(f"{place}: cannot be read ({error.strerror}); fix its permissions.") from error
    return None


def _local(path: str, base_dir: Path) -> Path | None:
    """The existing local path, None for what may be a hub id. Raises BadInput for what can only be a local path."""
    if not path:
        raise BadInput("The path is empty; give a local path or a hub id (org/name).")
    if place := _place(path, base_dir):
        return place
    looks_local = path[0] in "/.~" or Path(path).suffix in SUFFIXES or path.endswith("/")
    if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,5}", path):
        raise BadInput(
            f"{path}: there is no such file or folder (looked from {base_dir} and from here); check the path."
        )
    return None


def _digest(root: Path, names: list[str]) -> str:
    """Digest of files by relative name. Links are followed: in huggingface_hub's cache every file is one."""
    if root.is_file():
        # A renamed file is the same data, but its ending says how it is read.
        return tree_digest([_entry(root, f"data{root.suffix.lower()}")])
    return tree_digest([_entry(root / name, name) for name in sorted(names)])


def _entry(file: Path, name: str) -> FileEntry:
    try:
        pointers.refuse(file)
        name.encode()  # the digest is over UTF-8
        size, sha256 = file_digest(file.resolve())
    except UnicodeEncodeError:
        raise BadInput(f"{file}: the file's name is not UTF-8; rename it.") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); check the file's permissions.") from error
    return {"path": name, "size": size, "sha256": sha256}


def _from_hub(path: str, kind: SourceKind, revision: str, split: str, notes: list[str] | None, config: str) -> Ref:
    parts = path.split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    of_hub: hub.HubKind = "model" if kind in ("model", "checkpoint", "tokenizer") else "dataset"
    if of_hub == "model" and inner:
        raise BadInput(
            f"{path}: there is no such folder, and a model's hub id has the form org/name; check `model.path`."
        )
    listed = hub.listing(repo, of_hub, revision)
    names = [name for name in listed.names if name.startswith(f"{inner}/")] if inner else listed.names
    label = f"{path}@{listed.commit[:8]}"
    if kind == "dataset":
        wanted = _of_hub_set(repo, inner, listed, split, config, label)
    else:
        wanted = _chosen(kind, names, label)
    if of_hub == "model":  # before gigabytes are downloaded
        settings = folders.model_files(names, folders.SETTINGS)
        folders.check_model(hub.download(repo, of_hub, listed, settings), weights=False)
    root = hub.download(repo, of_hub, listed, wanted) / inner
    if of_hub == "model" and kind != "tokenizer":
        folders.check_model(root)
    own = [name.removeprefix(f"{inner}/") for name in wanted]
    if kind == "dataset":
        own = _files(root, kind, split, config)
    if listed.note and notes is not None and listed.note not in notes:
        notes.append(listed.note)
    hub_id = f"{path}@{listed.commit}"
    return Ref(_digest(root, own), path=str(root), kind=kind, split=split, config=config, stamp=stamp(root), hub=hub_id)


def _of_hub_set(repo: str, inner: str, listed: hub.Listing, split: str, config: str, label: str) -> list[str]:
    """The files of a hub dataset, or of its folder `inner`, that are read, and its README.md, which has a say in it.
    Raises BadInput where files of one name lie in several folders: those are configurations that nobody declared, and
    `datasets` would mix them."""
    before = f"{inner}/" if inner else ""
    names = [name.removeprefix(before) for name in listed.names if name.startswith(before)]
    readme = [README] if README in names else []
    text = read_readme(hub.download(repo, "dataset", listed, [before + README]) / inner) if readme else ""
    made: Choice = choose(names, text, split, config, label)
    folders_of: dict[str, set[str]] = {}
    for name in made.files:
        folder, _, file = name.rpartition("/")
        folders_of.setdefault(file, set()).add(folder)
    several = next((sorted(places) for places in folders_of.values() if len(places) > 1), None)
    if several and not made.declared:
        raise BadInput(f"{label}: it has several configurations; give one as `dataset.path`, say {repo}/{several[0]}.")
    return [before + name for name in (*made.files, *readme)]


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
    store.note_once(
        f"{kind} {digest[:12]}: taken from the store, {f'imported from {hub}' if hub else f'made by {record.stage}'}."
    )
    return Ref(digest=digest, kind=kind, hub=hub)


def tokenizer_of(store: Store, model: Ref) -> Ref:
    """The files of a model that its tokens depend on, by their own content: the same for every model that was trained
    from it, so that what is tokenized once is cached for all."""
    if not model.path:
        digest = tree_digest(store.files_of(model.digest, folders.tokenizer_files))
        return Ref(digest, tree=model.digest, kind="tokenizer")
    place = model.locate(store)
    digest = _digest(place, folders.tokenizer_files(file_names(place)))
    return Ref(digest, path=model.path, kind="tokenizer", stamp=stamp(place), hub=model.hub)


def origin(ref: Ref) -> str:
    """Where it comes from, for a step's label: no path of this machine."""
    if ref.hub:
        name, _, commit = ref.hub.rpartition("@")
        return f"from {name}@{commit[:8]}"
    return "from a local copy" if ref.path else "from the store"
