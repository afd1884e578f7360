"""What one pass of a decoder holds besides its weights: bytes, counted tensor by tensor as autograd keeps them.

The model is transformers' Llama layer as this project runs it: packed attention (`spin_core/modeling/attention.py`),
logits of labels only, in chunks (`spin_core/modeling/chunked_logps.py`). What a kernel needs for a moment is in `work`;
what waits for the backward pass in `saved`. Is not: an allocator; what it rounds up or leaves unused between blocks is
`fit`'s reserve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spin_core.config.choices import Precision
from spin_core.estimate.architecture import Architecture

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""As in `spin_core/modeling/chunked_logps.py`, which loads torch; a test compares them."""


@dataclass(frozen=True)
class PassShape:
    """The groups of one packed pass: (tokens of the prompt, tokens of each answer behind it)."""

    groups: Sequence[tuple[int, Sequence[int]]]

    @property
    def tokens(self) -> int:
        """Of the pass: each prompt once."""
        return sum(prompt + sum(answers) for prompt, answers in self.groups)

    @property
    def labels(self) -> int:
        """Answer tokens."""
        return sum(sum(answers) for _, answers in self.groups)


@dataclass(frozen=True)
class Form:
    """How a pass is computed. `rank`: of a LoRA, 0: all weights are trained. `alone`: one process, whose output layer
    adds its gradient in place."""

    precision: Precision = "float32"
    device: Literal["cpu", "cuda"] = "cuda"
    rank: int = 0
    alone: bool = True

    @property
    def width(self) -> int:
        """Bytes of a number that a matrix product reads."""
        return 2 if self.precision == "bfloat16" else 4


def saved_by_attention(a: Architecture, b: PassShape, form: Form) -> int:
    """What a layer's attention keeps: queries, keys, values, outputs and log-sums of its calls (trunks: prompts with
    their first answers; branches: the other answers), the branches' mask, and the output in the order of the pass."""
    e, one = form.width, len(b.groups) == 1
    # On CUDA keys and values are repeated for every query head, of trunks in float32 only (see `attention._sdpa`).
    wide = a.queries if form.device == "cuda" and a.heads != a.kv_heads else a.keys
    plain = wide if e == 4 else a.keys
    rows = len(b.groups) * max(prompt + answers[0] for prompt, answers in b.groups)
    branches = [(prompt, n) for prompt, answers in b.groups for n in answers[1:] if n]
    queries = len(branches) * max((n for _, n in branches), default=0)
    longest = max((prompt + n for prompt, n in branches), default=0)
    keys = len(branches) * longest
    kept = (rows * a.queries + 2 * rows * plain) * e  # q, k, v of the trunks
    kept += (queries * a.queries + 2 * keys * wide + queries * longest) * e  # of the branches, and their mask
    kept += (rows + queries) * (a.queries * e + 4 * a.heads)  # outputs, log-sums
    if branches or not one:
        kept += b.tokens * a.queries * e  # put together
    return kept


def saved_by_layer(a: Architecture, b: PassShape, form: Form) -> int:
    """All that a layer keeps for its backward pass, its input included."""
    t, e, all_weights = b.tokens, form.width, form.rank == 0
    norms = 2 * t * (4 * a.hidden * (2 if all_weights else 1) + 4)  # input, and the factor of the norm's weight
    inputs = t * a.hidden * e * (5 if e == 2 else 2)  # of q, k, v and of gate, up: autocast casts for each
    mlp = 4 * t * a.intermediate * e
    adapters = 7 * t * form.rank * e
    return norms + inputs + saved_by_attention(a, b, form) + mlp + adapters


def work_of_layer(a: Architecture, b: PassShape, form: Form) -> int:
    """For a moment in a layer's backward pass: gradients of the MLP's two factors, of the residual stream, and of its
    widest matrix."""
    t, e = b.tokens, form.width
    matrix = max(a.hidden * a.intermediate, a.hidden * a.queries) if form.rank == 0 else 0
    return 2 * t * a.intermediate * e + 2 * t * a.hidden * 4 + matrix * (4 if e == 4 else 6)


def chunks(a: Architecture, labels: int, form: Form) -> tuple[int, int]:
    """(labels of the first chunk, bytes of float32 logits and log-softmax at their most): a chunk's two, and from the
    second chunk on the one before."""
    rows = max(1, min(labels, CHUNK_BYTES[form.device] // (4 * a.vocab)))
    second = min(rows, labels - rows)
    return rows, 4 * a.vocab * max(2 * rows, rows + 2 * second)


def head(a: Architecture, b: PassShape, form: Form, gradients: bool) -> tuple[int, int]:
    """(in the forward pass, in the backward pass) beyond what the layers keep: the last norm, the hidden states of the
    labels, chunks of logits, and the weight's gradient where it is not added to one that is there (`gradients`)."""
    t, n, e = b.tokens, b.labels, form.width
    rows, held = chunks(a, n, form)
    chunk = 4 * a.vocab * rows
    cast = 2 * a.embeddings if e == 2 else 0
    norm = t * 4 * a.hidden * (2 if form.rank == 0 else 1)
    kept = norm + n * a.hidden * e + cast
    forward = kept + 4 * t * a.hidden + held
    backward = kept + n * a.hidden * e + (held if n > rows else chunk) + (0 if form.alone else chunk)
    backward += 2 * a.vocab * rows if e == 2 else 0
    if form.rank == 0:
        # In bfloat16 its product is added by way of a float32 copy on CPU; kernels on CUDA read both.
        copied = form.device == "cpu" and e == 2
        backward += 2 * a.embeddings if e == 2 else 0
        backward += 4 * a.embeddings if copied or not (gradients and form.alone) else 0
    return forward, backward


def work_of_reading(a: Architecture, b: PassShape, form: Form) -> int:
    """The most that a pass without backward holds: in the MLP of a layer, in its attention, or at the output layer."""
    t, n, e = b.tokens, b.labels, form.width
    cast = 2 * a.hidden * a.intermediate if e == 2 else 0
    stream = t * 4 * a.hidden
    # Embeddings, the layer's input, residual and normed states are all in use, and cosines and sines of the places.
    around = 4 * stream + 8 * t * a.head_dim
    mlp = around + 3 * t * a.intermediate * e + cast
    attention = around - stream + saved_by_attention(a, b, form) + t * (a.queries + a.keys) * e
    logits = chunks(a, n, form)[1] + (2 * a.embeddings if e == 2 else 0)
    return max(mlp, attention, stream + n * a.hidden * e + logits)
