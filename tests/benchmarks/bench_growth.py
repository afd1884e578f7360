"""Time and memory against rows and shards: `python -m tests.benchmarks.bench_growth` (an hour for all).

`rows`: 10³ to 10⁶ synthetic rows through reformat, tokenize (a tokenizer of 512 tokens), gather, score's reader and the
store, each in a process of its own; answers in generate's format are made without a model. `shards`: full runs of the
flow with up to 5,000 shards of one row each, the first time and again. Results go to bench_growth.json, and as tables
to standard output (bench_growth.md has those of the machine that it names).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ROWS, SHARDS = (1_000, 10_000, 100_000, 1_000_000), (500, 1_000, 2_000, 5_000)
STAGES = ("resolve", "reformat", "reformat parquet", "tokenize", "gather", "read pairs", "publish", "look up")


def main() -> None:
    """Measure what is requested, and write the tables of all that was measured so far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--shards", type=int, nargs="*", default=SHARDS)
    parser.add_argument("--folder", type=Path, help="where the data goes (5 GB for a million rows)")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(measured(args.stage, args.folder)))
        return
    file = HERE / "bench_growth.json"
    results = json.loads(file.read_text()) if file.is_file() else {"rows": {}, "shards": {}}
    for count in args.rows:
        results["rows"][str(count)] = _in_folder(args.folder, lambda folder, n=count: _rows(folder, n))
        file.write_text(json.dumps(results, indent=1) + "\n")
    for count in args.shards:
        results["shards"][str(count)] = _in_folder(args.folder, lambda folder, n=count: _shards(folder, n))
        file.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results))


def _in_folder(parent: Path | None, work: Callable[[Path], dict]) -> dict:
    with tempfile.TemporaryDirectory(prefix="spinloop-growth-", dir=parent) as folder:
        return work(Path(folder))


def _rows(folder: Path, count: int) -> dict:
    """Seconds and MiB of every stage at so many rows."""
    from tests.benchmarks import growth_data
    from tests.text.token_trees import write_tokenizer

    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")
    growth_data.write_jsonl(folder / "rows.jsonl", count)
    measured: dict[str, Any] = {"bytes": (folder / "rows.jsonl").stat().st_size}
    for name in STAGES:
        if name == "reformat parquet":
            (folder / "rows.jsonl").unlink()
            growth_data.write_parquet(folder / "rows.parquet", count)
        if name == "tokenize":
            (folder / "rows.parquet").unlink()
        if name == "gather":
            growth_data.write_answers(folder / "tokens", folder / "answers")
        command = [sys.executable, "-m", "tests.benchmarks.bench_growth", "--stage", name, "--folder", str(folder)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        measured[name] = json.loads(done.stdout)
        print(count, name, measured[name], flush=True)
    assert measured["reformat"]["tree"] == measured["reformat parquet"]["tree"], "JSONL and parquet gave other rows"
    return measured


def measured(name: str, folder: Path) -> dict:
    """In a process of its own: seconds, processor seconds, largest resident MiB of it and of the children it had."""
    began, cpu = time.monotonic(), time.process_time()
    result = _stage(name, folder)
    result["seconds"], result["cpu"] = round(time.monotonic() - began, 2), round(time.process_time() - cpu, 2)
    return result | {"mib": peak(), "child_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10}


def peak(process: int | str = "self") -> int:
    """Largest resident size so far in MiB: VmHWM, as ru_maxrss is taken over from the process that started it."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) >> 10


def _stage(name: str, folder: Path) -> dict:
    from spin_core.config.chat import ChatSection
    from spin_core.job import Job
    from spin_core.modeling.collate import read_groups
    from spin_core.sources import resolve
    from spin_core.stages import gather, reformat, tokenize
    from spin_core.store.digest import manifest, tree_digest
    from spin_core.store.store import Store

    payload = {"store_format": 1, "stage": "gather", "version": 1, "config": {}, "inputs": {}}

    def job(out: str) -> Job:
        shutil.rmtree(folder / out, ignore_errors=True)
        (folder / out).mkdir()
        return Job(folder / out, folder / "scratch")

    if name == "resolve":
        resolve.resolve(str(folder / "rows.jsonl"), "dataset", "", folder)
        return {}
    if name.startswith("reformat"):
        source = folder / ("rows.jsonl" if name == "reformat" else "rows.parquet")
        made = job("reformat")
        reformat.run({"source": source}, reformat.Config(dataset=reformat.Dataset(), seed=1), made)
        return {"tree": tree_digest(manifest(made.out))}
    if name == "tokenize":
        # So many as at 512 where a token has 4 characters: the tokenizer's have 2.
        chat, part = ChatSection(max_prompt_length=1024), reformat.Dataset()
        how = tokenize.Config(chat=chat, max_rejected=part.max_rejected, shard_rows=part.shard_rows)
        inputs = {"tokenizer": folder / "tokenizer", "rows": folder / "reformat"}
        return {"shards": tokenize.run(inputs, how, job("tokens"))["shards"]}
    if name == "gather":
        trees: list[Path] = sorted((folder / "answers").iterdir())
        config = gather.Config(gather=gather.Gather(truncated="report"))
        read = {"rows": folder / "reformat", "tokens": folder / "tokens", "answers": trees}
        return {"pairs": gather.run(read, config, job("pairs"))["train_pairs"]}
    if name == "read pairs":
        groups = read_groups([folder / "pairs"], "train", 1 << 20)
        return {"pairs": len(groups), "labels": sum(tokens.targets for pair in groups for tokens in pair)}
    store = Store(folder / "store")
    if name == "publish":
        tree = store.new_tree()
        for file in (folder / "pairs").iterdir():
            file.rename(tree / file.name)
        store.publish(payload, tree, {})
        return {}
    from spin_core.store.keys import key_of

    assert store.lookup("gather", key_of(payload))
    return {}


def _shards(folder: Path, count: int) -> dict:
    """The flow with so many shards of one row: the first run, and one that finds everything."""
    profile = folder / "growth.yaml"
    profile.write_text(
        yaml.safe_dump(
            {
                "name": "growth",
                "seed": 3,
                "iterations": 1,
                "model": {"path": "builtin:tiny-llama"},
                "dataset": {"path": "builtin:tasks", "limit": count - 8, "test_limit": 8, "shard_rows": 1},
                "chat": {"max_prompt_length": 48},
                "generate": {"max_new_tokens": 1},
                "finetune": {"schedule_epochs": 0.01, "warmup_ratio": 0, "global_batch": 64, "max_length": 80},
                "evaluate": {"max_new_tokens": 1},
                "runtime": {"threads": 1, "checkpoint_every": 0},
            }
        )
    )
    ways = {}
    for way in ("first", "again"):
        ways[way] = _flow(profile, folder)
        print(count, way, ways[way], flush=True)
    return ways


def _flow(profile: Path, folder: Path) -> dict:
    home = folder / "prefect"
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    env |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "flows.cli", "run", str(profile), "--store", f"{folder}/store", "--json"]
    before, began = _in_database(home), time.monotonic()
    measured: dict[str, Any] = {}
    with (folder / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            for name, number in [("flow", process.pid), *_children(process.pid)]:
                try:
                    measured[f"{name}_mib"] = max(measured.get(f"{name}_mib", 0), peak(number))
                    measured[f"{name}_cpu"] = max(measured.get(f"{name}_cpu", 0), _cpu(number))
                except (OSError, StopIteration):  # it has ended
                    continue
            time.sleep(0.5)
    assert process.returncode == 0, (folder / "stderr.txt").read_text()[-2000:]
    after = _in_database(home)
    measured |= {name: round(after[name] - before.get(name, 0), 1) for name in after}
    lines = (folder / "stderr.txt").read_text().count("\n")
    return measured | {"seconds": round(time.monotonic() - began, 1), "lines": lines}


def _children(parent: int) -> list[tuple[str, int]]:
    names = {"flows.server.embedded": "server", "spin_core.runtime.worker": "stages"}
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                command = (stat.parent / "cmdline").read_text()
                processes += [(name, int(stat.parent.name)) for module, name in names.items() if module in command]
        except (OSError, IndexError, ValueError):
            continue
    return processes


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _in_database(home: Path) -> dict[str, float]:
    if not (home / "prefect.db").is_file():
        return {}
    size = sum(file.stat().st_size for file in home.glob("prefect.db*")) / 1e6
    with sqlite3.connect(home / "prefect.db") as database:
        rows = {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("task_run", "log")}
    return {"database_mb": size, **rows}


def tables(results: dict) -> str:
    """Both results as Markdown."""
    counts = list(results["rows"])
    lines = ["| seconds / processor seconds / peak MiB | " + " | ".join(f"{int(n):,}" for n in counts) + " |"]
    lines.append("|---" + "|---:" * len(counts) + "|")
    for name in STAGES:
        cells = [results["rows"][n].get(name) for n in counts]
        texts = (f"{c['seconds']:,.0f} / {c['cpu']:,.1f} / {c['mib']:,}" if c else "–" for c in cells)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    decoders = (results["rows"][n].get("reformat parquet", {}).get("child_mib", "–") for n in counts)
    lines += ["| parquet's decoder, MiB | " + " | ".join(map(str, decoders)) + " |"]
    # Before there was tokenize, reformat cut the shards.
    cut = (results["rows"][n].get("tokenize") or results["rows"][n]["reformat"] for n in counts)
    lines += ["| shards | " + " | ".join(f"{one['shards']:,}" for one in cut) + " |", ""]
    figures = ("seconds", "flow_cpu", "flow_mib", "server_cpu", "server_mib", "database_mb", "task_run", "log", "lines")
    lines += ["| shards | run | " + " | ".join(figures) + " |", "|---|---" + "|---:" * len(figures) + "|"]
    for count, ways in results["shards"].items():
        for way, one in ways.items():
            lines.append(
                f"| {int(count):,} | {way} | "
                + " | ".join(f"{one[name]:,}" if name in one else "–" for name in figures)
                + " |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
