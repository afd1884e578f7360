"""What computes for lm_eval: a transformers model that spinloop loads, or vLLM. Both report each request when it is
done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.engines import Engine, transformers_engine, versions, vllm_engine
from spin_core.errors import ChildDied
from spin_core.job import Bar, Job

CHUNK = 8  # vLLM gets so many times its requests in flight at once: progress shows, and the last ones run alone rarely

_engine: dict[tuple, Any] = {}
"""The vLLM engine of this process: it serves one model (`harness.environment`), whose steps may follow each other."""


def _hf(path: Path, max_length: int | None, job: Job) -> Any:
    """The model as generate loads it: float32 on CPU, on a GPU the dtype of the weights on disk."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from spin_core.modeling.loading import apply_threads, load_model, load_tokenizer, pick_device, source_dtype

    apply_threads(job.runtime)
    device = pick_device(job.runtime)
    model = load_model(path, device, torch.float32 if device.type == "cpu" else source_dtype(path))
    lm: Any = HFLM(
        pretrained=model,
        tokenizer=load_tokenizer(path),
        backend="causal",
        batch_size=job.runtime.harness_batch,
        max_length=max_length,
    )
    return lm


def _vllm(path: Path, max_length: int | None, job: Job) -> Any:
    """lm_eval's own vLLM model, with the settings that generate's engine has. Special tokens that a model writes are
    part of the text here and not with transformers, so an answer that has some may count otherwise."""
    key = (path.resolve(), max_length)
    if _engine and key not in _engine:
        raise ChildDied("vLLM: this process has an engine for another model or length")
    if key not in _engine:
        cpu = vllm_engine.prepare(job.runtime)
        from lm_eval.models import vllm_causallms
        from transformers import AutoConfig

        try:
            if cpu:
                config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
                heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
                vllm_engine.check_heads(heads)
            how = vllm_engine.arguments(path, job.runtime, cpu)
            batch = CHUNK * job.runtime.requests_in_flight
            _engine[key] = vllm_causallms.VLLM(pretrained=str(path), batch_size=batch, max_length=max_length, **how)
        except Exception as error:
            raise vllm_engine.refused(path, error, cpu) from error
    return _engine[key]


@dataclass(frozen=True)
class Backend:
    """A model for lm_eval. `engine`: whose interpreter, versions and use of GPUs it shares; `load` gives lm_eval's LM
    of a model's directory and longest sequence, and raises BadInput for a model that does not load."""

    engine: Engine
    load: Callable[[Path, int | None, Job], Any]


BACKENDS: dict[str, Backend] = {
    "hf": Backend(transformers_engine, _hf),
    "vllm": Backend(vllm_engine, _vllm),
}
"""By the name that `harness.backend` has for them. A new one is its function and a line here (and its name in the
Literal of the setting; a test compares the two)."""


def load(name: str, model: Path, max_length: int | None, job: Job) -> Any:
    """lm_eval's LM of the model, watched by the job's progress bar. Raises BadInput for a model that does not load."""
    lm = BACKENDS[name].load(model, max_length, job)
    job.engine = versions(BACKENDS[name].engine.PACKAGES)
    _watch(lm, job)
    return lm


class _Watch:
    """Stands where lm_eval would keep answers for another run: it gets every answer, and counts them. `label` is
    what the bar is called."""

    def __init__(self) -> None:
        self.bar: Bar | None = None
        self.label = ""

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Called by lm_eval's models."""
        if self.bar and self.bar.done < self.bar.total:
            self.bar.advance()


def _watch(lm: Any, job: Job) -> None:
    """Show a bar around each of the three calls that lm_eval makes of a model, with the name of the task."""
    watch = _Watch()
    lm.set_cache_hook(watch)
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(lm, name, _with_bar(getattr(type(lm), name).__get__(lm), watch, job))


def _with_bar(call: Callable[..., list], watch: _Watch, job: Job) -> Callable[..., list]:
    def answers(requests: list[Any], **how: Any) -> list:
        with job.progress(watch.label, len(requests), "requests") as bar:
            watch.bar = bar
            try:
                return call(requests, **how)
            finally:
                watch.bar = None

    return answers
