"""vLLM's side of `kept`: a worker that takes another model's weights in place, and shows what it holds.

Mixed into vLLM's worker class (`worker_extension_cls`) and called by `collective_rpc`. Before weights are read all that
are there are made unusable, so that what is not replaced cannot be answered with: also what vLLM packs for a CPU's
kernels, which no weight shows any more. Imported by vLLM's processes only.
"""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from spin_core.engines.checkpoint import Checkpoint
from spin_core.engines.kept import Piece

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker as _Worker
else:
    _Worker = object

SHOWN_BYTES = 512 << 20
"""Of weights whose digests a worker shows."""


class KeptWeights(_Worker):
    """What spinloop adds to a worker."""

    def load_in_place(self, model: str) -> None:
        """Replace every weight by those in the directory `model`, of the same architecture."""
        self.unload()
        # torch.empty then gives NaN: a part of a fused weight that is not read stays unusable too.
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with Checkpoint(Path(model)) as checkpoint:
                self.reload_weights(weights_iterator=checkpoint.tensors())
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        for layer in self.model_runner.get_model().modules():
            # vLLM 0.32 packs an output layer that is tied to the embedding once, and would go on with the old weights.
            if isinstance(getattr(layer, "cpu_linear", None), _Unloaded) and layer.weight.numel():
                layer.quant_method.process_weights_after_loading(layer)

    def unload(self) -> None:
        """NaN in every weight, and in what a layer gives whose weight is in its kernel's own form."""
        net = self.model_runner.get_model()
        with torch.inference_mode():
            for weight in net.parameters():
                if weight.is_floating_point():
                    weight.data.fill_(torch.nan)
        for layer in net.modules():
            if hasattr(layer, "cpu_linear"):
                width = getattr(layer, "output_size_per_partition", None) or layer.num_embeddings_per_partition
                layer.cpu_linear = _Unloaded(width)

    def pieces(self) -> list[tuple]:
        """The fields of each Piece (vLLM sends plain values only) that it holds under a name of its own, at most
        SHOWN_BYTES of them: embeddings first, of which each of several GPUs has some rows. A fused weight's name is in
        no checkpoint, and is left out there."""
        net, shown, room = self.model_runner.get_model(), list[tuple](), SHOWN_BYTES
        embeddings = [(name, part) for name, part in net.named_modules() if isinstance(part, VocabParallelEmbedding)]
        for name, part in embeddings:
            first, stop = part.shard_indices.org_vocab_start_index, part.shard_indices.org_vocab_end_index
            shown.append(astuple(Piece.of(f"{name}.weight", part.weight[: stop - first], first, part=True)))
            room -= part.weight.nbytes
        known = {name for name, *_ in shown}
        for name, weight in sorted(net.named_parameters()):
            if name not in known and weight.numel() and weight.is_floating_point() and weight.nbytes <= room:
                shown.append(astuple(Piece.of(name, weight)))
                room -= weight.nbytes
        return shown


class _Unloaded:
    """In the place of a linear layer's kernel whose weights are gone: NaN of its `width`."""

    def __init__(self, width: int):
        self.width = width

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        return x.new_full((*x.shape[:-1], self.width), torch.nan)
