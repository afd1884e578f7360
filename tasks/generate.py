"""generate: shards of prompts to the opponent's answers."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.sources.resolve import Ref
from spin_core.stages import generate as core
from tasks.runner.pools import Batch
from tasks.runner.run import Run
from tasks.runner.shards import per_task, submit
from tasks.runner.stage import stage

BATCH = 1000  # shards of one flow run at most: Prefect takes 512 kB of parameters, and a shard is 400 bytes of them


def generate(run: Run, t: int, opponent, prompts: list) -> list:
    """The answers to every shard. On a work pool the shards are dealt out to `runtime.generate_runs` flow runs."""
    cfg, n = run.config.at(t), len(prompts)
    config = core.Config(generate=cfg.generate.drawing_as(run.deployed), chat=cfg.chat, seed=cfg.seed)
    every = Step(core, f"iter {t}", config, Place("iteration", t))
    steps = [
        Step(core, f"iter {t}, shard {i}/{n}", config, Place("iteration", t, shard=(i, n))) for i in range(1, n + 1)
    ]
    shards = list(zip(steps, prompts, strict=True))
    count = max(run.config.runtime.generate_runs, -(-n // BATCH))
    if per_task(n) > 1 and not run.planning:
        return submit(run, every, opponent, shards, count)
    there = all(isinstance(prompt, Ref) for prompt in prompts)  # in a plan the rows may still be to be made
    batches = [Batch(shards[i::count]) for i in range(count)] if there else [None]
    return [
        answers(run, opponent, step, prompt, batch=batches[i % len(batches)]) for i, (step, prompt) in enumerate(shards)
    ]


@stage
def answers(run: Run, opponent, step: Step, prompt):
    return step, {"model": opponent, "prompts": prompt}
