"""evaluate: a model's metrics on the held-out rows; with the pairs it was trained on, against its opponent."""

from spin_core.stages import evaluate as core
from spin_core.stages.score import Score
from tasks.run import Run
from tasks.stage import stage


@stage(core)
def evaluate(run: Run, label: str, model, rows, pairs=None, logps=None, t: int = 0):
    cfg = run.config.at(t)
    part = cfg.finetune
    how = Score(**part.model_dump(include=set(Score.model_fields)))
    against = {"beta": part.beta, "loss": part.loss} if pairs else {}
    config = core.Config(evaluate=cfg.evaluate, chat=cfg.chat, score=how, seed=cfg.seed, **against)
    return label, config, {"model": model, "rows": rows} | ({"pairs": pairs, "logps": logps} if pairs else {})
