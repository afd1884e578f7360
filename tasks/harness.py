"""harness: a model on benchmark tasks of lm-evaluation-harness."""

from spin_core.stages import harness as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage(core)
def harness(run: Run, label: str, model):
    part = run.config.harness
    assert part
    # Once for all models of the run: a folder that is edited meanwhile would ask them different questions.
    known = next((ref for kind, ref, _ in run.sources if kind == "tasks"), None)
    local = {"tasks": known or run.source(part.include_path, "tasks")} if part.include_path else {}
    return label, core.Config(harness=part), {"model": model, **local}
