"""demo_rows: a set of small tasks, one split."""

from spin_core.runtime.step import Step
from spin_core.stages import demo_rows as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def demo_rows(run: Run, path: str, split: str):
    return Step(core, split, core.Config(seed=run.config.seed, split=split, **core.SETS[path])), {}
