"""Where a model or dataset comes from: a local path or hub id, as files on disk and the digest of their content.

Reads and downloads only; runs no code that comes with a model or a dataset, and refuses a model that needs some.
An existing local path wins over a hub id of the same name. Hub ids are downloaded at one commit into huggingface_hub's
own cache; only the files that are used are fetched, and only they enter the digest (`spin_core/sources/hub.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from spin_core.data.readers import SUFFIXES, below, choose_files, data_files, is_saved
from spin_core.errors import BadInput
from spin_core.sources import hub, published_files, remote_code, task_folder
from spin_core.store.digest import FileEntry, file_digest, tree_digest

SourceKind = Literal["model", "dataset", "tasks", "pairs", "checkpoint"]
"""`pairs` and `checkpoint`: what is imported (`spin_core/sources/published_files.py`)."""
HUB_KIND: dict[str, hub.HubKind] = {"pairs": "dataset", "checkpoint": "model"}
SETTINGS = ("*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja")
WEIGHTS = ("*.safetensors",)
LONGEST_JSON = 64 << 20  # of a config or index; tokenizer.json is not read here
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """What a path or hub id leads to: content digest (64 hex digits), path on disk, a name for people, and the hub's
    commit or ''."""

    digest: str
    path: Path
    label: str
    revision: str
    stamp: str = ""
    """`stamp` of the path from before it was hashed."""
    note: str = ""
    """A sentence for the user, where it is not what the hub has now."""


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


def resolve(path: str, kind: SourceKind, revision: str, base_dir: Path, split: str = "") -> ResolvedSource:
    """Find `path` (from `base_dir`, then from here), or on the hub at `revision` (empty: its main branch).

    Of a dataset folder only the files of `split` count (`readers.choose_files`); `org/name/folder` picks one
    configuration of a hub dataset. Raises BadInput for what is missing or cannot be used, with the remedy.
    """
    local = _local(path, base_dir)
    if kind == "tasks":
        return _tasks(path, local)
    if local is None:
        return _from_hub(path, kind, revision, split)
    if revision:
        raise BadInput(f"{kind}.revision: {path} is a local {kind}, which has no revisions; leave `revision` empty.")
    try:
        before = stamp(local)
        if kind in ("model", "checkpoint"):
            check_model(local)
            names = _weight_files(kind, published_files.local_names(local, below(local)))
            return ResolvedSource(_digest(local, names), local, path, "", before)
        if kind == "pairs" and local.is_dir():
            names = published_files.pair_names(published_files.local_names(local, below(local)), str(local))
            return ResolvedSource(_digest(local, names), local, path, "", before)
        return ResolvedSource(_dataset_digest(local, split), local, path, "", before)
    except OSError as error:
        raise BadInput(f"{local}: cannot be read ({error.strerror}); fix its permissions or name another.") from error


def _tasks(path: str, local: Path | None) -> ResolvedSource:
    """A folder of task files for lm-evaluation-harness: all of it counts."""
    if local is None:
        raise BadInput(f"harness.include_path: there is no folder {path}; give the one that has the task files.")
    before = stamp(local)
    return ResolvedSource(_digest(local, task_folder.files(local)), local, path, "", before)


def is_local(path: str, base_dir: Path) -> bool:
    """Whether `resolve` would take `path` for a place on this machine."""
    return not path.startswith("builtin:") and _local(path, base_dir) is not None


def check_model(folder: Path, weights: bool = True) -> None:
    """Raise BadInput unless `folder` is a complete safetensors model that loads without running code of its own.

    `weights` False leaves out the look at the weight files (they are not downloaded yet).
    """
    if not folder.is_dir():
        raise BadInput(f"Model {folder}: this is a file; give the directory that save_pretrained wrote.")
    if (folder / "adapter_config.json").is_file():
        raise BadInput(
            f"Model {folder}: this is an adapter, not a whole model; merge it into its base model (peft's "
            "merge_and_unload) and save that."
        )
    if not (folder / "config.json").is_file():
        raise BadInput(f"Model {folder}: there is no config.json; give the directory that save_pretrained wrote.")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file() and (setting := remote_code.code_setting(_json(folder / name))):
            raise BadInput(
                f"Model {folder}: its {name} has `{setting}`, so it needs code of its own, which is never run here; "
                f"use a model whose architecture transformers has, or take out `{setting}` if it does."
            )
    if weights:
        _check_weights(folder)


def _check_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        _refuse_weights(str(folder), [p.name for p in folder.iterdir()])
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _json(index).get("weight_map")
        wanted = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
        outside = [name for name in wanted if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:  # transformers would read it, and neither its content nor its kind would have been looked at
            raise BadInput(
                f"Model {folder}: {index.name} names {outside[0]!r}, which is no .safetensors file of this folder; "
                "copy the model again."
            )
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise BadInput(f"Model {folder}: {missing[0]} is missing, which {index.name} names; copy the model again.")


def _refuse_weights(where: str, names: list[str]) -> None:
    pickled = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PICKLED))
    if pickled:
        raise BadInput(
            f"Model {where}: its weights are pickled ({pickled[0]}), which can run code and is not read here; load "
            "them where you trust them and save with save_pretrained(safe_serialization=True)."
        )
    raise BadInput(f"Model {where}: there is no .safetensors file in it; give a directory with weights.")


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LONGEST_JSON:
            raise BadInput(f"{file}: over {LONGEST_JSON >> 20} MiB is no model's; copy the model again.")
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: broken JSON ({error}); fix it or copy the model again.") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: not a JSON object; fix it or copy the model again.")
    return value


def model_files(names: list[str], patterns: tuple[str, ...] = SETTINGS + WEIGHTS) -> list[str]:
    """The names that matter, at the top only: a checkpoint's sub-folders are other models or formats."""
    return sorted(n for n in names if any(fnmatch(n, p) and n.count("/") == p.count("/") for p in patterns))


def _weight_files(kind: SourceKind, names: list[str]) -> list[str]:
    read = model_files(names)
    return published_files.weight_names(names, read) if kind == "checkpoint" else read


def _local(path: str, base_dir: Path) -> Path | None:
    """The existing local path, None for what may be a hub id. Raises BadInput for what can only be a local path."""
    if not path:
        raise BadInput("The path is empty; give a local path or a hub id (org/name).")
    try:
        given = Path(path).expanduser()
    except RuntimeError:  # ~name, of nobody here
        given = Path(path)
    for place in (base_dir / given, given):
        try:
            if place.exists():
                return place.resolve()
        except OSError as error:
            raise BadInput(f"{place}: cannot be read ({error.strerror}); fix its permissions.") from error
    looks_local = given.is_absolute() or path[0] in ".~" or given.suffix in SUFFIXES or path.endswith("/")
    if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,5}", path):
        raise BadInput(
            f"{path}: there is no such file or folder (looked from {base_dir} and from here); check the path."
        )
    return None


def _digest(root: Path, names: list[str]) -> str:
    """Digest of files by relative name. Links are followed: in huggingface_hub's cache every file is one."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:  # the digest is over UTF-8
            raise BadInput(f"{root / name}: the file's name is not UTF-8; rename it.") from None
    return tree_digest([_entry(root / name, name) for name in sorted(names)])


def _entry(file: Path, name: str) -> FileEntry:
    try:
        size, sha256 = file_digest(file.resolve())
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); check the file's permissions.") from error
    return {"path": name, "size": size, "sha256": sha256}


def _dataset_digest(path: Path, split: str) -> str:
    if is_saved(path):
        return _digest(path, [p.relative_to(path).as_posix() for p in below(path) if p.is_file()])
    files = data_files(path, split)
    if path.is_file():
        # A renamed file is the same data, but its ending says how it is read.
        return tree_digest([_entry(path, f"data{path.suffix.lower()}")])
    return _digest(path, [file.relative_to(path).as_posix() for file in files])


def _from_hub(path: str, kind: SourceKind, revision: str, split: str) -> ResolvedSource:
    parts = path.split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    of_hub: Any = HUB_KIND.get(kind, kind)
    if of_hub == "model" and inner:
        raise BadInput(
            f"{path}: there is no such folder, and a model's hub id has the form org/name; check `model.path`."
        )
    listed = hub.listing(repo, of_hub, revision)
    names, commit = listed.names, listed.commit
    label = f"{path}@{commit[:8]}"
    if of_hub == "model":
        if not model_files(names, WEIGHTS):
            _refuse_weights(label, names)
        check_model(hub.download(repo, of_hub, listed, model_files(names, SETTINGS)), weights=False)
        chosen = _weight_files(kind, names)
        folder = hub.download(repo, of_hub, listed, chosen)
        _check_weights(folder)
        return ResolvedSource(_digest(folder, chosen), folder, label, commit, note=listed.note)
    within = [name for name in names if name.startswith(f"{inner}/")] if inner else names
    if kind == "pairs":
        chosen = published_files.pair_names(within, label)
        root = hub.download(repo, of_hub, listed, chosen) / inner
        own = [name[len(inner) + 1 :] if inner else name for name in chosen]
        return ResolvedSource(_digest(root, own), root, label, commit, note=listed.note)
    chosen = choose_files(within, split, label)
    folders = sorted({name.rpartition("/")[0] for name in chosen})
    if len(folders) > 1:
        raise BadInput(f"{label}: it has several configurations; give one as `dataset.path`, say {repo}/{folders[0]}.")
    root = hub.download(repo, of_hub, listed, chosen) / inner
    return ResolvedSource(_dataset_digest(root, split), root, label, commit, note=listed.note)
