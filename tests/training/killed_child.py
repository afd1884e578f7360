"""Runs finetune in a process of its own that writes one line per optimiser step, to be killed by test_resume."""

import json
import sys
from pathlib import Path

from training_data import DIGESTS, finetune_config, job_at

from spin_core.stages import finetune

model, pairs, logps, place = map(Path, sys.argv[1:5])
job = job_at(place, DIGESTS, checkpoint_every=2)
job.send = lambda event: print(event["label"], event["done"], flush=True)
inputs = {"model": model, "pairs": [pairs], "logps": [logps]}
finetune.run(inputs, finetune_config(schedule_epochs=3.0, warmup_ratio=0.1, **json.loads(sys.argv[5])), job)
