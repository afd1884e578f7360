"""import_pairs: a published pair set, in place of an iteration's own."""

from spin_core.sources.references import origin
from spin_core.stages import import_pairs as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage(core)
def import_pairs(run: Run, t: int, source, rows):
    return f"iter {t}, {origin(source)}", core.Config(), {"source": source, "rows": rows}
