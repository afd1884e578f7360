"""A folder of task files of one's own: which files it is, and that nothing in it runs.

Reads YAML only; does not know lm_eval. Refused are Python and what makes lm_eval or `datasets` run some (`!function`,
`class`, metrics off the hub), and data outside of the folder, which no key would have. Templates stay: they are
rendered in jinja's sandbox (`spin_core/engines/harness/calls.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spin_core.config import yaml_reader
from spin_core.data.readers import file_names
from spin_core.errors import BadInput

BUILDERS = ("json", "csv", "parquet", "text", "arrow")  # of datasets; its `pandas` and others read pickles
CODE = {"class", "custom_dataset", "unsafe_code", "hf_evaluate", "use_prompt"}
IGNORED = ("__pycache__", ".ipynb_checkpoints")  # as lm_eval's own walk does
FIX = "fix the file"


def files(folder: Path) -> list[str]:
    """The files that count, by their path in the folder. Raises BadInput where one of them is code or makes some run,
    or a task's data lies elsewhere."""
    if not folder.is_dir():
        raise BadInput(f"harness.include_path: {folder} is no folder; give the one that has the task files.")
    names = [name for name in sorted(file_names(folder)) if not set(name.split("/")) & set(IGNORED)]
    code = next((name for name in names if name.endswith((".py", ".pyc", ".so"))), None)
    if code:
        raise BadInput(
            f"{folder / code}: nothing that comes with tasks runs here; say it in the task's YAML and take it out."
        )
    tasks = [folder / name for name in names if name.endswith(".yaml")]
    if not tasks:
        raise BadInput(f"harness.include_path: {folder} has no .yaml file; put the task files there.")
    for file in tasks:
        read(file, folder)
    return names


def read(file: Path, folder: Path) -> dict[str, Any]:
    """The content of one task file, what it includes put in, its data files as absolute paths. Raises BadInput naming
    the file."""
    content = _with_includes(file, folder, ())
    for place in mappings(content):
        if code := next((key for key in CODE if place.get(key)), None):
            raise BadInput(
                f"{file}: `{code}` would run code, and nothing that comes with tasks runs here; take it out."
            )
        if place.get("dataset_path") or place.get("dataset_kwargs"):
            _data(place, file, folder)
    return content


def _with_includes(file: Path, folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise BadInput(f"{above[-1]}: it includes {file}, and there is no such file in {folder}; {FIX}.")
    if file in above:
        raise BadInput(f"{file}: it includes itself; {FIX}.")
    content = yaml_reader.read_file(file)
    if not isinstance(content, dict):
        raise BadInput(f"{file}: a task file is a mapping (task: …); {FIX}.")
    named = content.pop("include", [])
    merged: dict[str, Any] = {}
    for name in named if isinstance(named, list) else [named]:
        included = _with_includes(file.parent / str(name), folder, (*above, file))
        included.pop("task_list", None)  # as lm_eval: it defines the included file's own tasks
        merged |= included
    return merged | content


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in the content, itself included."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from mappings(inner)


def _data(place: dict[str, Any], file: Path, folder: Path) -> None:
    """Resolve the data files of one task in place. A dataset of the hub (org/name) is left as it is."""
    path, given = str(place.get("dataset_path") or ""), dict(place.get("dataset_kwargs") or {})
    if path and path not in BUILDERS:
        if path.count("/") == 1 and path[0] not in "./~" and not (file.parent / path).exists():
            return
        raise BadInput(
            f"{file}: dataset_path is {path}; use {', '.join(BUILDERS)} with data_files in this folder, or a hub id "
            "(org/name)."
        )
    if path and (not given.get("data_files") or given.get("data_dir")):
        raise BadInput(f"{file}: dataset_path {path} needs dataset_kwargs.data_files, files in this folder; {FIX}.")
    if given.get("data_files"):
        given["data_files"] = _resolved(given["data_files"], file, folder)
        place["dataset_kwargs"] = given


def _resolved(value: Any, file: Path, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _resolved(inner, file, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, file, folder) for inner in value]
    for base in (file.parent, folder):
        place = (base / str(value)).resolve()
        if not Path(str(value)).is_absolute() and place.is_file() and place.is_relative_to(folder.resolve()):
            return str(place)
    raise BadInput(f"{file}: there is no file {value} in {folder}, where a task's data must be; fix data_files.")
