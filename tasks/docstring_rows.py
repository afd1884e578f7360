"""docstring_rows: the demo's real text, out of this Python's standard library."""

from spin_core.runtime.step import Step
from spin_core.stages import docstring_rows as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def docstring_rows(run: Run):
    return Step(core, "", core.Config(library=core.digest_of(core.library_files()))), {}
