"""Several processes on one model (gloo on a CPU): each strategy gives the numbers of
one process, the same files, and goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from launched import runtime, spec, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_data import DIGESTS, copy_model, finetune_config, job_at, made_up_pairs, metrics_of, pairs_tree, scored

from spin_core.errors import BadInput, ChildDied, StageFailed, Stopped
from spin_core.modeling import sharded_loading
from spin_core.runtime.child import Child
from spin_core.stages import finetune
from tests.faults.fault import LEVEL
from tests.sockets import sockets

ZERO = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the package deepspeed (pip install .[dev])")
CASES = [
    pytest.param("fsdp2", True, id="fsdp2-tied"),
    pytest.param("zero3", False, id="zero3-untied", marks=ZERO),
    pytest.param("fsdp2", False, id="fsdp2-untied", marks=pytest.mark.full),
    pytest.param("zero3", True, id="zero3-tied", marks=[ZERO, pytest.mark.full]),
    *(pytest.param("none", tied, id=f"none-{tied}", marks=pytest.mark.full) for tied in (True, False)),
    *(
        pytest.param(f"zero{n}", tied, id=f"zero{n}-{tied}", marks=[ZERO, pytest.mark.full])
        for n in (1, 2)
        for tied in (True, False)
    ),
]
MORE = [] if LEVEL == "pr" else ["none", pytest.param("zero1", marks=ZERO), pytest.param("zero2", marks=ZERO)]
"""Killed at a night's counts too: each starts two processes, 15 s of a quiet machine."""
# AdamW: its update depends on the number of its step, which a strategy may count otherwise.
SETTINGS = {"lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.01, "schedule_epochs": 3.0}
LONGER = SETTINGS | {"schedule_epochs": 6.0}  # progress arrives late: a kill at step 3 of 6 may find it finished


def tied_model(to: Path) -> Path:
    """The golden model with its embedding for an output layer, and a padding token, as the demo's."""
    path = copy_model(to)
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True, "pad_token_id": 3}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, theta):
    """`made(tied)`: the inputs of a finetune, and what one process makes of them."""

    @cache
    def make(tied: bool) -> tuple[dict, Path]:
        root = tmp_path_factory.mktemp("made")
        model = tied_model(root / "model") if tied else theta
        tree = pairs_tree(root / "pairs", made_up_pairs(5), [])
        logps = scored(root / "score", model, tree, finetune_config())
        inputs, job = {"model": model, "pairs": [tree], "logps": [logps]}, job_at(root, DIGESTS, micro_tokens=100)
        finetune.run(inputs, finetune_config(**SETTINGS), job)
        return inputs, job.out

    return make


@pytest.fixture
def inputs(made) -> dict:
    return made(True)[0]


@pytest.fixture
def alone(made) -> Path:
    return made(True)[1]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """Where the processes of `two` put operators that they compile."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def two(compiled):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCH_EXTENSIONS_DIR", str(compiled))
        child = start(2)
    yield child
    child.kill()


def train(
    child: Child, inputs: dict, place: Path, sharding: str, send=lambda event: None, settings=SETTINGS, **more
) -> tuple[Path, dict]:
    """The output and the summary."""
    job = spec("finetune", finetune_config(**settings), inputs, DIGESTS, place, runtime(2, sharding, **more))
    return place / "out", child.run(job, send, timeout=240)


def layout(file: Path) -> dict:
    """Names, types and shapes of the weights in a file, in its order, and what else its header says."""
    with safe_open(file, "pt") as weights:
        parts = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
        return {
            "weights": [(name, part.get_dtype(), part.get_shape()) for name, part in parts.items()],
            "header": weights.metadata(),
        }


def test_torch_without_fsdp2_for_a_cpu_is_one_sentence(monkeypatch, tmp_path) -> None:
    """Catches torch 2.6's AttributeError about a stream, in the middle of the first step."""
    monkeypatch.delattr(torch.cpu.Stream, "record_event", raising=False)
    with pytest.raises(BadInput, match=r"runtime.compute.sharding: torch .* has no fsdp2 for a CPU; take zero3"):
        sharded_loading.load(tmp_path, torch.device("cpu"))


def test_processes_of_one_node_listen_on_the_loopback_only(two) -> None:
    """Catches a laptop on which everybody of its network finds the processes' meeting (torch's own listens everywhere,
    and asks nobody who he is), gloo's sockets or the launcher's."""
    until, found = time.monotonic() + 120, set()
    while len({pid for pid, _ in found}) < 2 and time.monotonic() < until:
        time.sleep(0.1)
        found = {
            (pid, line.laddr.ip)
            for pid in (two.process.pid, *ranks(two))
            for line in sockets(psutil.Process(pid))
            if line.status == psutil.CONN_LISTEN
        }
    assert {address for _, address in found} == {"127.0.0.1"} and len({pid for pid, _ in found}) == 2


@pytest.mark.parametrize(("sharding", "tied"), CASES)
def test_finetune_two_processes_same_curve_and_same_layout_as_one(
    tmp_path, made, two, compiled, sharding, tied
) -> None:
    """Catches gradients averaged where the sum is meant, a norm of one part, a step that is counted twice, weights
    that are handed out wrongly, a model that is saved in parts or under other names, and an operator that is compiled
    first.

    Five pairs in batches of 4: the second global batch has one pair, so one process has none of its own.
    """
    (inputs, alone), message = made(tied), list[dict]()
    out, _ = train(two, inputs, tmp_path, sharding, message.append)
    assert not [event["note"] for event in message if "padded" in event.get("note", "")]
    ours, theirs = metrics_of(out), metrics_of(alone)
    assert len(ours) == len(theirs) == 6
    for a, b in zip(theirs, ours, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4), a["step"]
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3), a["step"]
        assert b["logps/real"] == pytest.approx(a["logps/real"], rel=1e-3), a["step"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())
    assert layout(out / "model.safetensors") == layout(alone / "model.safetensors")
    one, other = load_file(alone / "model.safetensors"), load_file(out / "model.safetensors")
    start_weights = load_file(inputs["model"] / "model.safetensors")
    moved = max(float((one[name].double() - start_weights[name]).abs().max()) for name in one)
    apart = max(float((one[name].double() - other[name]).abs().max()) for name in one)
    assert moved > 3e-3
    assert apart < moved / 30  # AdamW divides tiny gradients by their size: rounding there moves single weights
    assert not list(tmp_path.glob("scratch/tmp-*"))
    assert not list(compiled.iterdir())


@pytest.mark.parametrize("sharding", [*MORE, "fsdp2", pytest.param("zero3", marks=[ZERO, pytest.mark.full])])
def test_finetune_killed_and_resumed_ends_in_the_same_bytes(tmp_path, inputs, two, sharding) -> None:
    """Catches a checkpoint that lacks a part, an optimiser that begins anew, and weights that are put back in one
    process only. Killed is a process that is not the first, with the run's other processes still there."""
    uninterrupted, _ = train(two, inputs, tmp_path / "uninterrupted", sharding, settings=LONGER)
    child, steps = start(2), []

    def kill(event: dict) -> None:
        steps.append(event.get("done", 0))
        if event.get("label") == "finetune" and event.get("done", 0) >= 3:
            os.kill(ranks(child)[-1], signal.SIGKILL)

    try:
        with pytest.raises(ChildDied, match=r"finetune: (its process|another of .*) ended without an answer"):
            train(child, inputs, tmp_path / "killed", sharding, kill, LONGER)
    finally:
        child.kill()
    assert list((tmp_path / "killed" / "scratch").glob("checkpoint-*"))  # a later one may be there, and half of one
    assert not (tmp_path / "killed" / "out" / "model.safetensors").exists()
    resumed, summary = train(two, inputs, tmp_path / "killed", sharding, settings=LONGER)
    assert summary["resumed_at"] >= 2
    assert (resumed / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert metrics_of(resumed) == metrics_of(uninterrupted)


@pytest.mark.full
def test_finetune_of_two_processes_that_is_asked_to_end_writes_one_checkpoint(tmp_path, inputs, two) -> None:
    """Catches processes that are asked at different steps and wait for each other for ever, one that ends before
    another has written its part, and a launcher that is asked and ends them."""
    settings = SETTINGS | {"schedule_epochs": 20.0}
    uninterrupted, _ = train(two, inputs, tmp_path / "uninterrupted", "fsdp2", settings=settings)
    child = start(2)

    def stop(event: dict) -> None:
        if event.get("label") == "finetune" and event.get("done", 0) >= 2:
            child.process.send_signal(signal.SIGTERM)  # to the launcher: Slurm sends it to every process of a job
            child.stop()

    try:
        with pytest.raises(
            Stopped, match=r"finetune: ended by SIGTERM after step \d+ of 40; its checkpoint is written"
        ):
            train(child, inputs, tmp_path / "asked", "fsdp2", stop, settings, checkpoint_every=0)
    finally:
        child.kill()
    (made,) = (tmp_path / "asked" / "scratch").glob("checkpoint-*")
    resumed, summary = train(two, inputs, tmp_path / "asked", "fsdp2", settings=settings, checkpoint_every=0)
    assert summary["resumed_at"] == int(made.name[-8:]) >= 2
    assert (resumed / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def ranks(child: Child) -> list[int]:
    """The launcher's processes, in the order of their numbers."""
    result = Path(f"/proc/{child.process.pid}/task/{child.process.pid}/children").read_text().split()
    number = {int(pid): environment_of(int(pid)).get("RANK") for pid in result}
    return sorted((pid for pid, rank in number.items() if rank), key=lambda pid: int(number[pid] or 0))


def environment_of(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)


@pytest.mark.parametrize(
    ("sharding", "offload"),
    [("fsdp2", "none"), *(pytest.param("zero3", place, marks=ZERO) for place in ("optimizer", "weights"))],
)
@pytest.mark.full
def test_one_process_that_offloads_needs_no_launcher(tmp_path, inputs, alone, sharding, offload) -> None:
    """Catches a process group that nobody made, and an optimiser in the host's memory that DeepSpeed refuses."""
    child = Child()
    try:
        how = runtime(1, sharding, offload=offload)
        job = spec("finetune", finetune_config(**SETTINGS), inputs, DIGESTS, tmp_path, how)
        child.run(job, lambda event: None, timeout=240)
    finally:
        child.kill()
    assert [line["loss"] for line in metrics_of(tmp_path / "out")] == pytest.approx(
        [line["loss"] for line in metrics_of(alone)], abs=1e-4
    )
    assert layout(tmp_path / "out" / "model.safetensors") == layout(alone / "model.safetensors")


def test_checkpoint_of_another_number_of_processes_is_refused(tmp_path, inputs) -> None:
    """Catches shards that are read as if they were full weights, and work that is thrown away without a word."""
    folder = tmp_path / "scratch" / "checkpoint-00000002"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"step": 2, "parts": 8, "sha256": {}, "history": []}')
    job = job_at(tmp_path, DIGESTS, micro_tokens=100)
    with pytest.raises(StageFailed, match=r"written in 8 part\(s\), and 1 would be read; set runtime\.compute"):
        finetune.run(inputs, finetune_config(**SETTINGS), job)
    assert folder.exists()
