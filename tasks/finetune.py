"""finetune: θ_t to θ_{t+1}."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import finetune as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def finetune(run: Run, t: int, opponent, pairs: list, logps: list, first=None):
    cfg = run.config.at(t)
    config = core.Config(finetune=cfg.finetune, seed=cfg.seed)
    step = Step(core, f"iter {t}", config, Place("iteration", t, model=t + 1))
    reads = {"model": opponent, "pairs": pairs, "logps": logps}
    return step, reads if first is None else {**reads, "first": first}
