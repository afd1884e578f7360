"""vLLM's side of `decoding`: a logits processor that leaves each row one token, drawn with the row's own numbers.

vLLM then takes the arg max (requests are sent with its temperature 0). Its own seeded sampling is not used: on CPU it
ends the engine when a prompt is prefilled in parts (0.32), on GPU it draws row by row. Imported by vLLM's processes
only.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from spin_core.engines.decoding import draw, uniforms

Row = tuple[torch.Tensor, list[int], tuple[float, float, int]]
"""Its uniform numbers, its tokens so far, and temperature, top_p and top_k."""


class RowDraws(LogitsProcessor):
    """One entry for each row of vLLM's batch: its uniform numbers, and the list of its tokens so far, whose length
    says which number is next (also after a preemption or a prompt prefilled in parts)."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self.rows: dict[int, Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False, so that vLLM applies it to greedy requests, and before the others."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Rows that were added, removed or moved."""
        process_dict_updates(self.rows, batch_update, self._row)

    @staticmethod
    def _row(params: Any, _: Any, tokens: list[int]) -> Row | None:
        how = params.extra_args
        if not how or how["temperature"] == 0:
            return None
        # One number more than tokens: what vLLM computes beyond the last one is thrown away.
        numbers = torch.from_numpy(uniforms(int(how["seed"], 16), params.max_tokens + 1))
        return numbers, tokens, (how["temperature"], how["top_p"], how["top_k"])

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """0 at the drawn token, −inf elsewhere, in place; rows without draws stay as they are."""
        groups: dict[tuple[float, float, int], list[int]] = {}
        for row, (*_, how) in self.rows.items():
            groups.setdefault(how, []).append(row)
        for how, rows in groups.items():
            uniform = torch.stack([self.rows[row][0][len(self.rows[row][1])] for row in rows])
            index = torch.tensor(rows, device=logits.device)
            drawn = draw(logits[index], uniform, *how)
            logits[index] = -torch.inf
            logits[index, drawn] = 0.0
        return logits
