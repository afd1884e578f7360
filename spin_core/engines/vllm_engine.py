"""The engine `vllm`: continuous batching, paged attention, one engine for all shards of its process, kept for the next
model where `runtime.keep_engine` says so (`kept`, `vllm_shared`).

Runs under vLLM's own interpreter (`make vllm-env`), which has no Prefect. What holds: a row's draws are its own (see
`decoding`), so its answer is a function of model, prompt, settings, seed and the rounding of the logits. Which rows are
computed together differs from run to run, and with it the rounding (1e-6 in float32, 1e-2 in bfloat16): an answer
differs where a draw falls that close to the border between two tokens. docs/generate.md says how often that was.
Several jobs may call `sample` at once, from threads: while one shard's last rows end, the next shard's are at work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spin_core.config.harness import LM_EVAL
from spin_core.config.runtime import Runtime
from spin_core.engines import Answer, Footprint, Request, Sampling, kept, versions
from spin_core.engines.checkpoint import Checkpoint
from spin_core.engines.kept import Wanted
from spin_core.engines.vllm_shared import Row, Shared
from spin_core.errors import BadInput, ChildDied, SpinloopError, one_line
from spin_core.job import Job
from spin_core.runtime import gpus, vllm_env

PACKAGES: tuple[str, ...] = ("vllm", "torch", "transformers")
LAYER_SECONDS = 5e-5  # it replays CUDA graphs
SPREADS = True
KEPT = __name__
STAYS = 0.05

SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # The scheduler runs in this process: one process less to start (12 s on 2 cores), to watch and to end.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def interpreter(runtime: Runtime) -> str:
    """That of `make vllm-env`, or the one that is named. Raises BadInput where there is none."""
    return vllm_env.interpreter(runtime.vllm_python)


def process(max_tokens: int, has_stop_strings: bool) -> str:
    """A process has one engine, for one longest sequence, and decodes or not."""
    return f"vllm {max_tokens}{' decoding' if has_stop_strings else ''}"


def check(runtime: Runtime) -> None:
    """Raise BadInput where its interpreter is not there, or two engines would share a GPU."""
    interpreter(runtime)
    gpus.check_unshared(runtime, len(gpus.visible()))


def footprint(runtime: Runtime) -> Footprint:
    """Each worker has an engine over `tensor_parallel` GPUs, of which it takes `gpu_memory`."""
    return Footprint(runtime.workers, runtime.requests_in_flight, runtime.tensor_parallel, runtime.gpu_memory)


def doctor() -> tuple[str, str]:
    """Its version, and whether lm_eval is there too. Starts the interpreter (5 to 20 s) where there is one."""
    place = vllm_env.place("")
    if not place.exists():
        return "-", f"no {place}; only for generate.engine: vllm: `make vllm-env`"
    try:
        version, lm_eval = vllm_env.version(""), vllm_env.lm_eval("")
    except SpinloopError as error:
        return "missing", str(error)
    lacks = "" if lm_eval == LM_EVAL else f"; no lm_eval {LM_EVAL} for harness.backend: vllm: `make vllm-env`"
    return "ok", f"{version} {place}{lacks}"


def sample(
    model_path: Path, requests: Sequence[Request], sampling: Sampling, job: Job, label: str
) -> list[Answer]:  # fmt: skip
    """See `Engine`. Raises BadInput for a model or setting that vLLM refuses, ChildDied when its engine died, and its
    NotReloaded when one that was kept cannot answer for this model."""
    began = time.monotonic()
    shared, loaded = _serving(Path(model_path).resolve(), sampling, job)
    ready = time.monotonic()
    mine = [Row(request, sampling) for request in requests]
    shared.add(mine, sampling)
    flying: list[int] = []

    def rate() -> float:
        return sum(len(row.tokens) for row in mine) / max(time.monotonic() - ready, 1e-9)

    with job.progress(label, len(requests), "prompts") as bar:
        while any(not row.finish for row in mine):
            flying.append(shared.step(mine))
            ended = sum(bool(row.finish) for row in mine)
            bar.advance(ended - bar.done, **{"tokens/s": rate(), "in flight": shared.flying})
    job.engine = versions(PACKAGES)
    job.figures |= {
        "tokens_per_second": rate(),
        "in_flight_mean": sum(flying) / max(len(flying), 1),
        "load_seconds": ready - began if loaded else 0.0,
    } | ({"reloaded": 1.0} if loaded == "reloaded" else {})
    return [row.answer() for row in mine]


def _serving(model_path: Path, sampling: Sampling, job: Job) -> tuple[Shared, str]:
    """The process's engine, which serves the model now; `started` or `reloaded` where it had to be for this call."""
    length, digest = sampling.max_prompt + sampling.max_new_tokens, str(job.digests.get("model", ""))

    def want(cpu: bool) -> Wanted:
        dtype = arguments(model_path, job.runtime, cpu)["dtype"]
        return kept.wanted(model_path, digest, length, bool(sampling.stop), job.runtime, dtype)

    def start(cpu: bool) -> Shared:
        return Shared(_start(want(cpu), job.runtime, cpu), want(cpu), cpu)

    shared, started = engine_of(model_path, SAMPLING, start, job.runtime)
    if started:
        return shared, "started"
    with _taking:
        return shared, "reloaded" if shared.take(want(shared.cpu)) else ""


def rest() -> int | None:
    """Give back what the process's engine can give until the next `sample`; how many weights its model has, or None
    where it is not to be kept so: where more than a twentieth of a GPU's memory stays taken (by whom, the driver does
    not say). Main memory is the parent's matter."""
    import torch

    shared = _engines.get(SAMPLING)
    if not isinstance(shared, Shared):
        return None
    shared.sleep()
    if not shared.cpu:
        free, total = torch.cuda.mem_get_info()
        if total - free > total * STAYS:
            return None
    with Checkpoint(shared.serves.model) as checkpoint:
        return checkpoint.weights()


SAMPLING = ("sampling",)
_engines: dict[tuple, Any] = {}
_starting, _taking = threading.Lock(), threading.Lock()


def engine_of(path: Path, key: tuple, start: Callable[[bool], Any], runtime: Runtime) -> tuple[Any, bool]:
    """The engine `key` of this process, and whether it was started for this call: by `start`, which takes whether vLLM
    computes on CPU. A process has one: the parent sends it no other jobs, and here they end it (ChildDied). Raises
    BadInput for a model, in `path`, that vLLM does not take."""
    with _starting:
        if key in _engines:
            return _engines[key], False
        if _engines:
            raise ChildDied("vLLM: this process has an engine for something else")
        cpu = _prepare(runtime)
        import vllm

        try:
            _engines[key] = start(cpu)
        except Exception as error:
            message = one_line(error, 300)
            if not cpu and "memory" in message.lower():  # perhaps of a process just ended: worth another try
                raise ChildDied(
                    f"vLLM did not start ({message}); lower runtime.gpu_memory or runtime.workers"
                ) from error
            raise BadInput(f"{path}: vLLM {vllm.__version__} does not take this model ({message})") from error
        return _engines[key], True


def _prepare(runtime: Runtime) -> bool:
    """Set what vLLM reads from the environment when it is imported; whether it computes on CPU."""
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # it takes no logits processor, and that is how rows draw
    if runtime.device.startswith("cuda:"):  # vLLM takes the first that it sees
        seen = gpus.visible()
        number = int(runtime.device[5:])
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[number] if number < len(seen) else str(number)
    import torch

    if runtime.device == "cpu" and torch.version.cuda:
        raise BadInput("runtime.device cpu: this vLLM is built for CUDA; `VLLM=cpu make vllm-env` builds one for CPU")
    cpu = not torch.cuda.is_available()
    if cpu:
        threads = runtime.threads or len(os.sched_getaffinity(0))
        # vLLM would bind its threads to cores that it counts itself, and leave one of two cores idle.
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(runtime.vllm_kv_gib)
    return cpu


def arguments(model_path: Path, runtime: Runtime, cpu: bool) -> dict[str, Any]:
    """An engine's settings that are the same for all. As the transformers engine, on CPU in float32 and on GPU in the
    dtype of the weights on disk (vLLM's own `auto` would make bfloat16 of float32)."""
    from spin_core.modeling.loading import source_dtype

    return {
        "dtype": "float32" if cpu else str(source_dtype(model_path)).removeprefix("torch."),
        "load_format": "safetensors",
        "generation_config": "vllm",  # else the model's own penalties would enter
        "max_num_seqs": runtime.requests_in_flight,
        "tensor_parallel_size": runtime.tensor_parallel,
        "gpu_memory_utilization": runtime.gpu_memory,
        "enforce_eager": cpu,
        "disable_log_stats": True,
    }


def _start(want: Wanted, runtime: Runtime, cpu: bool) -> Any:
    """A vLLM engine. One that is kept sleeps on a GPU, for which its memory must come from vLLM's own allocator."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from spin_core.engines.vllm_draws import RowDraws

    args = EngineArgs(
        model=str(want.model),
        **arguments(want.model, runtime, cpu),
        max_model_len=want.length,
        skip_tokenizer_init=not want.decodes,
        enable_sleep_mode=runtime.keep_engine and not cpu,
        worker_extension_cls="spin_core.engines.vllm_weights.KeptWeights",
        async_scheduling=False,  # a row's number of tokens so far says which of its numbers is drawn with
        logits_processors=[RowDraws],
        seed=0,
    )
    engine = LLMEngine.from_engine_args(args)
    if cpu:
        check_heads(engine.vllm_config.model_config.get_head_size())
    return engine


def check_heads(size: int) -> None:
    """vLLM 0.32 takes a model with other heads on CPU and dies in its first step."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise ValueError(f"its heads have a size of {size}, and on CPU vLLM takes {', '.join(map(str, sizes))}")
