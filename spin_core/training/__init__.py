"""The training loop of sft and finetune (`loop`), what it learns (`objectives`), resumable state (`checkpoint`), and
an optimiser step of one or several processes (`strategy`, and with DeepSpeed `zero`).

Not here: log-probs and losses (modeling), which rows or pairs are trained on (stages), what a run of losses means
(analysis.training_alarms). May import modeling, runtime, config and job. All modules load torch.
"""
