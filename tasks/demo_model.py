"""demo_model: the untrained model that the demo starts from."""

from spin_core.stages import demo_model as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage(core)
def demo_model(run: Run):
    return "", core.Config(seed=run.config.seed), {}
