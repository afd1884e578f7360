"""tokenize: the rows' token ids, once for all iterations; and those of pairs that have none of their own."""

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import tokenize as core
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def tokenize(run: Run, rows, tokenizer):
    cfg = run.config
    part = cfg.dataset
    config = core.Config(chat=cfg.chat, max_rejected=part.max_rejected, shard_rows=part.shard_rows)
    return Step(core, "", config), {"rows": rows, "tokenizer": tokenizer}


@stage
def tokenize_pairs(run: Run, t: int, pairs, tokenizer, of: int):
    """The pairs of iteration `of` as iteration `t` reads them. They differ between iterations only where the published
    code's way cuts pairs to max_length."""
    cfg = run.config.at(t)
    length = cfg.finetune.max_length if cfg.finetune.collation == "reference" else 0
    config = core.Config(chat=cfg.chat, max_rejected=cfg.dataset.max_rejected, reference_length=length)
    step = Step(core, f"iter {t}, pairs {of}", config, Place("iteration", t, pairs=of))
    return step, {"pairs": pairs, "tokenizer": tokenizer}
