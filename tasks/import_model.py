"""import_model: θ_t from outside the store, for a run that begins at iteration t."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.sources.resolve import Ref, origin
from spin_core.stages import import_model as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


def import_model(run: Run, t: int, source: Ref):
    """θ_t as an artifact: the one that `source` names, or a copy of it."""
    return copied(run, t, source) if source.path else source


@stage
def copied(run: Run, t: int, source: Ref):
    return Step(core, f"θ_{t}, {origin(source)}", core.Config(), Place("import", model=t)), {"source": source}
