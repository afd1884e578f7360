"""What computes for lm_eval: a transformers model that spinloop loads, or vLLM. Both report each request when it is
done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.engines import Engine, transformers_engine, versions, vllm_engine
from spin_core.job import Bar, Job

CHUNK = 8  # vLLM gets so many times its requests in flight at once: progress shows, and the last ones run alone rarely


def _hf(path: Path, max_length: int | None, job: Job) -> Any:
    """The model as generate loads it: float32 on CPU, on a GPU the dtype of the weights on disk."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from spin_core.modeling.loading import apply_threads, load_model, load_tokenizer, pick_device, source_dtype

    apply_threads(job.runtime)
    device = pick_device(job.runtime)
    model = load_model(path, device, torch.float32 if device.type == "cpu" else source_dtype(path))
    return HFLM(
        pretrained=model,
        tokenizer=load_tokenizer(path),
        backend="causal",
        batch_size=job.runtime.harness_batch,
        max_length=max_length,
    )


def _vllm(path: Path, max_length: int | None, job: Job) -> Any:
    """lm_eval's own vLLM model, with the settings that generate's engine has. Special tokens that a model writes are
    part of the text here and not with transformers, so an answer that has some may count otherwise."""

    def start(cpu: bool) -> Any:
        from lm_eval.models import vllm_causallms
        from transformers import AutoConfig

        if cpu:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            vllm_engine.check_heads(
                getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            )
        how = vllm_engine.arguments(path, job.runtime, cpu)
        batch = CHUNK * job.runtime.requests_in_flight
        return vllm_causallms.VLLM(pretrained=str(path), batch_size=batch, max_length=max_length, **how)

    # The process serves one model (`harness.environment`), whose steps may follow each other.
    engine, _ = vllm_engine.engine_of(path, (path.resolve(), max_length), start, job.runtime)
    return engine


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
    backend = BACKENDS[name]
    lm = backend.load(model, max_length, job)
    job.engine = versions(backend.engine.PACKAGES)
    watch = _Watch(job)
    lm.set_cache_hook(watch)
    for call in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(lm, call, watch.around(getattr(type(lm), call).__get__(lm)))
    return lm


class _Watch:
    """Stands where lm_eval would keep answers for another run: it gets every answer, and counts them on a bar around
    each call of the model. `label`, the task's name, is what the bar is called."""

    def __init__(self, job: Job) -> None:
        self.job, self.label = job, ""
        self.bar: Bar | None = None

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Called by lm_eval's models."""
        if self.bar and self.bar.done < self.bar.total:
            self.bar.advance()

    def around(self, call: Callable[..., list]) -> Callable[..., list]:
        def answers(requests: list[Any], **how: Any) -> list:
            with self.job.progress(self.label, len(requests), "requests") as self.bar:
                try:
                    return call(requests, **how)
                finally:
                    self.bar = None

        return answers
