"""How fast the answers of an iteration came, over the shards that ran in this run."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass

from spin_core.runtime.step import Step
from spin_core.store.store import Record, Store

FILE = "throughput.json"


@dataclass(frozen=True)
class Shard:
    """One finished shard of answers; `began` and `ended` are seconds of this process's monotonic clock."""

    cached: bool
    answers: int
    tokens: int
    began: float
    ended: float


class Throughput:
    """The shards of generate as they end, by iteration. Threads may add at once."""

    def __init__(self) -> None:
        self._shards: dict[int | None, list[Shard]] = {}

    def add(self, step: Step, record: Record, cached: bool, now: float | None = None) -> None:
        """Note a step that is in the store since `now` (this moment); of other stages than generate nothing is kept."""
        if step.stage != "generate":
            return
        ended = time.monotonic() if now is None else now
        summary, seconds = record.facts.get("summary", {}), record.facts.get("seconds") or 0
        shard = Shard(cached, summary.get("answers", 0), summary.get("tokens", 0), ended - seconds, ended)
        self._shards.setdefault(step.place.iteration, []).append(shard)

    def figures(self) -> dict[str, dict]:
        """By iteration (`iter 0`): `shards`, `cached` of them; of those that ran `answers`, `tokens`, `seconds` from
        the first one's start to the last one's end, `tokens_per_second`, and `first_shard_seconds` until one was in the
        store. Iterations of which nothing ran are left out."""
        figures = {}
        for t, shards in sorted(self._shards.items(), key=lambda one: -1 if one[0] is None else one[0]):
            ran = [shard for shard in shards if not shard.cached]
            if not ran:
                continue
            began, tokens = min(shard.began for shard in ran), sum(shard.tokens for shard in ran)
            seconds = max(shard.ended for shard in ran) - began
            figures[_name(t)] = {
                "shards": len(shards),
                "cached": len(shards) - len(ran),
                "answers": sum(shard.answers for shard in ran),
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
                "first_shard_seconds": round(min(shard.ended for shard in ran) - began, 3),
            }
        return figures

    def line(self, iteration: int | None) -> str:
        """The figures of an iteration for people; empty where nothing ran."""
        name = _name(iteration)
        f = self.figures().get(name)
        if f is None:
            return ""
        return (
            f"generate[{name}]: {f['shards']:,} shards ({f['cached']:,} cached), {f['answers']:,} answers, "
            f"{f['tokens']:,} tokens in {f['seconds']:,.1f} s, {f['tokens_per_second'] or 0:,.0f} tokens/s; "
            f"first shard after {f['first_shard_seconds']:,.1f} s"
        )

    def write(self, store: Store, name: str) -> None:
        """`runs/<name>/throughput.json`. Iterations of which nothing ran this time keep the figures they had."""
        before: dict = {}
        with suppress(OSError, ValueError):
            before = dict(json.loads((store.root / "runs" / name / FILE).read_text(encoding="utf-8")))
        store.write_run_file(name, FILE, (json.dumps(before | self.figures(), indent=1) + "\n").encode())


def _name(iteration: int | None) -> str:
    """`iter 0`; of shards that a person started on a pool there is no iteration."""
    return "" if iteration is None else f"iter {iteration}"
