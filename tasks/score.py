"""score: the opponent's log-probs of one pair set."""

from spin_core.config.finetune import score_settings
from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import score as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def score(run: Run, t: int, opponent, pairs, of: int):
    cfg = run.config.at(t)
    config = core.Config(score=score_settings(cfg.finetune), chat=cfg.chat)
    step = Step(core, f"iter {t}, pairs {of}", config, Place("iteration", t, pairs=of))
    return step, {"model": opponent, "pairs": pairs}
