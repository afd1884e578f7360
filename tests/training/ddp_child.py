"""One of several processes of a finetune, as `accelerate launch` starts them (its environment variables, gloo)."""

import sys
from pathlib import Path

from training_data import DIGESTS, finetune_config, job_at

from spin_core.stages import finetune

model, pairs, logps, place = map(Path, sys.argv[1:])
inputs = {"model": model, "pairs": [pairs], "logps": [logps]}
finetune.run(inputs, finetune_config(lr=1e-5), job_at(place, DIGESTS, micro_batch=2, checkpoint_every=2))
