"""Which files are which split of which configuration: what `datasets` says of their names and of README.md
(`spin_core/data/sandbox/choice_child.py`); and how a file is read, by its ending.

Ours differs on purpose: a split that a file's name or folder spells (`train_sft.jsonl`) can be named, too; each file is
read by its own ending; what `datasets` would take for rows and cannot be read here is an error, not another table.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from spin_core.data.sandbox.templates import KEPT
from spin_core.errors import BadInput

CHILD = Path(__file__).parent / "sandbox" / "choice_child.py"
README = "README.md"
LONGEST_README = 4 << 20
KINDS = {
    ".jsonl": "jsonl", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow",
    ".txt": "text", ".ndjson": "jsonl",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
SUFFIXES = (*KINDS, *COMPRESSIONS)
READABLE = f"{', '.join(KINDS)} (or a text with {', '.join(COMPRESSIONS)} behind that)"
# `datasets` and the hub keep these beside the data; they hold no rows.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json"}


@dataclass(frozen=True)
class Choice:
    """Relative names in the order in which they are read, and what README.md says of how (`sep` of a csv file)."""

    files: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    declared: bool = False
    """Whether README.md names the files."""
    left: list[str] = field(default_factory=list)
    """Tables of the same split that are not read, as they are of another kind than the others."""

    @property
    def by_readme(self) -> bool:
        """Whether the names alone do not say what the rows are."""
        return bool(self.options) or self.files != sorted(self.files)


def how(name: str, where: str) -> tuple[str, str]:
    """Kind and compression of a file, by its ending. Raises BadInput, naming `where`, for what cannot be read."""
    path = PurePosixPath(name)
    packed = COMPRESSIONS.get(path.suffix.lower(), "")
    suffix = PurePosixPath(path.stem if packed else path.name).suffix.lower()
    kind = KINDS.get(suffix, "")
    if not kind:
        raise BadInput(f"{where}: cannot read a {path.suffix or 'suffixless'} file; give {READABLE}, or take it out.")
    if packed and kind in ("parquet", "arrow"):
        raise BadInput(f"{where}: a {kind} file is not read from within {path.suffix}; unpack it.")
    return kind, packed


def choose(names: list[str], readme: str, split: str, config: str, where: str) -> Choice:
    """Of relative names of files those of `split` (empty: of the only one) in the configuration `config`.

    Raises BadInput, naming `where`, where there is none, or where it is not said which."""
    listed = tuple(sorted(name for name in names if PurePosixPath(name).name not in NOT_DATA))
    answer = _answer(listed, readme, split, config)
    if answer.get("error", "no data") == "no data" and not answer.get("files"):
        raise BadInput(f"{where}: there is no {READABLE} file in it; check `dataset.path`.")
    if "error" in answer:
        raise BadInput(f"{where}: {answer['error']}.")
    for name in answer["files"]:
        how(name, f"{where}/{name}")
    return Choice(answer["files"], answer["options"], answer["declared"], answer["left"])


@lru_cache(maxsize=32)
def _answer(names: tuple[str, ...], readme: str, split: str, config: str) -> dict[str, Any]:
    return _child.ask({"names": names, "readme": readme, "split": split, "config": config})


class _Child:
    """The child of this process, ended by itself when nobody asks. Safe with threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forked)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            for _ in range(2 if self._process else 1):  # one that nobody asked for a while has ended
                self._process = self._process or self._started()
                assert self._process.stdin and self._process.stdout
                with suppress(OSError, ValueError):
                    self._process.stdin.write(json.dumps(request).encode() + b"\n")
                    self._process.stdin.flush()
                    answer: dict[str, Any] = json.loads(self._process.stdout.readline())
                    return answer
                code = self.end()
        return {"error": f"its files and README.md cannot be looked through (code {code}); name a folder with less"}

    @staticmethod
    def _started() -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name in KEPT}
        nowhere = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": os.devnull, "USE_TORCH": "0"}
        return subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | nowhere,
        )

    def end(self) -> int | None:
        child, self._process = self._process, None
        if child is None:
            return None
        child.kill()
        with suppress(OSError), child:  # what it was sent and did not read cannot be sent any more
            pass
        return child.wait()

    def _forked(self) -> None:
        """In a fork: another thread of the parent may have held the lock, and its child is not for us."""
        self._lock = threading.Lock()
        if self._process:
            self._process.returncode = 0  # nothing of it may be waited for
            self._process = None


_child = _Child()
atexit.register(_child.end)
