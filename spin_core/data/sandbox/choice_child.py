"""Which files of a folder or repository are one split of one configuration, as `datasets` has it, in a process of its
own: `python -P choice_child.py`.

It sees names and the text of README.md only: the files are empty ones in memory. README.md comes with the data and may
be made to hurt (YAML that unfolds, patterns that leave the folder, addresses), so time and addresses are limited, there
is no network, and a pattern that names another place is refused. `datasets` takes seconds to import; one child serves
a process.

In: JSON lines `{"names", "readme", "split", "config"}`. Out, a line each: `{"error"}` or `{"files", "left",
"options", "declared"}` (tables of another kind, which are not read; whether README.md names the files).
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.data_files import (
    SPLIT_KEYWORDS,
    DataFilesList,
    EmptyDatasetError,
    get_data_patterns,
    resolve_pattern,
    sanitize_patterns,
)
from datasets.load import infer_module_for_data_files_list
from datasets.packaged_modules import _ALL_ALLOWED_EXTENSIONS, _MODULE_TO_EXTENSIONS
from datasets.utils.metadata import MetadataConfigs
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import DatasetCard

CPU_SECONDS = 120.0
IDLE_SECONDS = 30
"""After which it ends: it holds 150 MiB."""
MEMORY = 1 << 30
PLACE = "memory://set"
READ = ("json", "csv", "parquet", "arrow", "text")
TABLES = {end for module in READ[:-1] for end in _MODULE_TO_EXTENSIONS[module]} - {".zip"}
ENDING = re.compile(r"(-\d{5}-of-\d{5}.*|(\.(jsonl?|ndjson|csv|tsv|parquet|arrow|txt|gz|bz2|zst))+)$", re.IGNORECASE)
# Of a configuration: what has no say in how rows are read, and what pandas is told of a csv file.
OTHER = {"data_files", "data_dir", "default", "description", "features", "version", "drop_labels"}
CSV = {
    "sep", "delimiter", "header", "names", "column_names", "quotechar", "escapechar", "skiprows", "comment", "encoding",
    "skipinitialspace", "doublequote", "quoting",
}  # fmt: skip


class Refused(Exception):
    """Why nothing can be chosen."""


def choose(names: list[str], readme: str, split: str, config: str) -> dict[str, Any]:
    """The files of `split` (empty: of the only one) in the order in which `datasets` reads them, and the options of
    the configuration. Raises Refused, and what `datasets` raises."""
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard(readme).data) if readme.startswith("---") else {}
    settings = _configuration(configs, config)
    base = f"{PLACE}/{_inside(settings.get('data_dir') or '')}".rstrip("/")
    given = settings.get("data_files")
    if given is None:  # notes, licences and pictures beside tables name no split and hold no rows
        names = [name for name in names if TABLES.intersection(_ends(name))] or names
    real = {_shown(name): name for name in names}
    _show(list(real))
    try:
        found_patterns = sanitize_patterns(given) if given is not None else get_data_patterns(base)
    except EmptyDatasetError:
        found_patterns = {}
    patterns = {str(key): value for key, value in found_patterns.items()}
    called = _called(split, patterns, [] if given is not None else list(real))
    files = [f"{PLACE}/{name}" for name in called] if isinstance(called, list) else _resolved(patterns[called], base)
    module, _ = infer_module_for_data_files_list([file for file in files if not file.lower().endswith(".zip")])
    if module and module not in READ:
        raise Refused(f"`datasets` reads its files as {module}, which is no table of texts; name the files that are")
    found = files
    if module and given is None:
        files = DataFilesList(files, []).filter(extensions=_MODULE_TO_EXTENSIONS[module])
    options = {name: value for name, value in settings.items() if name not in OTHER}
    unknown = [name for name in options if module != "csv" or name not in CSV]
    if unknown:
        raise Refused(f"README.md sets `{unknown[0]}` for its {module} files, which is not read here; take it out")
    kept, left = (
        [real[file.removeprefix(f"{PLACE}/")] for file in dict.fromkeys(some) if module]
        for some in (files, set(found) - set(files))
    )
    return {"files": kept, "left": sorted(left), "options": options, "declared": given is not None}


def _configuration(configs: dict[str, Any], config: str) -> dict[str, Any]:
    """The settings of the one that is meant."""
    if not configs and config not in ("", "default"):
        raise Refused(f"it has no configuration {config!r}, as README.md names none; leave `dataset.config` empty")
    if not configs:
        return {}
    name = config or MetadataConfigs(configs).get_default_config_name()
    if name not in configs:
        known = ", ".join(map(str, configs))[:500]
        missing = f"no configuration {config!r}" if config else "several configurations and none is its default"
        raise Refused(f"it has {missing}; set `dataset.config` to one of {known}")
    return dict(configs[name])


def _called(split: str, patterns: dict[str, Any], names: list[str]) -> str | list[str]:
    """The key of `patterns` for `split`, or the names that spell it where no key does."""
    if not patterns:
        raise Refused("no data")
    if split in patterns or (not split and len(patterns) == 1):
        return split or next(iter(patterns))
    known = ", ".join(patterns)[:500]
    if not split:
        raise Refused(f"it has the splits {known}, and none is named; set `dataset.split` and `dataset.test_split`")
    paths = [(name, PurePosixPath(name)) for name in names]
    if spelt := [name for name, path in paths if split in (ENDING.sub("", path.name), *path.parent.parts)]:
        return spelt
    for key, words in SPLIT_KEYWORDS.items():  # `dev` is `validation`
        if split in words and str(key) in patterns:
            return str(key)
    raise Refused(
        f"no file is named for the split {split!r}, but there are {known}; set `dataset.split` (and "
        "`dataset.test_split`) to one of these"
    )


def _shown(name: str) -> str:
    """`name` as `datasets` can see it: it knows no TRAIN.JSONL, and its patterns no line ends."""
    return ENDING.sub(lambda end: end[0].lower(), name).replace("\n", "\ufffd")


def _ends(name: str) -> list[str]:
    return [f".{end.lower()}" for end in PurePosixPath(name).name.split(".")[1:]]


def _show(names: list[str]) -> None:
    """Make these the files that `datasets` sees at PLACE."""
    fs = MemoryFileSystem()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    fs.pipe({f"/set/{name}": b"" for name in names})


def _resolved(patterns: list[str], base: str) -> list[str]:
    files: list[str] = []
    for pattern in patterns:
        try:
            found = resolve_pattern(_inside(pattern), base, allowed_extensions=_ALL_ALLOWED_EXTENSIONS)
        except FileNotFoundError:
            if not has_magic(pattern):
                raise Refused(f"README.md names the file {pattern!r}, which is not there; correct it") from None
            continue
        files += [f"{PLACE}/{file.removeprefix('memory://').removeprefix('/set/')}" for file in found]
    return files


def _inside(pattern: Any) -> str:
    parts = PurePosixPath(str(pattern)).parts
    if not isinstance(pattern, str) or "::" in pattern or ":/" in pattern or ".." in parts or "/" in parts[:1]:
        raise Refused(f"README.md names {str(pattern)[:200]!r} as data, which lies elsewhere; name files beside it")
    return pattern.removeprefix("./")


def _limit() -> None:
    """Addresses from here on, no files written, no core dump."""
    used = 0
    with suppress(OSError):
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0} | ({"RLIMIT_AS": used + MEMORY} if used else {})
    for name, most in limits.items():
        with suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, whose end closes our input


def main() -> None:
    """Serve until standard input ends, or nobody asks."""
    _limit()
    signal.alarm(IDLE_SECONDS)
    for line in sys.stdin.buffer:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            answer = choose(**json.loads(line))
        except Refused as error:
            answer = {"error": str(error)}
        except Exception as error:  # `datasets` and YAML raise a dozen unrelated classes
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; correct its README.md"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(IDLE_SECONDS)


if __name__ == "__main__":
    main()
