"""gather: the shards of answers to one pair set."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import gather as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def gather(run: Run, t: int, rows, tokens, answers: list):
    at = run.config.at(t)
    step = Step(core, f"iter {t}", core.Config(gather=at.gather, n=at.generate.n), Place("iteration", t))
    return step, {"rows": rows, "tokens": tokens, "answers": answers}
