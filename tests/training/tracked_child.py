"""Two trainings as steps of a store, with their board, in a process of its own: test_boards kills it in the second one,
and starts it again."""

import json
import sys
from pathlib import Path

from spin_core.config.runtime import Runtime
from spin_core.config.sft import Sft
from spin_core.job import Place
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, compute, look_up
from spin_core.sources import resolve
from spin_core.sources.resolve import Ref
from spin_core.stages import sft
from spin_core.store.store import Store
from tasks.runner.progress import Progress
from tasks.runner.trackers import Trackers
from tests.trackers import reading

place, model, tokens = map(Path, sys.argv[1:4])
store, trees, cached = Store(place), [], []
inputs = {
    "model": Ref("a" * 64, path=str(model), kind="model", stamp=resolve.stamp(model)),
    "tokens": Ref("b" * 64, path=str(tokens), stamp=resolve.stamp(tokens)),
}
runtime = Runtime(device="cpu", threads=1, checkpoint_every=20, trackers=["tensorboard"])


def config(epochs: float) -> sft.Config:
    part = Sft(lr=1e-3, epochs=epochs, global_batch=4, max_length=128, warmup_ratio=0.0)
    return sft.Config(sft=part, seed=7)


trackers = Trackers(runtime.trackers, store, {"project": "demo", "run": "demo-1", "config": {}}, Progress())
with store.using(), Children(1) as children:
    for label, where, epochs in (
        ("θ_0", Place("start", model=0), 2.0),
        ("instead of 1 iter", Place("control", 0), 80.0),
    ):
        keyed = KeyedStep(Step(sft, label, config(epochs), where), inputs)

        def send(event: dict, keyed: KeyedStep = keyed) -> None:
            if "metrics" in event:
                trackers.live(keyed, event["metrics"])

        there = look_up(store, keyed)
        record = there or compute(store, keyed, runtime, children, send)[0]
        trackers.ended(keyed.step, record)
        trees.append(str(record.path))
        cached.append(there is not None)
        # The sink takes seconds to begin, and the second training is over in as many.
        reading.until(lambda: any((place / "trackers" / "tensorboard").rglob("events.*")))
    trackers.close(300)
print(json.dumps({"cached": cached, "trees": trees}))
