"""The opponent's log-probs of both answers of every pair, computed once, so that training holds no second model.

What it is *not*: no loss, no judgement of the pairs. The forward pass is the one that finetune trains with, so that
policy = opponent gives a log-ratio of 0 up to the rounding of another batch shape (CPU, float32: one last bit,
2.4e-4 nats at a log-prob of −2,778; bfloat16: 1.2e-2).

inputs   `model`: a model directory (θ_t) · `pairs`: a pairs tree
outputs  `logps.parquet`: id, split, real, generated, real_tokens, generated_tokens; as the pairs, train before test
         · `scores.json` with digests of model and pairs, chat and score settings, which finetune checks
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from spin_core.chat import Chat, ChatSection
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Inputs, Job
from spin_core.rows import FILES, Pair, read_pairs
from spin_core.section import Section

if TYPE_CHECKING:
    from spin_core.collate import Tokens

VERSION = 1


class Score(Section):
    """Taken from `finetune:`; the settings that change a log-prob."""

    max_length: int
    precision: Literal["float32", "bfloat16"]
    collation: Literal["exact", "reference"]


class Config(Section):
    """What a log-prob depends on besides model and pairs."""

    score: Score
    chat: ChatSection


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Write logps.parquet and scores.json; give counts and means. Raises StageFailed where a log-prob is not finite."""
    from spin_core.collate import encode_pairs
    from spin_core.models import load_chat

    model_path, pairs_path = cast(Path, inputs["model"]), cast(Path, inputs["pairs"])
    pairs = [(split, pair) for split, file in FILES.items() for pair in read_pairs(pairs_path / file)]
    if not pairs:
        raise BadInput(f"{pairs_path}: there are no pairs to score; look at the dataset and its rejects")
    chat = load_chat(model_path, config.chat)
    encoded = encode_pairs([pair for _, pair in pairs], chat, config.score, job)
    sequences = [tokens for both in encoded for tokens in both]
    logps = logps_of(model_path, sequences, chat, config.score, job, "score")
    for (_, pair), real, generated in zip(pairs, logps[::2], logps[1::2], strict=True):
        if not (math.isfinite(real) and math.isfinite(generated)):
            raise StageFailed(
                f"pair {pair.id}: log-probs {real} and {generated} under {model_path}; its weights are broken"
            )
    _write(pairs, encoded, logps, job.out / "logps.parquet")
    scores = {"model": job.digests["model"], "pairs": job.digests["pairs"]}
    settings = {"chat": config.chat.model_dump(), "score": config.score.model_dump()}
    (job.out / "scores.json").write_text(json.dumps({**scores, **settings}, indent=2, sort_keys=True) + "\n")
    return {
        "pairs": len(pairs),
        "logps/real": sum(logps[::2]) / len(pairs),
        "logps/generated": sum(logps[1::2]) / len(pairs),
        "tokens": sum(tokens.targets for tokens in sequences),
    }


def logps_of(path: Path, sequences: list[Tokens], chat: Chat, settings: Score, job: Job, label: str) -> list[float]:
    """log p(answer | prompt) of every sequence under the model in `path`, in order; computed longest first."""
    import torch

    from spin_core.collate import pad
    from spin_core.models import answer_logps, apply_threads, opponent, pick_device

    apply_threads(job.runtime)
    model, pad_id = opponent(path, pick_device(job.runtime)), chat.tokenizer.pad_token_id
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    logps = [math.nan] * len(sequences)
    size = job.runtime.score_batch
    with torch.inference_mode(), job.progress(label, len(sequences), "sequences") as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            try:
                values = answer_logps(model, pad([sequences[i] for i in batch], pad_id), settings.precision)
            except torch.OutOfMemoryError as error:
                raise StageFailed(f"scoring ran out of GPU memory; lower runtime.score_batch (now {size})") from error
            for i, value in zip(batch, values.tolist(), strict=True):
                logps[i] = value
            bar.advance(len(batch))
    return logps


def _write(pairs: list[tuple[str, Pair]], encoded: list[tuple[Tokens, Tokens]], logps: list[float], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": pa.array([pair.id for _, pair in pairs], pa.string()),
        "split": pa.array([split for split, _ in pairs], pa.string()),
        "real": pa.array(logps[::2], pa.float64()),
        "generated": pa.array(logps[1::2], pa.float64()),
        "real_tokens": pa.array([real.targets for real, _ in encoded], pa.int32()),
        "generated_tokens": pa.array([generated.targets for _, generated in encoded], pa.int32()),
    }
    pq.write_table(pa.table(columns), path)
