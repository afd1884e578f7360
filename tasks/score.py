"""score: the log-probs of one pair set under one model: the opponent, or another that the loss names."""

from spin_core.config.finetune import score_settings
from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import score as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def score(run: Run, t: int, model, pairs, by: int, of: int, newest: tuple | None = None):
    """`newest`: the model's own pairs and their score, which has the real answers of the same rows."""
    cfg = run.config.at(t)
    config = core.Config(score=score_settings(cfg.finetune), chat=cfg.chat)
    label = f"iter {t}, pairs {of}" + (f", θ_{by}" if by != t else "")
    place = Place("iteration", t, pairs=of, by=None if by == t else by)
    reads = {"model": model, "pairs": pairs}
    if newest:
        reads |= dict(zip(core.WORK_SAVING, newest, strict=True))
    return Step(core, label, config, place), reads
