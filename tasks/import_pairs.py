"""import_pairs: a published pair set, in place of an iteration's own."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.sources.resolve import origin
from spin_core.stages import import_pairs as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def import_pairs(run: Run, t: int, source, rows, tokens, tokenizer):
    step = Step(core, f"iter {t}, {origin(source)}", core.Config(), Place("import", t))
    return step, {"source": source, "rows": rows, "tokens": tokens, "tokenizer": tokenizer}
