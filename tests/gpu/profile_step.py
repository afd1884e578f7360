"""One training step under torch's profiler: which kernels take how long, and how long the device waits."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.bench_work import Watch, synchronize
from tests.gpu.proof import Figures, Proof, Skip

SHOWN, WIDTH = 10, 60


class Profiled(Watch):
    """Looks at the third step of a training: what a process does only once is behind it."""

    def __init__(self, proof: Proof):
        super().__init__()
        self.cuda, self.steps, self.wall = proof.device.type == "cuda", 0, 0.0
        self.profile = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])])

    def step(self) -> None:
        self.steps += 1
        synchronize()
        if self.steps == 2:
            self.profile.start()
            self.wall = time.perf_counter()
        elif self.steps == 3:
            self.wall = time.perf_counter() - self.wall
            self.profile.stop()

    def figures(self, file: Path) -> Figures:
        """Shares of the ten longest and of the time without work; all of them go into `file`."""
        spans, named = self._kernels(), Counter[str]()
        for name, begin, end in spans:
            named[name] += end - begin
        if not spans:
            raise Skip("torch's profiler sees no kernel here; the driver's CUPTI has to be allowed to")
        total, calls = sum(named.values()), Counter(name for name, *_ in spans)
        longest = named.most_common()
        lines = [f"{took / 1e3:10.2f} ms  {took / total:6.1%}  {calls[name]:6}  {name}\n" for name, took in longest]
        busy = _covered([(begin, end) for _, begin, end in spans]) / 1e6
        head = f"one step: {self.wall * 1e3:.1f} ms, of which the device works {busy * 1e3:.1f} ms\n"
        file.write_text(head + "".join(lines), encoding="utf-8")
        first = enumerate(longest[:SHOWN], 1)
        shares: Figures = {f"{i}. {name[:WIDTH]}": took / total for i, (name, took) in first}
        return {"step, s": self.wall, "device idle": max(0.0, 1 - busy / self.wall), **shares}

    def _kernels(self) -> list[tuple[str, float, float]]:
        """Name, begin and end (microseconds) of what ran on the device; on a CPU the operators that call no other."""
        kind = DeviceType.CUDA if self.cuda else DeviceType.CPU
        there: list[Any] = [event for event in self.profile.events() if event.device_type == kind]
        if self.cuda:  # spans that somebody named are there too
            wanted = [event for event in there if not getattr(event, "is_user_annotation", False)]
        else:
            wanted = [event for event in there if not event.cpu_children]
        return [(event.name, event.time_range.start, event.time_range.end) for event in wanted]


def _covered(spans: list[tuple[float, float]]) -> float:
    """How much of the time any of the spans covers."""
    covered, last = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, last))
        last = max(last, end)
    return covered
