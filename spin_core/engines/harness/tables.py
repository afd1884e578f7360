"""What lm_eval gave, as the stage's files: one line per task and group, one row per item, its own log of samples."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.errors import BadInput

if TYPE_CHECKING:
    from spin_core.config.harness import HarnessTask

REVISION = re.compile(r"@([0-9a-f]{40})(?:/|$)")


def lines(results: dict[str, Any], entry: HarnessTask, folder: Path | None, digest: str) -> dict[str, dict[str, Any]]:
    """The entry's part of `results.json`: its task, or its group with `subtasks`, or each task of a tag.

    `folder` and `digest`: of the local tasks, whose data has its path in that folder and that digest as revision.
    """
    tasks = {name: _task(results, name, entry, folder, digest) for name in results["loaded"]["tasks"]}
    if entry.task not in results["loaded"].get("groups", {}):
        return tasks
    weights = [1 if entry.mean == "subtasks" else line["rows"] for line in tasks.values()]
    shots = {line["num_fewshot"] for line in tasks.values()}
    errors = [line["stderr"] for line in tasks.values()]
    # Of a weighted mean of independent means. (lm_eval pools the variances instead: the same but for terms of 1/n.)
    error = None if None in errors else math.sqrt(sum((w * e) ** 2 for w, e in zip(weights, errors, strict=True)))
    first = next(iter(tasks.values()))
    group = {
        "metric": first["metric"],
        "value": sum(w * line["value"] for w, line in zip(weights, tasks.values(), strict=True)) / sum(weights),
        "stderr": None if error is None else error / sum(weights),
        "rows": sum(line["rows"] for line in tasks.values()),
        "of": sum(line["of"] for line in tasks.values()),
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        "version": results["versions"].get(entry.task),
        "higher_is_better": first["higher_is_better"],
        "prompts_sha256": _sha256(line["prompts_sha256"] for line in tasks.values()),
        "dataset": first["dataset"],
        "mean": entry.mean,
        "subtasks": tasks,
    }
    return {entry.task: group}


def _task(results: dict[str, Any], name: str, entry: HarnessTask, folder: Path | None, digest: str) -> dict[str, Any]:
    values, metric = results["results"][name], _metric(results["results"][name], name, entry.metric)
    measure, _, filter_name = metric.partition(",")
    return {
        "metric": metric,
        "value": float(values[metric]),
        "stderr": _number(values.get(f"{measure}_stderr,{filter_name}")),
        "rows": results["n-samples"][name]["effective"],
        "of": results["n-samples"][name]["original"],
        "num_fewshot": results["n-shot"][name],
        "version": results["versions"][name],
        "higher_is_better": bool(results["higher_is_better"][name].get(measure, True)),
        "prompts_sha256": _sha256(one["prompt_hash"] for one in _samples(results, name, filter_name)),
        "dataset": _dataset(results["loaded"]["tasks"][name], folder, digest),
    }


def _metric(results: dict[str, Any], name: str, wanted: str) -> str:
    """The `metric,filter` of a task that is reported, by name or the first. Raises BadInput where there is none."""
    known = [key for key in results if "," in key and not key.partition(",")[0].endswith("_stderr")]
    fitting = [key for key in known if wanted in ("", key, key.partition(",")[0])]
    if not fitting:
        raise BadInput(f"harness.tasks: {name} has no metric {wanted}; it has {'; '.join(known) or 'none'}.")
    if _number(results[fitting[0]]) is None:
        raise BadInput(
            f"harness.tasks: {name}: its {fitting[0]} is {results[fitting[0]]!r}, not finite; choose another metric."
        )
    return fitting[0]


def _number(value: Any) -> float | None:
    """A finite number, also one of numpy's; None for anything else, such as lm_eval's "N/A"."""
    number = value.item() if hasattr(value, "item") else value
    return float(number) if isinstance(number, int | float) and math.isfinite(number) else None


def _samples(results: dict[str, Any], name: str, filter_name: str) -> list[dict[str, Any]]:
    chosen = [one for one in results["samples"][name] if one["filter"] == filter_name]
    return sorted(chosen, key=lambda one: one["doc_id"])


def rows(results: dict[str, Any], lines: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per item of the tasks in `lines`, with the value of the task's metric. A metric without a number per item
    (a corpus BLEU) gives none."""
    for name, line in lines.items():
        if "subtasks" in line:
            yield from rows(results, line["subtasks"])
            continue
        metric, _, filter_name = line["metric"].partition(",")
        for one in _samples(results, name, filter_name):
            if (value := _number(one.get(metric))) is not None:
                yield {"id": f"{name}/{one['doc_id']}", "task": name, "value": value}


def write_samples(results: dict[str, Any], out: Path) -> None:
    """lm_eval's log of every item, one file per task, in the form in which its command line writes them."""
    from lm_eval.utils import handle_non_serializable, sanitize_list

    for name, samples in results["samples"].items():
        with (out / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', name)}.jsonl").open("w", encoding="utf-8") as file:
            for one in samples:
                given = {
                    f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(args)}
                    for i, args in enumerate(one["arguments"])
                }
                as_text = {key: sanitize_list(one[key]) for key in ("resps", "filtered_resps")}
                line = {**one, **as_text, "arguments": given, "target": str(one["target"])}
                file.write(json.dumps(line, default=handle_non_serializable, ensure_ascii=False) + "\n")


def _dataset(task: Any, folder: Path | None, digest: str) -> dict[str, str]:
    """Where a task's items come from: files of the local folder with that folder's digest, or a hub id with its commit
    as far as `datasets` knows it. lm_eval's own tasks may have data files too, which are in no folder of ours."""
    config = task.config
    local = (config.dataset_kwargs or {}).get("data_files")
    if folder is not None and local:
        root, named = folder.resolve(), _paths(local)
        if all(path.is_relative_to(root) for path in named):
            return {"path": ", ".join(sorted(path.relative_to(root).as_posix() for path in named)), "revision": digest}
    path = "/".join(part for part in (config.dataset_path, config.dataset_name) if part)
    return {"path": path, "revision": _commit(task) or str((config.dataset_kwargs or {}).get("revision") or "")}


def _paths(value: Any) -> set[Path]:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return {path for part in parts for path in _paths(part)}
    return {Path(value)}


def _commit(task: Any) -> str:
    """The hub commit that the task's items were downloaded at, or empty."""
    for split in getattr(task, "dataset", {}).values():
        for url in getattr(split.info, "download_checksums", None) or {}:
            if match := REVISION.search(url):
                return match.group(1)
    return ""


def _sha256(texts: Any) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
