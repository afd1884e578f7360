"""harness: a model on benchmark tasks of lm-evaluation-harness."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import harness as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def harness(run: Run, label: str, place: Place, model):
    part = run.config.harness
    assert part
    # Once for all models of the run: a folder that is edited meanwhile would give them different questions.
    first = next((ref for kind, ref, _ in run.sources if kind == "tasks"), None)
    local = {"tasks": first or run.source(part.include_path, "tasks")} if part.include_path else {}
    return Step(core, label, core.Config(harness=part), place), {"model": model, **local}
