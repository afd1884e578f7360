"""The engine `vllm`: continuous batching, paged attention, one engine for all shards of its process.

Runs under vLLM's own interpreter (`make vllm-env`), which has no Prefect. What holds: a row's draws are its own (see
`decoding`), so its answer is a function of model, prompt, settings, seed and the rounding of the logits. Which rows are
computed together differs from run to run, and with it the rounding (1e-6 in float32, 1e-2 in bfloat16): an answer
differs where a draw falls that close to the border between two tokens. README says how often that was.
Several jobs may call `sample` at once, from threads: while one shard's last rows end, the next shard's are at work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_core.config.harness import LM_EVAL
from spin_core.config.runtime import Runtime
from spin_core.engines import Answer, Footprint, Request, Sampling, versions
from spin_core.errors import BadInput, ChildDied, SpinloopError, StageFailed, one_line
from spin_core.job import Job
from spin_core.runtime import gpus, vllm_env

PACKAGES: tuple[str, ...] = ("vllm", "torch", "transformers")
LAYER_SECONDS = 5e-5  # it replays CUDA graphs
SPREADS = True

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
    """See `Engine`. Raises BadInput for a model or setting that vLLM refuses, ChildDied when its engine died."""
    key = (Path(model_path).resolve(), sampling.max_prompt + sampling.max_new_tokens, bool(sampling.stop))
    began = time.monotonic()
    shared, loaded = engine_of(key, lambda cpu: _Shared(_start(*key, job.runtime, cpu)), job.runtime)
    ready = time.monotonic()
    mine = [_Row(request, sampling) for request in requests]
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
    }
    return [row.answer() for row in mine]


@dataclass
class _Row:
    """A request at work."""

    request: Request
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = ""

    def take(self, output: Any) -> None:
        """What one step added."""
        self.tokens += output.token_ids
        if self.sampling.logprobs:
            self.logps += [each[token].logprob for token, each in zip(output.token_ids, output.logprobs, strict=True)]
        self.finish = output.finish_reason or ""

    def answer(self) -> Answer:
        if self.finish not in ("stop", "length"):
            raise StageFailed(f"row {self.request.id}: vLLM ended its answer with {self.finish!r}; run again.")
        return Answer(self.request.id, self.tokens, self.finish, self.logps if self.sampling.logprobs else None)


class _Shared:
    """One vLLM engine, driven by one of the threads that wait for answers; the others sleep until theirs are there."""

    def __init__(self, engine: Any):
        self.engine = engine
        self.rows: dict[str, _Row] = {}
        self.count = 0
        self.flying = 0
        self.turn = threading.Condition()
        self.busy = False
        self.entering = 0

    def add(self, rows: list[_Row], sampling: Sampling) -> None:
        """Hand in requests, before the next step: who drives would otherwise take step after step."""
        with self.turn:
            self.entering += 1
            try:
                self.turn.wait_for(lambda: not self.busy)
                # Longest prompts first: what is left at the end is short.
                for row in sorted(rows, key=lambda row: (-len(row.request.prompt), row.request.id)):
                    name = str(self.count)
                    self.count += 1
                    prompt = {"prompt_token_ids": row.request.prompt}
                    self.engine.add_request(name, prompt, _params(row.request, sampling))
                    self.rows[name] = row
            finally:
                self.entering -= 1
                self.turn.notify_all()

    def step(self, mine: list[_Row]) -> int:
        """Wait for a step of the engine, taken here or by another thread. The rows in flight."""

        def ended() -> bool:
            return all(row.finish for row in mine)

        with self.turn:
            self.turn.wait_for(lambda: ended() or not (self.busy or self.entering))
            if ended():
                return self.flying
            self.busy = True
        try:
            outputs = self.engine.step()
            with self.turn:
                for output in outputs:
                    row = self.rows[output.request_id]
                    row.take(output.outputs[0])
                    if row.finish:
                        del self.rows[output.request_id]
                self.flying = min(len(self.rows), self.engine.vllm_config.scheduler_config.max_num_seqs)
        except Exception as error:  # of any kind: this process serves other jobs too, and they would wait forever
            raise ChildDied(f"vLLM's engine died ({type(error).__name__}: {error})") from error
        finally:
            with self.turn:
                self.busy = False
                self.turn.notify_all()
        return self.flying


_engines: dict[tuple, Any] = {}
_starting = threading.Lock()


def engine_of(key: tuple, start: Callable[[bool], Any], runtime: Runtime) -> tuple[Any, bool]:
    """The engine `key` (its first part is the model's path) of this process, and whether it was started for this call:
    by `start`, which takes whether vLLM computes on CPU. A process has one: the parent sends it no other jobs, and
    here they end it (ChildDied). Raises BadInput for a model that vLLM does not take."""
    with _starting:
        if key in _engines:
            return _engines[key], False
        if _engines:
            raise ChildDied("vLLM: this process has an engine for another model or longer sequences")
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
            raise BadInput(f"{key[0]}: vLLM {vllm.__version__} does not take this model ({message})") from error
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


def _start(model_path: Path, length: int, decodes: bool, runtime: Runtime, cpu: bool) -> Any:
    """A vLLM engine."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from spin_core.engines.vllm_draws import RowDraws

    args = EngineArgs(
        model=str(model_path),
        **arguments(model_path, runtime, cpu),
        max_model_len=length,
        skip_tokenizer_init=not decodes,
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


def _params(request: Request, sampling: Sampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    how = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return SamplingParams(
        temperature=0.0,  # RowDraws leaves one token
        max_tokens=sampling.max_new_tokens,
        min_tokens=sampling.min_new_tokens,
        stop_token_ids=sorted(sampling.stop_ids),
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        ignore_eos=True,  # `stop_ids` has it
        logprobs=0 if sampling.logprobs else None,
        detokenize=bool(sampling.stop),
        skip_special_tokens=True,  # as the transformers engine looks for stop strings
        output_kind=RequestOutputKind.DELTA,
        extra_args={"seed": f"{request.seed:x}", **how},
    )
