"""`kill -9` at random moments of generation: no process left, no row missing or doubled, nothing generated twice.

`make test-kills` runs these alone, with a night's counts.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from spin_core.runtime import vllm_env
from tests.faults.fault import Fault
from tests.faults.flow.storm import Marked, check_exactly_once, command, records, storm

HERE = Fault("R2", "kill -9 of a run's processes in mid-generation", pr=6, night=30, release=100)
VLLM = Fault("R2", "kill -9 of vLLM's processes in mid-generation", pr=3, night=30, release=100)
LONG = ("iterations=1", "generate.max_new_tokens=60", "dataset.limit=600", "chat.max_prompt_length=40")


def stormed(fault: Fault, profile: Path, folder: Path, roles: list[str], *settings: str, **env: str) -> Counter:
    """A storm of the fault's count of kills, each of them a trial; how often which role was hit."""
    hits: list[Counter] = []
    fault.each([fault.count], lambda kills: hits.append(storm(profile, folder, kills, 1, roles, *settings, **env)))
    fault.trials += hits[0].total() - 1
    return hits[0]


@pytest.mark.timeout(3600)
@pytest.mark.full
def test_random_kills_lose_nothing_and_leave_nothing(tiny, server, tmp_path) -> None:
    """Catches shards that are published in the end only, a record that is written twice, a half-written shard that is
    taken for complete, a lock that outlives its holder, a run that does not get over a dead child, and any process
    that outlives its parent."""
    hit = stormed(HERE, tiny, tmp_path, ["parent", "child", "child", "guard"], *LONG, "runtime.workers=2")
    assert hit["parent"] and hit["child"]


@pytest.mark.skipif(not vllm_env.place("").exists(), reason="vLLM's environment is not there: make vllm-env")
@pytest.mark.timeout(7200)
@pytest.mark.full
def test_random_kills_of_vllm_and_its_own_workers(tiny, server, tmp_path) -> None:
    """Catches an engine whose worker was killed and that is waited for forever, and a worker of vLLM that lives on
    with the GPU's memory when the process that started it was killed."""
    multiprocess = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # as with several GPUs: scheduler and workers apart
    roles = ["parent", "child", "engine", "engine"]
    how = ("generate.engine=vllm", "runtime.requests_in_flight=8", "runtime.vllm_kv_gib=1")
    hit = stormed(VLLM, tiny, tmp_path, roles, *LONG, *how, **multiprocess)
    assert hit["engine"]


def test_worker_killed_twice_among_two_with_forty_shards(tiny, server, tmp_path) -> None:
    """Catches a dead worker's shard that nobody takes over, one that both take, and a run that gives up."""
    store = tmp_path / "store"
    few = ("iterations=1", "sft=", "dataset.shard_rows=6", "dataset.limit=200", "runtime.workers=2")
    run = Marked(command(tiny, store, *few, "generate.max_new_tokens=40", "chat.max_prompt_length=40"))
    killed = []
    for count in (4, 12):
        while run.process.poll() is None and len(records(store)) < count:
            time.sleep(0.02)
        workers = sorted(pid for pid, role in run.alive().items() if role == "child")
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        killed.append(workers[0])
    code, out = run.finish()
    assert code == 0, out
    assert len(set(killed)) == 2
    assert not run.gone()
    answers = check_exactly_once(store, {}, {})
    shards = len(records(store))
    print(f"{shards} shards, {answers} answers")
    assert shards >= 40
