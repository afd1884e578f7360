"""sft: a base model to θ_0; and, to compare, θ_0 trained on by SFT instead of SPIN."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import sft as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def sft(run: Run, base, tokens):
    cfg = run.config
    step = Step(core, "θ_0", core.Config(sft=cfg.sft, seed=cfg.seed), Place("start", model=0))
    return step, {"model": base, "tokens": tokens}


@stage
def sft_instead(run: Run, start, tokens, iterations: int):
    """As many passes of SFT as SPIN's first `iterations` took over each row's pairs, in batches of the same size.

    So as many optimiser steps, up to the rounding of a last partial batch (the report says when the two differ).
    """
    cfg = run.config
    assert cfg.control
    passes = sum(cfg.passes(t) for t in range(iterations))
    part = cfg.control.model_copy(update={"epochs": passes, "global_batch": cfg.finetune.global_batch})
    config = core.Config(sft=part, seed=cfg.seed)
    step = Step(core, f"instead of {iterations} iter", config, Place("control", iterations - 1))
    return step, {"model": start, "tokens": tokens}
