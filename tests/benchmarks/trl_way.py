"""How TRL's DPOTrainer does this job at its best: opponent log-probs beforehand, logits only where a label is, no
gradient checkpointing, no logs, no checkpoints.

Its scoring pass (`precompute_ref_log_probs`) counts as our score stage does; building the trainer, hashing its model
and loading do not. On a CPU it would make the logits of every position; here it is made to take the selection that it
uses on a GPU, which is faster.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from tests.benchmarks.bench_work import Watch, Work


class Order(torch.utils.data.Sampler):
    """The plan's pairs, another epoch's permutation at each iteration."""

    def __init__(self, work: Work):
        self.work, self.plan, self.epoch = work, work.plan, 0

    def __len__(self) -> int:
        return self.plan.examples

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.plan.steps_per_epoch
        self.epoch += 1
        for number in range(first, first + self.plan.steps_per_epoch):
            yield from self.work.pairs_of(number)


def run(work: Work, watch: Watch) -> list[float]:
    """The full training run; returns the loss of each optimiser step."""
    import datasets

    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TQDM_DISABLE="1")
    datasets.disable_progress_bars()
    datasets.disable_caching()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(work, watch, folder)
        with watch.part("train"):
            trainer.train()
    parts = len(trainer.losses) // work.plan.stop_step
    losses = torch.stack(trainer.losses).float().view(-1, parts)
    return losses.mean(-1).tolist()


def _trainer(work: Work, watch: Watch, folder: str) -> Any:
    """The trainer, with its opponent log-probs computed."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    from spin_core.modeling.loading import load_model, load_tokenizer

    class Steps(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            watch.step()

    rows = [{"prompt_ids": p, "chosen_ids": r, "rejected_ids": g} for p, r, g in work.rows]
    policy = load_model(work.path, work.device, train=True)
    watch.weights(policy)
    trainer = _trainer_class(work, watch)(
        model=policy,
        args=_arguments(work, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(work.path),
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    watch.weights(policy)
    return trainer


def _trainer_class(work: Work, watch: Watch) -> type:
    """DPOTrainer that takes token ids as they are, visits pairs in the plan's order and remembers its losses."""
    import trl.trainer.utils
    from trl import DPOTrainer

    if not torch.cuda.is_available():
        trl.trainer.utils._use_triton = lambda device: True  # only chooses the positions; its arithmetic stays torch's

    class Trainer(DPOTrainer):
        losses: list[torch.Tensor]

        def _prepare_dataset(self, dataset: Any, *given: Any, **named: Any) -> Any:
            self.losses = []
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *given: Any, **named: Any) -> Any:
            if not work.scored:
                zeros = [0.0] * len(dataset)
                return dataset.add_column("ref_chosen_logps", zeros).add_column("ref_rejected_logps", zeros)
            with watch.part("score"):
                return super()._precompute_ref_logps(dataset, *given, **named)

        def _get_train_sampler(self, *given: Any, **named: Any) -> Order:
            return Order(work)

        def compute_loss(self, *given: Any, **named: Any) -> torch.Tensor:
            loss = super().compute_loss(*given, **named)
            self.losses.append(loss.detach())
            return loss

    return Trainer


def _arguments(work: Work, folder: str) -> Any:
    from trl import DPOConfig

    gpu = work.device != "cpu"
    return DPOConfig(
        output_dir=folder,
        beta=work.beta,
        loss_type=["sigmoid"],
        precompute_ref_log_probs=True,
        max_length=None,
        per_device_train_batch_size=work.micro,
        precompute_ref_batch_size=work.micro,
        gradient_accumulation_steps=work.batch // work.micro,
        num_train_epochs=work.epochs,
        learning_rate=work.lr,
        optim="rmsprop",
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=work.max_grad_norm,
        gradient_checkpointing=False,
        bf16=work.precision == "bfloat16",
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=work.seed,
    )
