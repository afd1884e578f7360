"""demo_rows and demo_model: what the demo starts from."""

from spin_core.demo import demo_model as model_stage
from spin_core.demo import demo_rows as rows_stage
from tasks.run import Run
from tasks.stage import stage


@stage(rows_stage)
def demo_rows(run: Run, split: str):
    return split, rows_stage.Config(seed=run.config.seed, split=split), {}


@stage(model_stage)
def demo_model(run: Run):
    return "", model_stage.Config(seed=run.config.seed), {}
