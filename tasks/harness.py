"""harness: a model on benchmark tasks of lm-evaluation-harness."""

from spin_core.stages import harness as core
from tasks.run import Run
from tasks.stage import stage


@stage(core)
def harness(run: Run, label: str, model):
    part = run.config.harness
    assert part
    local = {"tasks": run.source(part.include_path, "tasks")} if part.include_path else {}
    return label, core.Config(harness=part), {"model": model, **local}
