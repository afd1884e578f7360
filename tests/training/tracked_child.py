"""One training as a step of a store, with its board, in a process of its own: test_boards kills it, and starts it again."""

import json
import sys
from pathlib import Path

from training_data import sft_config

from spin_core.config.runtime import Runtime
from spin_core.job import Place
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, compute, look_up
from spin_core.sources import resolve
from spin_core.sources.resolve import Ref
from spin_core.stages import sft
from spin_core.store.store import Store
from tasks.runner.progress import Progress
from tasks.runner.trackers import Trackers

place, model, tokens = map(Path, sys.argv[1:4])
store, step = Store(place), Step(sft, "θ_0", sft_config(epochs=10.0), Place("start", model=0))
model_ref = Ref("a" * 64, path=str(model), kind="model", stamp=resolve.stamp(model))
tokens_ref = Ref("b" * 64, path=str(tokens), stamp=resolve.stamp(tokens))
keyed = KeyedStep(step, {"model": model_ref, "tokens": tokens_ref})
runtime = Runtime(device="cpu", threads=1, checkpoint_every=2, trackers=["tensorboard"])
head = {"project": "demo", "run": "demo-1", "config": {}}
trackers = Trackers(runtime.trackers, store, head, Progress())


def send(event: dict) -> None:
    if "metrics" in event:
        trackers.live(keyed, event["metrics"])


with store.using(), Children(1) as children:
    there = look_up(store, keyed)
    record = there or compute(store, keyed, runtime, children, send)[0]
    trackers.ended(step, record)
    trackers.close(300)
print(json.dumps({"cached": there is not None, "tree": str(record.path)}))
