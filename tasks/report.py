"""report: the table of iterations, the curves and sample answers."""

from spin_core.stages import report as core
from tasks.run import Run
from tasks.stage import stage


@stage(core)
def report(run: Run, lines: list[dict], inputs: dict[str, list]):
    profile = run.config.model_dump(mode="json", exclude={"runtime"})
    config = core.Config(name=run.config.name, profile=profile, rows=[core.Row(**line) for line in lines])
    return "", config, inputs
