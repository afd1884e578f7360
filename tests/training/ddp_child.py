"""One of several processes of a finetune, with the environment variables of a launcher (gloo).

Arguments: the model, a place, and a JSON list of [pairs, logps, settings]: one finetune after another, in `0`, `1` … of
the place.
"""

import json
import os
import sys
from pathlib import Path

import torch
from training_data import DIGESTS, finetune_config, job_at

from spin_core.modeling.logprobs import Policy
from spin_core.stages import finetune

model, place = map(Path, sys.argv[1:3])
passes: list[tuple[int, bool]] = []
"""Sequences of every forward pass of this process, and whether they were packed."""
torch.nn.modules.module.register_module_forward_pre_hook(
    lambda module, args: (
        passes.append((args[0].sequences, "layout" in args[0].inputs))
        if isinstance(module, Policy) and len(args) == 1
        else None
    )
)
for number, (pairs, logps, settings) in enumerate(json.loads(sys.argv[3])):
    passes.clear()
    inputs = {"model": model, "pairs": [Path(pairs)], "logps": [Path(logps)]}
    run = place / str(number)
    finetune.run(inputs, finetune_config(**settings), job_at(run, DIGESTS, micro_tokens=100, checkpoint_every=2))
    (run / f"passes-{os.environ['RANK']}.json").write_text(json.dumps(passes))
