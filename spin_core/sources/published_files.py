"""Which files of a published SPIN pair set are imported: names in a folder, or in a hub repository.

Is not: the reading of rows (`spin_core/data/rows.py`), nor the finding of places (`spin_core/sources/resolve.py`). A
pair set has parquet files named for their split, `train…` or `train_prefs…` and `test…` or `test_prefs…` (the published
SPIN_iter sets and spinloop's own). What only spinloop writes beside its pairs is taken with them, so that a tree of a
store that was copied elsewhere comes back as the same content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from spin_core.data.readers import split_of
from spin_core.errors import BadInput

SPLITS = {"train": ("train", "train_prefs"), "test": ("test", "test_prefs")}
QUALITY = "quality.json"
WITH_PAIRS = (QUALITY, "truncated.jsonl", "engine_logps.jsonl")


def pair_files(names: Sequence[str], where: str) -> dict[str, list[str]]:
    """Split (train, test) → its parquet files, sorted. Raises BadInput, naming `where`, unless there are train pairs of
    exactly one configuration."""
    parquet = [PurePosixPath(name) for name in sorted(names) if name.endswith(".parquet") and "/." not in f"/{name}"]
    if not parquet:
        raise BadInput(f"{where}: there is no .parquet file in it; a pair set has train and test files of that kind.")
    files: dict[str, list[str]] = {"train": [], "test": []}
    for path in parquet:
        split = next((split for split, known in SPLITS.items() if split_of(path) in known), None)
        if split is None and len(parquet) == 1:
            split = "train"
        if split:
            files[split].append(str(path))
    if not files["train"]:
        raise BadInput(
            f"{where}: no parquet file is named for a split train or train_prefs (there is {parquet[0]}); name the "
            "folder that has the pairs."
        )
    folders = sorted({str(PurePosixPath(name).parent) for part in files.values() for name in part})
    if len(folders) > 1:
        raise BadInput(f"{where}: it has several pair sets; name one, say {where.partition('@')[0]}/{folders[0]}.")
    return files


def pair_names(names: Sequence[str], where: str) -> list[str]:
    """All files of a pair set: its parquet files, and what gather wrote beside them if it did. Raises BadInput as
    `pair_files`."""
    files = pair_files(names, where)
    parquet = files["train"] + files["test"]
    folder = PurePosixPath(parquet[0]).parent
    own = [str(folder / name) for name in WITH_PAIRS]
    return sorted(parquet + ([name for name in own if name in names] if str(folder / QUALITY) in names else []))
