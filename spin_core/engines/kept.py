"""When an engine that is kept from one model to the next may answer for the next one: what both must have alike, and
what it must show after its weights were replaced. No vLLM here.

Why so much distrust: an engine that goes on with the old weights, with some of them, or with keys and values that the
old ones computed (vllm-project/vllm, issue 32718) answers fluently, and every later figure is of the wrong model. Two
things are compared with the checkpoint: log-probs of a fixed probe, drawn by the way that answers are drawn, with the
model's own, which transformers computes here; and the bits of the weights that an engine holds under the checkpoint's
own names. Is not: a check of an engine's first model, which it loads as any engine does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.config.runtime import Runtime
from spin_core.engines import Request, Sampling
from spin_core.engines.answer_checks import Limits
from spin_core.engines.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Nats by which one token's log-prob may differ between an engine and transformers, by the engine's dtype. Float32 on
CPU: 2e-5 at most were measured (tests/stages/test_kept_engine.py prints it). The other two are not measured but
reckoned: eight of the dtype's roundings of a logit near 16, as a GPU's kernels round in another order."""
PROBES, NEW, LONGEST = 4, 8, 160
"""Prompts of the probe, tokens drawn to each, and the length of a prompt: more than a block of vLLM's prefix cache (128
on CPU) where the engine's sequences have room for it."""
LENGTH_DEPENDENT = ("longrope", "dynamic", "su")
"""Kinds of rotary scaling whose positions vLLM computes by an engine's longest sequence."""
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
USED = ("device", "threads", "requests_in_flight", "tensor_parallel", "gpu_memory", "vllm_kv_gib")


@dataclass(frozen=True)
class Wanted:
    """What an engine is to serve. `digest`: the model's content; `length`: the longest sequence; `decodes`: whether
    stop strings need its tokenizer; `settings`: what cannot change while it runs, by name."""

    model: Path
    digest: str
    length: int
    decodes: bool
    settings: Mapping[str, str]
    needs_length: bool = False
    """Whether its positions depend on the longest sequence."""


def wanted(model: Path, digest: str, length: int, decodes: bool, runtime: Runtime, dtype: str) -> Wanted:
    """Read from the model's files. Of the runtime what an engine is started with."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    rope = [part.get(name) or {} for part in (config, config.get("text_config") or {}) for name in
            ("rope_scaling", "rope_parameters")]  # fmt: skip
    scaled = any(kind in json.dumps(rope) for kind in LENGTH_DEPENDENT)
    lasting = {name: value for name, value in config.items() if name not in VOLATILE}
    settings = {
        "architecture": json.dumps(lasting, sort_keys=True),
        "dtype": dtype,
        "tokenizer": _tokenizer(model) if decodes else "",
        **{f"runtime.{name}": str(getattr(runtime, name)) for name in USED},
    }
    return Wanted(model, digest, length, decodes, settings, scaled)


def _tokenizer(model: Path) -> str:
    files = sorted([*model.glob("tokenizer*"), *model.glob("special_tokens*"), *model.glob("*.txt")])
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def unfit(have: Wanted, want: Wanted) -> str:
    """Why an engine that was started for `have` cannot be given the weights of `want`; empty where it can."""
    if have.length < want.length or (want.needs_length and have.length != want.length):
        return f"was started for sequences of {have.length} tokens, and {want.length} are needed"
    if want.decodes and not have.decodes:
        return "was started without the tokenizer that stop strings need"
    for name, value in want.settings.items():
        if name != "tokenizer" and have.settings[name] != value:
            return f"was started with another {name}"
    if want.decodes and have.settings["tokenizer"] != want.settings["tokenizer"]:
        return "was started with another tokenizer"
    return ""


def probe(model: Path, length: int) -> tuple[list[Request], Sampling]:
    """The same requests for every model of one vocabulary: tokens drawn by a hash, answered at temperature 1."""
    new = max(1, min(NEW, length // 2))
    vocab_size = Limits.of(model).vocabulary or 1
    asked = []
    for i in range(PROBES):
        ids = [_number(i, j) % vocab_size for j in range(max(1, min(LONGEST, length - new)))]
        asked.append(Request(f"probe {i}", ids, _number(i, -1)))
    return asked, Sampling(1.0, 1.0, new, frozenset(), 0, logprobs=True)


def _number(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Piece:
    """A weight as an engine holds it, or some of its rows from `first` on where it is a `part` (an embedding, of which
    each of several GPUs has some): its shape [rows, …] and a digest of its bits."""

    name: str
    first: int
    shape: Sequence[int]
    part: bool
    digest: str

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, first: int = 0, part: bool = False) -> Piece:
        """A tensor of any dtype and device."""
        import torch

        data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        return cls(name, first, list(tensor.shape), part, digest)


def own_pieces(model: Path, held: Sequence[Piece], dtype: torch.dtype) -> list[Piece]:
    """The same rows of the checkpoint in the engine's dtype; without those that the checkpoint has not in that
    shape."""
    pieces = []
    with Checkpoint(model) as checkpoint:
        for piece in held:
            shape, stop = checkpoint.shape(piece.name), piece.first + piece.shape[0]
            fits = shape[1:] == [*piece.shape[1:]] and stop <= shape[0] and (piece.part or stop == shape[0])
            if shape and fits:
                rows = checkpoint.rows(piece.name, piece.first, stop).to(dtype)
                pieces.append(Piece.of(piece.name, rows, piece.first, piece.part))
    return pieces


def own_logps(model: Path, dtype: torch.dtype, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """Log-probs of each answer's tokens after its prompt, in nats: transformers' forward passes on CPU in the engine's
    dtype."""
    import torch

    from spin_core.modeling.loading import load_model

    net, every = load_model(model, "cpu", dtype), []
    with torch.inference_mode():
        for prompt, answer in sequences:
            logits = net(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            logps = logits.float().log_softmax(-1)
            every.append(logps.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist())
    return every


def distance(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """The largest difference of two log-probs, in nats; not finite where one is missing or not finite."""
    if [len(one) for one in ours] != [len(one) for one in theirs] or not ours:
        return math.nan
    gaps = [abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.nan


def verdict(gap: float, dtype: str, held: Sequence[Piece], own: Sequence[Piece], before: Sequence[Piece] | None) -> str:
    """Why an engine must not answer for the model it was given; empty where it may.

    `gap`: see `distance`; `held`: what it holds under the checkpoint's names, `own` the same of the checkpoint,
    `before` that of the model it served last, None where that was the same one. Where no piece differs between the
    two models, equal bits prove nothing, and neither do log-probs that are close.
    """
    if not math.isfinite(gap):
        return "has weights that were not loaded (its log-probs are no numbers)"
    there = {(piece.name, piece.first): piece.digest for piece in held}
    wrong = [piece.name for piece in own if there.get((piece.name, piece.first)) != piece.digest]
    if wrong:
        return f"holds a {wrong[0]} that is not this model's"
    if gap > TOLERANCE[dtype]:
        return f"gives log-probs {gap:.3g} nats from this model's own (tolerance {TOLERANCE[dtype]:g})"
    known = {(piece.name, piece.first, piece.digest) for piece in before or ()}
    if before is not None and not {(piece.name, piece.first, piece.digest) for piece in own} - known:
        return "holds no weight by which this model differs from the one before"
    return ""


def engine_dtype(name: str) -> Any:
    """torch's dtype of that name."""
    import torch

    return getattr(torch, name)
