"""The tensors of a model's directory by name, read where they are used (safetensors, one file or several)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoint:
    """A context manager: its files are open inside. Raises BadInput for a directory without weights."""

    def __init__(self, model: Path):
        self.model = model
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Checkpoint:
        from safetensors import safe_open

        paths = sorted(self.model.glob("*.safetensors"))
        if not paths:
            raise BadInput(f"{self.model}: has no *.safetensors; give a model's directory with weights")
        for path in paths:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def shape(self, name: str) -> list[int]:
        """Empty where there is no such tensor."""
        return list(self._files[name].get_slice(name).get_shape()) if name in self._files else []

    def weights(self) -> int:
        """How many numbers all tensors have together."""
        return sum(math.prod(self.shape(name)) for name in self._files)

    def rows(self, name: str, first: int, stop: int) -> Tensor:
        """Some rows of a tensor, in its own dtype."""
        rows: Tensor = self._files[name].get_slice(name)[first:stop]
        return rows

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, in the order of names."""
        for name in sorted(self._files):
            yield name, self._files[name].get_tensor(name)
