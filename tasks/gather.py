"""gather: the shards of answers to one pair set."""

from spin_core.stages import gather as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage(core)
def gather(run: Run, t: int, rows, answers: list):
    return f"iter {t}", core.Config(gather=run.config.at(t).gather), {"rows": rows, "answers": answers}
