"""generate: one shard of prompts to the opponent's answers."""

from spin_core.stages import generate as core
from tasks.run import Run
from tasks.stage import stage


@stage(core)
def generate(run: Run, t: int, opponent, shard, place: str):
    cfg = run.config.at(t)
    config = core.Config(generate=cfg.generate, chat=cfg.chat, seed=cfg.seed)
    return f"iter {t}, shard {place}", config, {"model": opponent, "prompts": shard}
