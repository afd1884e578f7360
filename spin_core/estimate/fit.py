"""Whether each stage fits into a GPU, and if not, the cheapest setting with which it would.

Is not: a search over all settings. Candidates come in order of what they cost: smaller passes, activations computed
again, then divided and offloaded state, an adapter in place of all weights, and more machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from operator import or_
from typing import Any

from spin_core.config.finetune import Lora
from spin_core.config.profile import Config
from spin_core.engines import Engine
from spin_core.engines.harness.backends import BACKENDS
from spin_core.engines.table import ENGINES
from spin_core.estimate import memory, needs
from spin_core.estimate.needs import GIB, NEEDS, Need, Setting

Change = dict[str, Any]
"""Field of the profile → its other value."""
MOST = 32
"""Nodes that are tried at most."""
ZERO3: Change = {"runtime.compute.sharding": "zero3"}


def misfit(s: Setting, config: Config, stages: list[str]) -> str:
    """Empty, or what does not fit (of several stages the largest) and the setting that would, in one sentence.
    `stages`: those that would run."""
    gpu = s.hardware.gpu
    needed = {stage: needs.of(stage, s, config).gpu for stage in stages if stage in NEEDS} if gpu else {}
    stage = max(needed, key=needed.__getitem__, default="")
    if not gpu or not stage or needed[stage] <= gpu.gib * GIB:
        return ""
    begin = f"{stage} needs about {needed[stage] / GIB:,.0f} GiB per GPU, and {gpu.name} has {gpu.gib:,.0f}"
    fitting = remedy(s, config, stage)
    if fitting is None:
        return f"{begin}; no setting of one to {MOST} nodes makes it fit: take a larger GPU or a smaller model."
    change, need = fitting
    settings = ", ".join(f"{name}: {_value(value)}" for name, value in change.items())
    world = changed(config, change).runtime.compute.world
    many = f" with {world} GPU{'s' * (world > 1)}" if "sharding" in settings or "compute" in settings else ""
    return f"{begin}: set {settings} (would be {need.gpu / GIB:,.0f} GiB{many})."


def _value(value: Any) -> str:
    if isinstance(value, Lora):
        return f"{{rank: {value.rank}{', quantize: nf4' if value.quantize == 'nf4' else ''}}}"
    return "true" if value is True else str(value)


def remedy(s: Setting, config: Config, stage: str) -> tuple[Change, Need] | None:
    """The first candidate that fits, and what it needs."""
    assert s.hardware.gpu is not None
    tried = ((change, needs.of(stage, s, changed(config, change))) for change in candidates(s, config, stage))
    return next(((change, need) for change, need in tried if need.gpu <= s.hardware.gpu.gib * GIB), None)


def candidates(s: Setting, config: Config, stage: str) -> Iterator[Change]:
    """Changes of the profile that leave the result as it is, cheapest first; at the end those that do not."""
    runtime = config.runtime
    if stage in ("generate", "harness") and _engine(config, stage).SPREADS:
        yield from ({"runtime.tensor_parallel": 2**n} for n in range(1, 7) if 2**n > runtime.tensor_parallel)
        return
    budgets = {
        "sft": "runtime.micro_tokens", "finetune": "runtime.micro_tokens", "score": "runtime.score_tokens",
        "evaluate": "runtime.score_tokens", "generate": "runtime.generate_batch", "harness": "runtime.harness_batch",
    }  # fmt: skip
    smaller = _halves(config, budgets[stage])
    yield from smaller
    least = smaller[-1] if smaller else {}
    again: Change = {}
    if stage in ("sft", "finetune"):
        if not runtime.gradient_checkpointing:
            again = {"runtime.gradient_checkpointing": True}
            yield from (again | one for one in [{}, *smaller])
        lora = config.finetune.lora if stage == "finetune" else None
        if lora is not None:  # an adapter is trained on an unsharded model
            if config.finetune.precision == "bfloat16":
                quantized = {"finetune.lora": lora.model_copy(update={"quantize": "nf4"})}
                yield from (quantized, quantized | again | least)
            return
        yield from _divided(s, config, again, least)
        if stage == "finetune":
            yield from ({"finetune.lora": Lora()}, {"finetune.lora": Lora()} | again | least)
    elif stage == "harness":
        spread = [name for name, backend in BACKENDS.items() if backend.engine.SPREADS]
        yield from ({"harness.backend": name, "runtime.tensor_parallel": 2**n} for name in spread for n in range(0, 7))
        return
    else:
        if stage == "evaluate" and _engine(config, "generate").SPREADS:
            sizes = [2**n for n in range(1, 7) if 2**n > runtime.tensor_parallel]
            yield from ({"runtime.tensor_parallel": size} | change for size in sizes for change in ({}, least))
        elif stage == "evaluate":  # it also answers
            yield from (least | one for one in _halves(config, "runtime.generate_batch"))
        if stage == "generate":
            spread = [name for name, engine in ENGINES.items() if engine.SPREADS]
            sizes = [2**n for n in range(1, 4)]
            yield from ({"generate.engine": name, "runtime.tensor_parallel": n} for name in spread for n in sizes)
        for parts in _worlds(s, config, 1):
            yield from (parts | ZERO3, parts | ZERO3 | least)
    for nodes in (2**n for n in range(1, MOST.bit_length()) if 2**n > runtime.compute.nodes):
        for parts in _worlds(s, config, nodes):
            yield parts | ZERO3 | again
            if stage in ("sft", "finetune"):
                yield parts | ZERO3 | {"runtime.compute.offload": "optimizer"} | again | least


def _engine(config: Config, stage: str) -> Engine:
    if stage == "generate" or config.harness is None:
        return ENGINES[config.generate.engine]
    return BACKENDS[config.harness.backend].engine


def _halves(config: Config, field: str) -> list[Change]:
    """Smaller values of a budget, largest first; tokens down to 512, below which a pass is one pair in any case."""
    value, least = getattr(config.runtime, field.rpartition(".")[2]), 512 if field.endswith("tokens") else 1
    halves = []
    while value > least:
        value = max(least, value // 2)
        halves.append({field: value})
    return halves


def _worlds(s: Setting, config: Config, nodes: int) -> Iterator[Change]:
    """The profile's processes, or as many as a node has GPUs; on so many nodes."""
    compute = config.runtime.compute
    count = max(compute.processes, s.hardware.count or 8)
    change: Change = {} if count == compute.processes else {"runtime.compute.processes": count}
    if nodes > 1 and nodes != compute.nodes:
        change["runtime.compute.nodes"] = nodes
    if count * max(nodes, compute.nodes) > 1:
        yield change


def _divided(s: Setting, config: Config, again: Change, least: Change) -> Iterator[Change]:
    """More and more of the state divided between the processes, then moved to the host's memory; each as it is, then
    with activations computed `again`, then also with the `least` passes."""
    compute = config.runtime.compute
    if max(compute.world, s.hardware.count or 8) == 1:
        one: Change = {"runtime.compute.sharding": "zero2", "runtime.compute.offload": "optimizer"}
        yield from (one | again, one | again | least)
    now = memory.SHARDED[compute.sharding]
    for parts in _worlds(s, config, 1):
        for stage in ("zero1", "zero2", "zero3"):
            if memory.SHARDED[stage] > now or (memory.SHARDED[stage] == now and parts):
                one = parts | ({"runtime.compute.sharding": stage} if stage != compute.sharding else {})
                yield from accumulate((one, again, least), or_)
        if compute.sharding != "fsdp2":
            for offload in ("optimizer", "weights"):
                if compute.offload not in (offload, "weights"):
                    one = parts | (ZERO3 if compute.sharding != "zero3" else {}) | {"runtime.compute.offload": offload}
                    yield from (one | again, one | again | least)


def changed(config: Config, change: Change) -> Config:
    """The profile with other values; sections that an iteration overrides keep its overrides."""
    for field, value in change.items():
        config = _set(config, field.split("."), value)
    return config


def _set(part: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return part.model_copy(update={name: _set(getattr(part, name), rest, value) if rest else value})
