"""The reference log-probs of both answers of every pair, under the opponent or another model that the loss names, so
that training holds no second model.

What it is *not*: no loss, no judgement of the pairs. The forward pass is the one that finetune trains with, so that
policy = opponent gives a log-ratio of 0 up to the rounding of another batch shape (CPU, float32: one last bit,
2.4e-4 nats at a log-prob of −2,778; bfloat16: 1.2e-2). With `engine_logps` the generated answers' are those that the
engine computed while it sampled, where they are the same numbers (`spin_core/modeling/sampled_logps.py`).

inputs   `model`: a model directory (θ_t, or an earlier one) · `pairs`: a tree with tokens of pairs (gather's or
         tokenize's)
outputs  `logps.parquet`: id, split, real, generated, real_tokens, generated_tokens; as the pairs, train before test
         · `scores.json` with digests of model and pairs and the score settings, which finetune checks, how many
         answers of each split and side are cut at max_length, and the pairs' tokens.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_core.analysis.forecast import forecast
from spin_core.config.base import Section
from spin_core.config.chat import ChatSection
from spin_core.config.finetune import Score, engine_logps_unusable
from spin_core.data.rows import FILES
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Inputs, Job
from spin_core.modeling import sampled_logps
from spin_core.store.keys import config_payload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spin_core.modeling.collate import Groups
    from spin_core.modeling.packing import Group

NAME = "score"
VERSION = 2


class Config(Section):
    """What a log-prob depends on besides model and pairs. `chat`: whether an engine's own can stand for it."""

    score: Score
    chat: ChatSection


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write logps.parquet and scores.json; give counts and means. Raises StageFailed where a log-prob is not finite."""
    from spin_core.modeling.collate import Groups, note_cuts, read_groups

    model_path, tree = cast(Path, inputs["model"]), cast(Path, inputs["pairs"])
    parts = {split: read_groups([tree], split, config.score.max_length) for split in FILES}
    pairs = [(split, id) for split, part in parts.items() for id in part.ids]
    if not pairs:
        raise BadInput(f"{tree}: there are no pairs to score; look at the dataset and its rejects")
    cut = {split: note_cuts(part, split, "finetune.max_length", job) for split, part in parts.items()}
    groups = Groups([file for part in parts.values() for file in part.files], config.score.max_length)
    if config.score.engine_logps:
        logps, taken = _with_engines(inputs, pairs, groups, config, job)
    else:
        logps, taken = logps_of(model_path, groups, config.score, job, "score"), 0
    for (_, id), real, generated in zip(pairs, logps[::2], logps[1::2], strict=True):
        if not (math.isfinite(real) and math.isfinite(generated)):
            raise StageFailed(f"pair {id}: log-probs {real} and {generated} under {model_path}; its weights are broken")
    counts = _write(pairs, groups, logps, job.out / "logps.parquet")
    scores: dict[str, Any] = {
        "model": job.digests["model"],
        "pairs": job.digests["pairs"],
        "score": config_payload(config.score),
    }
    came = json.loads((tree / "tokens.json").read_text(encoding="utf-8"))
    scores |= {"cut": cut, "tokens": came}
    (job.out / "scores.json").write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "pairs": len(pairs),
        "logps/real": sum(logps[::2]) / len(pairs),
        "logps/generated": sum(logps[1::2]) / len(pairs),
        "tokens": counts,
        "cut": sum(count for sides in cut.values() for count in sides.values()),
        "engine_logps": taken,
        "forecast": _forecast(len(parts["train"]), groups, logps),
    }


def _forecast(count: int, groups: Groups, logps: list[float]) -> dict[str, float]:
    """Of the first `count` pairs, those of training."""
    same = [
        bool(len(real) == len(other) and (real.ids == other.ids).all())
        for real, other in map(groups.__getitem__, range(count))
    ]
    sides = list(zip(logps[: 2 * count : 2], logps[1 : 2 * count : 2], strict=True))
    return forecast(sides, same, int(groups.targets()[:count, 1].sum()))


def _with_engines(
    inputs: Inputs, pairs: list[tuple[str, str]], groups: Groups, config: Config, job: Job
) -> tuple[list[float], int]:
    """As `logps_of`, with the engine's log-probs where they can be taken and agree; and how many were taken.

    A sample of them is computed first, and stays so. If one of it disagrees, all are computed.
    """
    path, settings, sampled = cast(Path, inputs["model"]), config.score, {}
    if why := engine_logps_unusable(settings, config.chat):
        job.note(f"score: no log-prob is taken from the engine: {why}.")
    else:
        sampled = sampled_logps.usable(pairs, groups, cast(Path, inputs["pairs"]), cast(str, job.digests["model"]))
    checked = sampled_logps.sample(pairs, list(sampled))
    own = logps_of(path, [groups[i] for i in checked], settings, job, "score to compare")
    logps = dict(zip(checked, zip(own[::2], own[1::2], strict=True), strict=True))
    off = {i: abs(logps[i][1] - sampled[i]) for i in checked}
    worst = max(checked, key=off.__getitem__, default=0)
    if checked and not off[worst] <= sampled_logps.TOLERANCE:
        sampled = {}
        job.note(
            f"score: all log-probs are computed, as the engine's for pair {pairs[worst][1]} is {off[worst]:.2g} "
            f"nats from the model's own (at most {sampled_logps.TOLERANCE:g} is allowed)."
        )
    rest = [i for i in range(len(pairs)) if i not in logps]
    taken = [i for i in rest if i in sampled]
    values = iter(logps_of(path, [groups[i][: 1 if i in sampled else 2] for i in rest], settings, job, "score"))
    for i in rest:
        logps[i] = (next(values), sampled[i] if i in sampled else next(values))
    return [value for i in range(len(pairs)) for value in logps[i]], len(taken)


def logps_of(path: Path, groups: Sequence[Group], settings: Score, job: Job, label: str) -> list[float]:
    """log p(answer | prompt) of every sequence under the model in `path`, in the order of the groups' sequences.

    A group is sequences that share a prompt; the longest are computed first. Several processes share the work, and all
    get all values.
    """
    from spin_core.modeling.loading import apply_threads, pick_device
    from spin_core.modeling.opponent import opponent

    if not groups:
        return []
    apply_threads(job.runtime)
    sharded = job.runtime.compute.in_parts
    model = opponent(path, pick_device(job.runtime), quantize=settings.quantize, sharded=sharded)
    return logps_under(model, groups, settings, job, label)


def logps_under(
    model: PreTrainedModel, groups: Sequence[Group], settings: Score, job: Job, label: str
) -> list[float]:  # fmt: skip
    """As `logps_of`, under a model that is in memory."""
    import torch

    from spin_core.modeling.collate import longest_of
    from spin_core.modeling.logprobs import Policy
    from spin_core.modeling.packing import PADDING
    from spin_core.runtime import process_group

    sharded = job.runtime.compute.in_parts
    policy = Policy(model, PADDING, settings.precision).settle(longest_of(groups), job.runtime, job.note)
    passes = policy.passes(groups, job.runtime.score_tokens, process_group.world(), in_step=sharded)
    mine = passes[process_group.rank()]
    own_logps: list[tuple[int, list[float]]] = []
    bar_of = job.progress(label, sum(len(batch) for batch, counts in mine if counts), "groups")
    with torch.inference_mode(not sharded), torch.no_grad(), policy.autocast(), bar_of as bar:
        for batch, counts in mine:
            try:
                values = policy(policy.batch([groups[i] for i in batch])).tolist()
            except torch.OutOfMemoryError as error:
                size = job.runtime.score_tokens
                raise StageFailed(f"scoring ran out of GPU memory; lower runtime.score_tokens (now {size})") from error
            if not counts:
                continue
            for i in batch:
                own_logps.append((i, values[: len(groups[i])]))
                values = values[len(groups[i]) :]
            bar.advance(len(batch))
    logps = dict(pair for process in process_group.gather(own_logps) for pair in process)
    return [value for i in range(len(groups)) for value in logps[i]]


def read_scores(tree: Path, split: str, ids: Sequence[str]) -> list[tuple[float, float]]:
    """The reference log-probs (real, generated) of a split's pairs, in nats.

    Raises BadInput naming the file where it is unreadable, has not just these ids in this order, or a log-prob that is
    not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tree / "logps.parquet"
    try:
        rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == split]
        scores = [(row["id"], row["real"], row["generated"]) for row in rows]
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path}: not readable ({error}); run score on these pairs again") from error
    except KeyError as error:
        raise BadInput(f"{path}: there is no column {error}; run score on these pairs again") from None
    if [id for id, *_ in scores] != list(ids):
        raise BadInput(
            f"{path}: its {len(scores)} {split} ids are not the {len(ids)} of the pairs, in their order; "
            "run score on these pairs again"
        )
    for id, *both in scores:
        if not all(isinstance(value, float) and math.isfinite(value) for value in both):
            raise BadInput(
                f"{path}: the log-probs of pair {id} are {both[0]} and {both[1]}; run score on these pairs again"
            )
    return [(real, generated) for _, real, generated in scores]


def _write(pairs: list[tuple[str, str]], groups: Groups, logps: list[float], path: Path) -> int:
    """logps.parquet; the number of labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = groups.targets()
    columns = {
        "id": pa.array([id for _, id in pairs], pa.string()),
        "split": pa.array([split for split, _ in pairs], pa.string()),
        "real": pa.array(logps[::2], pa.float64()),
        "generated": pa.array(logps[1::2], pa.float64()),
        "real_tokens": pa.array(labels[:, 0], pa.int32()),
        "generated_tokens": pa.array(labels[:, 1], pa.int32()),
    }
    pq.write_table(pa.table(columns), path)
    return int(labels.sum())
