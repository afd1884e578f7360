"""What a check is given, what it gives, and how a part's checks are run one after the other."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

Figures = dict[str, float | str]
Say = Callable[[str], None]
NOT_REACHED = "not reached: time"


class Skip(Exception):
    """The check cannot be on this device, or its package or input is not there. Says which, in one sentence."""


@dataclass(frozen=True)
class Row:
    """One check's result. `ok`: None where it was skipped, or time was over; `said`: one sentence, empty where all is
    well."""

    part: str
    name: str
    ok: bool | None
    seconds: float
    figures: Figures = field(default_factory=dict)
    said: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Proof:
    """Where and how a check runs."""

    device: torch.device
    tiny: bool
    """A rehearsal: every size so small that a CPU core ends in a second or two."""
    out: Path
    """For what is to be kept beside results.json and results.md (a profile); six files at most, 16 MiB each, none in a
    folder of its own."""
    deadline: float
    """`time.monotonic()` at which this part's time is over."""
    kit: Path | None = None
    """What `make gpu-kit` made (docs/gpu.md: its content)."""
    work: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="spinloop-gpu-")))
    """For what is not kept; the machine's own disk."""

    def left(self) -> float:
        """Seconds until this part's time is over; a check that can be shorter looks at it."""
        return max(0.0, self.deadline - time.monotonic())

    def folder(self, name: str) -> Path:
        """A new, empty folder that is not kept."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work))

    def sync(self) -> None:
        """Waits for what the device was asked for: before every look at a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Check = Callable[[Proof], Figures]


def run_checks(part: ModuleType, proof: Proof, first: int = 0, begin: Say = lambda name: None) -> Iterator[Row]:
    """The rows of a part's checks from number `first` on, each as soon as it is known. `begin` is called with each
    name."""
    name = part.__name__.rpartition(".")[2]
    gc.freeze()  # what was imported stays: a collection that looks at it takes 0.3 s, and there are a hundred
    for check in part.CHECKS[first:]:
        if not proof.left():
            yield Row(name, check.__name__, None, 0.0, {}, NOT_REACHED)
            continue
        begin(check.__name__)
        began = time.monotonic()
        ok, figures, said = _outcome(check, proof)
        yield Row(name, check.__name__, ok, round(time.monotonic() - began, 3), figures, said)


def _outcome(check: Check, proof: Proof) -> tuple[bool | None, Figures, str]:
    """Whatever a check raises is its own row's; the memory that it held is free for the next."""
    try:
        try:
            return True, check(proof), ""
        finally:
            if proof.device.type == "cuda":
                gc.collect()
                torch.cuda.synchronize(proof.device)
                torch.cuda.empty_cache()
    except Skip as reason:
        return None, {}, f"skipped: {reason}"
    except AssertionError as error:
        return False, {}, _line(error) or "a check without a sentence failed"
    except Exception as error:
        return False, {}, f"{type(error).__name__}: {_line(error)}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]


def is_broken(row: Row) -> bool:
    """Whether a kernel's fault has left this process without a usable device: every later call would fail too."""
    return row.ok is False and ("CUDA error" in row.said or "AcceleratorError" in row.said)
