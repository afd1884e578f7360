"""A year of weekly reruns on a dataset that grows, as a store sees it: real outputs of made-up bytes, the real gc.

`python -m tests.store.year docs/store-year.svg` draws the disk over the weeks. Models are 1.2 MB in place of 14 GB and
shards of answers 20 KB.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from flows.keeping import clear
from spin_core.analysis.account import file_of, name_of
from spin_core.store import keep
from spin_core.store.keys import payload
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.usage import usage
from tests.faults.s3.test_deltas import trained, weights
from tests.faults.store.battery import compute
from tests.faults.store.kinds import Step

BEGIN = datetime(2026, 1, 5, 3, tzinfo=UTC)
MODEL = len(weights())
QUOTA = 60 * MODEL
"""Bytes: the best model of each week must stay (52), and there is room for a few weeks' other outputs beside them."""
POLICY = {"keep_runs": 2, "older_than": "12w", "max_size": f"{QUOTA}B"}
COSTS = {"total": {}, "lines": []}


class Year:
    """The store of a profile that runs each week: shards of rows, answers to each, two models, one of which is best."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before: list[int] = []
        self.after: list[int] = []
        self.total = 0
        self.generated_again = 0
        self.needed: dict[str, Record] = {}
        self.pinned: list[Record] = []
        self.last: list[Record] = []
        self._first = Step(payload("import_model", 1, {}, {"source": "a" * 64}), {"model.safetensors": weights()})

    def rerun(self, week: int) -> None:
        """One run: what the store has is not made again, the rest is."""
        ran: list[str] = []
        made = [compute(self.store, self._first, ran)]
        shards = 4 + week // 4
        rows = [
            compute(self.store, _step("reformat", {"shard": n}, [], _bytes(f"rows {n}", 20_000)), ran)
            for n in range(shards)
        ]
        pairs = []
        for n, row in enumerate(rows):
            step = _step("generate", {"shard": n}, [made[0].digest, row.digest], _bytes(f"pairs {n}", 20_000))
            fresh: list[str] = []
            pairs.append(compute(self.store, step, fresh))
            # A shard of last week's rows under the same model: the last run needs it, so it is there.
            self.generated_again += bool(fresh) and week > 0 and n < 4 + (week - 1) // 4
            ran += fresh
        data = weights()
        for t in range(2):
            data = trained(data, 1000 + 10 * week + t)
            files = {"model.safetensors": data}
            inputs = [made[-1].digest, *(pair.digest for pair in pairs)]
            config = {"t": t, "week": week}
            made.append(compute(self.store, Step(payload("finetune", 1, config, {"model": inputs}), files), ran))
        self.total += sum(sum(file["size"] for file in record.files) for record in made[1:])
        name = self._name(week)
        links = {f"{n:02}-{stage}": record.digest for n, (stage, record) in enumerate(_labels(rows, pairs, made))}
        self.store.link_run(name, links | {"best": made[1 + week % 2].digest})
        began = BEGIN + timedelta(weeks=week)
        self.store.write_run_file(name, name_of(began, f"{week:06x}"), file_of("year", COSTS))  # type: ignore[arg-type]
        self.needed[name] = made[1 + week % 2]
        self.last = [*rows, *pairs, *made]

    def pin(self) -> None:
        """The run of this week is to stay."""
        self.store.write_run_file(list(self.needed)[-1], keep.PINNED, b"pinned\n")
        self.pinned = self.last

    def clear(self, week: int) -> None:
        """The weekly gc."""
        self.before.append(usage(self.store).total)
        clear(self.store, keep.parse(POLICY, "year"), now=BEGIN + timedelta(weeks=week, hours=9))
        self.after.append(usage(self.store).total)

    def lost(self) -> list[str]:
        """What should be there and is not: the best model of every week, all of the pinned run and of the last."""
        should = [*self.needed.values(), *self.pinned, *self.last]
        return [f"{one.stage} {one.key[:12]}" for one in should if self.store.lookup(one.stage, one.key) is None]

    def _name(self, week: int) -> str:
        return f"year-{week:06x}"


def _labels(rows: list[Record], pairs: list[Record], made: list[Record]) -> list[tuple[str, Record]]:
    shards = [(f"reformat-{n}", one) for n, one in enumerate(rows)] + [
        (f"generate-{n}", one) for n, one in enumerate(pairs)
    ]
    return [*shards, ("import", made[0]), *((f"finetune-iter-{t}", one) for t, one in enumerate(made[1:]))]


def _step(stage: str, config: dict, inputs: list[str], data: bytes) -> Step:
    return Step(payload(stage, 1, config, {"from": inputs}), {"data.bin.json": data})


def _bytes(seed: str, count: int) -> bytes:
    drawn = np.random.default_rng(list(seed.encode())).integers(0, 256, count // 2, np.uint8)
    return json.dumps(drawn.tobytes().hex()).encode()


def main() -> None:
    with TemporaryDirectory() as folder:
        year = Year(Store(Path(folder)))
        for week in range(52):
            year.rerun(week)
            if week == 10:
                year.pin()
            year.clear(week)
        print(f"made {year.total / MODEL:.0f} models' worth, at most {max(year.before) / MODEL:.1f} before a gc and")
        print(f"{max(year.after) / MODEL:.1f} after one; quota {QUOTA / MODEL:.1f}; lost: {year.lost() or 'nothing'}")
    draw(year, Path(sys.argv[1]))


def draw(year: Year, file: Path) -> None:
    """Disk over the weeks, before and after each gc, and the quota, in whole models."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {"svg.hashsalt": "year", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    )
    figure, axes = pyplot.subplots(figsize=(7.2, 3.2))
    weeks = range(1, len(year.after) + 1)
    axes.plot(weeks, [size / MODEL for size in year.before], color="#b07a4a", lw=1.2, label="before the weekly gc")
    axes.plot(weeks, [size / MODEL for size in year.after], color="#2f5d8a", lw=1.6, label="after it")
    axes.axhline(QUOTA / MODEL, color="#888888", lw=1, ls="--")
    axes.text(1, QUOTA / MODEL + 1, "quota (max_size)")
    axes.plot(weeks, list(weeks), color="#999999", lw=1, ls=":", label="the best model of each week alone")
    axes.set_xlabel("week")
    axes.set_ylabel("disk, in whole models")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
