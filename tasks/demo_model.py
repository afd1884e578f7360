"""demo_model: the untrained model that the demo starts from."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import demo_model as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def demo_model(run: Run):
    return Step(core, "", core.Config(seed=run.config.seed), Place("start", model=0)), {}
