"""A tiny model, pairs and scores on disk, made from the golden data."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spin_core.config.chat import ChatSection
from spin_core.config.runtime import Runtime
from spin_core.data.rows import FILES, Pair, Row, write_pairs, write_rows
from spin_core.errors import Stopped
from spin_core.job import Bar, Inputs, Job
from spin_core.modeling.collate import Groups, Tokens, read_groups
from spin_core.modeling.loss import token_logps
from spin_core.modeling.packing import pad_groups
from spin_core.stages import finetune, score, sft, tokenize

IGNORE = -100
"""Label of a position that is not part of an answer."""
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def sequence_logps(logits: Tensor, labels: Tensor, average: bool = False) -> Tensor:
    """log p(answer | prompt) of each sequence by `token_logps`: logits [B, T, V], labels [B, T] → [B], in nats.

    Position t predicts label t+1; labels of −100 do not count; `average` divides by their number.
    """
    targets = labels[:, 1:]
    sums = token_logps(logits[:, :-1], targets).sum(-1)
    return sums / (targets != IGNORE).sum(-1) if average else sums


def labels_of(tokens: Tokens) -> np.ndarray:
    """int64 [T]: the ids of the answer, −100 where the prompt is."""
    return np.where(np.arange(len(tokens)) < tokens.prompt, IGNORE, tokens.ids).astype(np.int64)


def pad(sequences: Sequence[Tokens], pad_id: int) -> dict[str, Tensor]:
    """The project's padded batch, and `labels` beside it as transformers and the reference have them."""
    inputs = pad_groups([[one] for one in sequences], pad_id).inputs
    labels = torch.full_like(inputs["input_ids"], IGNORE)
    for row, one in enumerate(sequences):
        labels[row, : len(one)] = torch.from_numpy(labels_of(one))
    return {**inputs, "labels": labels}


def copy_model(to: Path, weights: str = "step_weights.safetensors") -> Path:
    shutil.copytree(GOLDEN / "tokenizer", to, ignore=shutil.ignore_patterns("templates"))
    shutil.copyfile(GOLDEN / "config.json", to / "config.json")
    shutil.copyfile(GOLDEN / weights, to / "model.safetensors")
    for path in (to, *to.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return to


def made_up_pairs(count: int, first: int = 0) -> list[Pair]:
    """Pairs of unlike lengths, one cut answer among them, ids sorted."""
    return [
        Pair(
            f"{i:016x}",
            [{"role": "user", "content": f"How many stamps are {i} and {i + 3} stamps?" + " Please." * (i % 3)}],
            f"Together they are {2 * i + 3} stamps." + " Half of 12 is 6." * (i % 4),
            f"There are {i} boxes." + " Rivers carve valleys." * ((i + 1) % 3),
            "length" if i % 5 == 4 else "stop",
        )
        for i in range(first, first + count)
    ]


@cache
def _tokenizer() -> TemporaryDirectory[str]:
    """The golden tokenizer in a model's folder, while this process lives."""
    folder = TemporaryDirectory(prefix="spinloop-tokenizer-")
    copy_model(Path(folder.name) / "model")
    return folder


def _add_tokens(kind: str, tree: Path, **settings: Any) -> Path:
    """The tokens of a tree of texts, by the real stage with the golden tokenizer, beside its texts."""
    config = tokenize.Config(chat=CHAT, max_rejected=0.0, **settings)
    job = Job(out=tree, scratch=tree)
    tokenize.run({"tokenizer": Path(_tokenizer().name) / "model", kind: tree}, config, job)
    return tree


def pairs_tree(path: Path, train: list[Pair], test: list[Pair], reference_length: int = 0) -> Path:
    """Pairs as text, and their tokens beside them. `reference_length`: the published code's max_length, where they are
    collated as it did."""
    path.mkdir(parents=True)
    write_pairs(path / FILES["train"], train)
    write_pairs(path / FILES["test"], test)
    return _add_tokens("pairs", path, reference_length=reference_length)


def rows_tree(path: Path, train: list[Pair], test: Sequence[Pair] = ()) -> Path:
    """The prompts and real answers of pairs as rows, and their tokens beside them."""
    path.mkdir(parents=True)
    for split, pairs in (("train", train), ("test", test)):
        write_rows(path / FILES[split], [Row(p.id, p.prompt, p.real) for p in pairs])
    return _add_tokens("rows", path, shard_rows=100)


def groups_of(pairs: list[Pair], max_length: int = 128, reference: bool = False) -> Groups:
    """The token sequences that score and finetune read of these pairs, train ones."""
    with TemporaryDirectory() as folder:
        tree = pairs_tree(Path(folder) / "pairs", pairs, [], max_length if reference else 0)
        return read_groups([tree], "train", max_length)


class LoudBar(Bar):
    """Reports every step; a bar for people keeps quiet for 0.2 s."""

    def advance(self, n: int = 1, **figures: float) -> None:
        self._sent = 0.0
        super().advance(n, **figures)


class LoudJob(Job):
    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        bar = LoudBar(self.send, label, total, unit)
        bar.advance(0)
        yield bar


def job_at(path: Path, digests: dict | None = None, events: list | None = None, **runtime: Any) -> Job:
    """A job as the runner makes it: empty `out`, `scratch` that may be there already."""
    (path / "out").mkdir(parents=True, exist_ok=True)
    (path / "scratch").mkdir(exist_ok=True)
    settings = Runtime(**{"device": "cpu", "threads": 1, **runtime})
    result = {"model": "m", "pairs": "p", "tokens": "t"} if digests is None else digests
    return LoudJob(path / "out", path / "scratch", settings, result, (events if events is not None else []).append)


def ended_and_resumed(path: Path, inputs: Inputs, digests: dict, config: finetune.Config) -> Path:
    """What a finetune writes that is ended after its first step and goes on from the checkpoint."""
    job = job_at(path, digests, checkpoint_every=0)
    job.ending.set()
    with pytest.raises(Stopped):
        finetune.run(inputs, config, job)
    job.ending.clear()
    assert finetune.run(inputs, config, job)["resumed_at"] == 1
    return job.out


CHAT = ChatSection(max_prompt_length=64)
DIGESTS = {"model": "m", "pairs": ["p"], "logps": ["s"]}


def finetune_config(seed: int = 7, **changes: Any) -> finetune.Config:
    defaults = {"lr": 1e-3, "schedule_epochs": 2.0, "global_batch": 4, "max_length": 128, "warmup_ratio": 0.0}
    return finetune.Config(finetune=finetune.Finetune(**{**defaults, **changes}), seed=seed)


def sft_config(seed: int = 7, **changes: Any) -> sft.Config:
    defaults = {"lr": 1e-3, "epochs": 2.0, "global_batch": 4, "max_length": 128, "warmup_ratio": 0.0}
    return sft.Config(sft=sft.Sft(**{**defaults, **changes}), seed=seed)


def score_config(config: finetune.Config) -> score.Config:
    part = config.finetune
    settings = score.Score(max_length=part.max_length, precision=part.precision, collation=part.collation)
    return score.Config(score=settings, chat=CHAT)


def scored(path: Path, model: Path, pairs: Path, config: finetune.Config, digest: str = "p", **runtime: Any) -> Path:
    """A logps tree as finetune with `config` needs it."""
    job = job_at(path, {"model": "m", "pairs": digest}, **runtime)
    score.run({"model": model, "pairs": pairs}, score_config(config), job)
    return job.out


def metrics_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def has_begun(line: dict) -> bool:
    """Whether the policy of a step of `metrics_of` is another than its opponent. While it is not (the first step, and
    those at lr 0), every margin is rounding, ±1e-7 nats, and so is its sign, which accuracies count: it differs between
    processors and batch shapes."""
    return abs(line["rewards/margins"]) > 2e-5


def calls_of(model: PreTrainedModel, part: str = "") -> list[dict]:
    """What the model's decoder, or a part of it, is called with from now on; a packed pass has a `layout`."""
    calls: list[dict] = []
    module = model.base_model.get_submodule(part)
    module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls
