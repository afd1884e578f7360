"""What Prefect and the store add to a step: `python -m tests.benchmarks.bench_dispatch` (about 4 minutes).

Inline: a step's time from its look-up to its entry in the ledger, less what its stage took. Pool: the same where the
stage runs as a deployment on a process pool, with the settings that `spinloop deploy` makes and `make server` writes.
Cached: a run whose 300 shards are all in the store. Prints two lines of JSON; own server, own home, own store.
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
REPEATS = 3
SHARDS = 300


def main() -> None:
    """Run the three and print their figures."""
    with tempfile.TemporaryDirectory(prefix="spinloop-bench-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        os.environ.update(
            PREFECT_HOME=f"{folder}/prefect",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1",
            PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
            PREFECT_SERVER_API_PORT=str(port),
            PREFECT_WORKER_QUERY_SECONDS="0.5",
            PREFECT_LOGGING_LEVEL="ERROR",
        )
        started = [_start("prefect", "server", "start")]
        try:
            _await(os.environ["PREFECT_API_URL"])
            _spinloop("deploy", "--store", f"{folder}/store")
            started.append(_start("prefect", "worker", "start", "--pool", "spin-gpu"))
            time.sleep(3)
            print(json.dumps(_overheads(Path(folder))), flush=True)
            print(json.dumps(_cached(Path(folder))))
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


def _overheads(folder: Path) -> dict:
    """Seconds that a step takes beside its stage, in turn here and on the pool."""
    seconds: dict[str, list[float]] = {"inline": [], "pool": []}
    for repeat in range(REPEATS):
        for way, place in (("inline", "here"), ("pool", "spin-gpu")):
            profile = _profile(folder, f"{way}-{repeat}", seed=10 * repeat + (way == "pool"), iterations=0, limit=60)
            steps = _run(profile, folder, f"runtime.pools.sft={place}")
            seconds[way] += [step["around"] for step in steps if step["stage"] == "sft"]
    return {
        f"{way}_seconds_per_stage": {"median": round(statistics.median(s), 3), "all": [round(one, 3) for one in s]}
        for way, s in seconds.items()
    }


def _cached(folder: Path) -> dict:
    """Seconds of a run that finds everything, and of its shards alone."""
    profile = _profile(folder, "many", seed=1, iterations=1, limit=SHARDS * 7)
    _run(profile, folder)
    seconds = []
    for _ in range(3):
        steps = _run(profile, folder)
        shards = [step for step in steps if step["stage"] == "generate"]
        assert {step["state"] for step in steps} == {"Cached"}
        seconds.append(max(step["ended"] for step in shards) - min(step["began"] for step in shards))
    return {"cached_shards": len(shards), "cached_shards_seconds": [round(one, 2) for one in seconds]}


def _profile(folder: Path, name: str, seed: int, iterations: int, limit: int) -> Path:
    data = {
        "name": name,
        "seed": seed,
        "iterations": iterations,
        "model": {"path": "builtin:tiny-llama"},
        "dataset": {"path": "builtin:tasks", "limit": limit, "test_limit": 8, "shard_rows": 8},
        "chat": {"max_prompt_length": 48},
        "sft": {"lr": 1e-3, "epochs": 0.2, "warmup_ratio": 0, "global_batch": 64, "max_length": 80},
        "generate": {"max_new_tokens": 1},
        "finetune": {"schedule_epochs": 0.1, "warmup_ratio": 0, "global_batch": 64, "max_length": 80},
        "evaluate": {"max_new_tokens": 1},
        "runtime": {"threads": 1, "checkpoint_every": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def _run(profile: Path, folder: Path, *settings: str) -> list[dict]:
    """The steps of a run: stage, state, and in seconds when its task began and ended, and what it took `around` its
    stage."""
    sets = [part for setting in settings for part in ("--set", setting)]
    began = time.time()
    summary = json.loads(_spinloop("run", str(profile), "--store", f"{folder}/store", "--json", *sets))
    steps = json.loads(Path(summary["folder"], "steps.json").read_text())
    for step in steps:
        label = f"[{step['label']}]" if step["label"] else ""
        step["name"] = f"{step['stage']}{label} {step['key'][:6]}"
    for _ in range(15):  # the server gets a task's last state with its events, a moment later
        times = _task_times(began)
        if all(step["name"] in times for step in steps):
            break
        time.sleep(2)
    for step in steps:
        step["began"], step["ended"] = times[step["name"]]
        step["around"] = step["ended"] - step["began"] - (step["seconds"] or 0)
    return steps


def _task_times(since: float) -> dict[str, tuple[float, float]]:
    """Start and end of the task runs of each name that began since and ended, as the server knows them. On a pool two
    have one name, the run's and within its time the stage's."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import TaskRunSort

    times: dict[str, tuple[float, float]] = {}
    with get_client(sync_client=True) as client:
        for offset in range(0, 2 * SHARDS, 200):
            for run in client.read_task_runs(sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=200, offset=offset):
                if run.start_time and run.end_time and run.start_time.timestamp() > since:
                    start, end = times.get(run.name, (math.inf, 0.0))
                    start, end = min(start, run.start_time.timestamp()), max(end, run.end_time.timestamp())
                    times[run.name] = (start, end)
    return times


def _spinloop(*args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "flows.cli", *args], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def _start(*args: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *args], cwd=ROOT, stdout=subprocess.DEVNULL)


def _await(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the Prefect server did not start")


if __name__ == "__main__":
    main()
