"""score: the opponent's log-probs of one pair set."""

from spin_core.stages import score as core
from tasks.run import Run
from tasks.stage import stage


@stage(core)
def score(run: Run, t: int, opponent, pairs, of: int):
    cfg = run.config.at(t)
    how = core.Score(**cfg.finetune.model_dump(include=set(core.Score.model_fields)))
    return f"iter {t}, pairs {of}", core.Config(score=how, chat=cfg.chat), {"model": opponent, "pairs": pairs}
