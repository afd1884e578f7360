"""finetune: θ_t to θ_{t+1}."""

from spin_core.stages import finetune as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage(core)
def finetune(run: Run, t: int, opponent, pairs: list, logps: list):
    cfg = run.config.at(t)
    config = core.Config(finetune=cfg.finetune, chat=cfg.chat, seed=cfg.seed)
    return f"iter {t}", config, {"model": opponent, "pairs": pairs, "logps": logps}
