"""reformat: the dataset to rows and shards of prompts."""

from spin_core.runtime.step import Step
from spin_core.stages import reformat as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def reformat(run: Run, sources: dict):
    config = core.Config(dataset=core.anonymous(run.config.dataset), seed=run.config.seed)
    return Step(core, "", config), sources
