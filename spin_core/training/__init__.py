"""The training loop of sft and finetune (`loop`), what it learns (`objectives`), resumable state (`checkpoint`), and
how weights move between processes (`strategy`, with `ddp`, `zero`, `fsdp`).

Not here: log-probs and losses (modeling), which rows or pairs are trained on (stages), what a run of losses means
(analysis.training_alarms). May import modeling, runtime, config and job. All modules load torch.
"""
