"""generate: shards of prompts to the opponent's answers."""

from spin_core.sources.references import Ref
from spin_core.stages import generate as core
from tasks.runner.pools import Batch
from tasks.runner.run import Run
from tasks.runner.shards import per_task, submit
from tasks.runner.stage import stage

BATCH = 1000  # shards of one flow run at most: Prefect takes 512 kB of parameters, and a shard is 350 bytes of them


def generate(run: Run, t: int, opponent, prompts: list) -> list:
    """The answers to every shard. On a work pool the shards are dealt out to `runtime.generate_runs` flow runs."""
    labels = [f"iter {t}, shard {i}/{len(prompts)}" for i in range(1, len(prompts) + 1)]
    count = max(run.config.runtime.generate_runs, -(-len(prompts) // BATCH))
    if per_task(len(prompts)) > 1 and not run.planning:
        shards = list(zip(labels, prompts, strict=True))
        return submit(run, core, config_at(run, t), f"iter {t}", opponent, shards, count)
    known = all(isinstance(shard, Ref) for shard in prompts)
    batches = [Batch(list(zip(labels, prompts, strict=True))[i::count]) for i in range(count)] if known else [None]
    return [
        shard(run, t, opponent, prompt, label, batch=batches[i % len(batches)])
        for i, (label, prompt) in enumerate(zip(labels, prompts, strict=True))
    ]


def config_at(run: Run, t: int) -> core.Config:
    cfg = run.config.at(t)
    return core.Config(generate=cfg.generate, chat=cfg.chat, seed=cfg.seed)


@stage(core)
def shard(run: Run, t: int, opponent, prompt, label: str):
    return label, config_at(run, t), {"model": opponent, "prompts": prompt}
