"""evaluate: a model's metrics on the held-out rows; with the pairs it was trained on, against its opponent."""

from spin_core.analysis.decoders import DEPLOYED, measured
from spin_core.config.finetune import score_settings
from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import evaluate as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def evaluate(run: Run, label: str, place: Place, model, rows, tokens, t: int = 0, pairs=None, logps=None, start=None):
    cfg = run.config.at(t)
    part = cfg.finetune
    rewards = {}
    if pairs:  # SPIN's own measures, with the weight and the tokens' way of the loss that it was trained by
        rewards = {"beta": part.ratio_weight, "loss": "hinge" if part.loss == "hinge" else "sigmoid"}
        rewards["length_normalised"] = part.length_normalised
    how = score_settings(part) if pairs else score_settings(part).model_copy(update={"quantize": "none"})
    # Only where it is a kind of its own: what is measured already, or not wanted, has no place in the key.
    deployed = measured(cfg.evaluate, run.deployed if cfg.evaluate.deployed else None).get(DEPLOYED)
    config = core.Config(
        evaluate=cfg.evaluate, chat=cfg.chat, score=how, seed=cfg.seed, deployed=deployed, engine=cfg.generate.engine,
        **rewards,
    )  # fmt: skip
    against = {"pairs": pairs, "logps": logps, "start": start}
    there = {name: one for name, one in against.items() if one is not None}
    reads = {"model": model, "rows": rows, "tokens": tokens, **there}
    return Step(core, label, config, place), reads
