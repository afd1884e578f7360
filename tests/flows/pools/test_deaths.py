"""Runs that are killed or cancelled while their stage is at work on a pool."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from tests.flows.pools.conftest import Api, Since, Worker, in_full, until

pytestmark = pytest.mark.timeout(600)
LONG = {"sft": {"epochs": 100_000}, "iterations": 0, "runtime": {"pools": {"evaluate": "here"}}}
SOME = {"sft": {"epochs": 60}, "iterations": 0, "runtime": {"pools": {"evaluate": "here"}}}  # about 15 s of sft


def engine(worker: Worker, run: UUID) -> int:
    """The process of a flow run."""
    for pid in worker.processes():
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"PREFECT__FLOW_RUN_ID={run}".encode() in environ and b"prefect.engine" in command:
            return pid
    return 0


def at_work(gpu: Worker, gpu_runs: Since, count: int = 1) -> FlowRun:
    """The `count`th flow run of sft, once its stage's process computes."""
    until(lambda: len(gpu_runs.runs("sft")) >= count)
    run = gpu_runs.runs("sft")[count - 1]
    until(lambda: engine(gpu, run.id) and any("spin_core.runtime.worker" in line for line in gpu.processes().values()))
    return run


@pytest.mark.full
def test_killed_run_finds_its_stage_again(workers, api: Api, gpu_runs: Since, profile) -> None:
    """Catches a second computation of what a killed run had started, and a stage that dies with the run."""
    path = str(profile(**SOME))
    first = api.start("spin/spin", file=path)
    stage = at_work(workers["spin-gpu"], gpu_runs)
    os.kill(engine(workers["spin-cpu"], first), signal.SIGKILL)
    second = api.start("spin/spin", file=path)
    assert api.wait(second).state.name == "Completed"
    assert [run.id for run in gpu_runs.runs("sft")] == [stage.id], "the stage was started again"
    assert api.wait(stage.id).state.message == "1 step ran, 0 were cached."
    assert api.wait(first).state.name == "Crashed"


@pytest.mark.full
def test_cancelled_run_ends_its_stage_and_every_process(workers, api: Api, gpu_runs: Since, profile) -> None:
    """Catches a cancelled run that leaves its stage (or the stage's processes) on the GPU, or that starts it again."""
    run = api.start("spin/spin", file=str(profile(**LONG)))
    stage = at_work(workers["spin-gpu"], gpu_runs)
    began = time.monotonic()
    api.client.set_flow_run_state(run, Cancelling())
    until(lambda: not workers["spin-gpu"].processes() and not workers["spin-cpu"].processes(), 60)
    seconds = time.monotonic() - began
    assert seconds < 30, f"processes were left for {seconds:.0f} s"
    assert api.wait(run, 60).state.name == "Cancelled" and api.wait(stage.id, 60).state.name == "Cancelled"
    assert len(gpu_runs.runs()) == 1
    print(f"cancel: no process left after {seconds:.1f} s")


@in_full
@pytest.mark.full
def test_run_goes_on_without_the_one_that_had_started_its_stage(workers, api: Api, gpu_runs: Since, profile) -> None:
    """Catches a run that fails because another one, whose stage it shared, was cancelled; and a run found again after a
    kill that nobody can cancel."""
    path = str(profile(**{**SOME, "sft": {"epochs": 400}}))
    first = api.start("spin/spin", file=path)
    at_work(workers["spin-gpu"], gpu_runs)
    second = api.start("spin/spin", file=path)
    until(lambda: engine(workers["spin-cpu"], second))
    time.sleep(8)  # it has looked in the store and found the stage
    api.client.set_flow_run_state(first, Cancelling())
    assert api.wait(first, 60).state.name == "Cancelled"
    assert api.wait(second).state.name == "Completed"
    assert gpu_runs.states("sft") == ["Cancelled", "Completed"]


@in_full
@pytest.mark.full
def test_cancel_after_a_kill_reaches_the_stage(workers, api: Api, gpu_runs: Since, profile) -> None:
    """Catches a stage that belongs to nobody once the run that started it was killed."""
    path = str(profile(**LONG))
    first = api.start("spin/spin", file=path)
    stage = at_work(workers["spin-gpu"], gpu_runs)
    os.kill(engine(workers["spin-cpu"], first), signal.SIGKILL)
    assert api.wait(first, 60).state.name == "Crashed"
    second = api.start("spin/spin", file=path)
    until(lambda: engine(workers["spin-cpu"], second))
    time.sleep(8)  # it has looked in the store and found the stage
    api.client.set_flow_run_state(second, Cancelling())
    assert api.wait(stage.id, 60).state.name == "Cancelled"
    until(lambda: not workers["spin-gpu"].processes(), 20)


@pytest.mark.full
def test_stage_that_a_person_cancels_is_not_tried_again(workers, api: Api, gpu_runs: Since, profile) -> None:
    """Catches a retry of what a person has stopped."""
    run = api.start("spin/spin", file=str(profile(**LONG)))
    stage = at_work(workers["spin-gpu"], gpu_runs)
    api.client.set_flow_run_state(stage.id, Cancelling())
    ended = api.wait(run, 90)
    assert ended.state.name == "Failed" and "was cancelled, by a person" in ended.state.message
    assert gpu_runs.states() == ["Cancelled"]


@in_full
@pytest.mark.full
def test_stage_whose_process_is_killed_is_tried_again_at_most_twice(workers, api, gpu_runs, profile) -> None:
    """Catches a run that fails with its first dead worker, and one that pays for ever."""
    run = api.start("spin/spin", file=str(profile(**LONG)))
    for attempt in (1, 2, 3):
        stage = at_work(workers["spin-gpu"], gpu_runs, attempt)
        os.kill(engine(workers["spin-gpu"], stage.id), signal.SIGKILL)
        assert api.wait(stage.id, 60).state.name == "Crashed"
    ended = api.wait(run, 90)
    assert ended.state.name == "Failed" and "sft[θ_0]: its run" in ended.state.message
    assert gpu_runs.states() == ["Crashed"] * 3
    until(lambda: not workers["spin-gpu"].processes(), 20)


@in_full
@pytest.mark.full
def test_killed_stage_goes_on_from_its_checkpoint(workers, api, gpu_runs, profile) -> None:
    """Catches a second try that throws the first one's training away, and a retry that does not end well."""
    run = api.start("spin/spin", file=str(profile(**SOME)))
    stage = at_work(workers["spin-gpu"], gpu_runs)
    os.kill(engine(workers["spin-gpu"], stage.id), signal.SIGKILL)
    assert api.wait(run).state.name == "Completed"
    assert gpu_runs.states() == ["Crashed", "Completed"]


def test_bad_input_on_the_pool_is_reported_once(workers, api: Api, gpu_runs: Since, profile) -> None:
    """Catches a retry of what cannot succeed, and a run that hides its stage's message."""
    settings = {"runtime": {"device": "cuda:7", "pools": {"evaluate": "here"}}}
    ended = api.wait(api.start("spin/spin", file=str(profile(iterations=0)), settings=settings))
    assert ended.state.name == "Failed" and "runtime.device" in ended.state.message, ended.state.message
    assert ended.state.message.endswith("(on spin-gpu)") and len(gpu_runs.runs()) == 1
