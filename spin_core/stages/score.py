"""The reference log-probs of both answers of every pair, under the opponent or another model that the loss names, so
that training holds no second model.

What it is *not*: no loss, no judgement of the pairs. The forward pass is the one that finetune trains with, so that
policy = opponent gives a log-ratio of 0 up to the rounding of another batch shape (CPU, float32: one last bit,
2.4e-4 nats at a log-prob of −2,778; bfloat16: 1.2e-2). With `engine_logps` the generated answers' are those that the
engine computed while it sampled, where they are the same numbers (`spin_core/modeling/sampled_logps.py`).

Nothing is computed twice: the pairs of one row are one group, with its prompt and real answer once
(`spin_core/modeling/pair_logps.py`); and the real answers that another pair set of the same rows has under this model
are read from that set's score, which is then an input, and so in the key.

inputs   `model`: a model directory (θ_t, or an earlier one) · `pairs`: a tree with tokens of pairs (gather's or
         tokenize's) · where another set was scored first `real_pairs`: that one, and `real_logps`: its score tree
outputs  `logps.parquet`: id, split, real, generated, real_tokens, generated_tokens; as the pairs, train before test
         · `scores.json` with digests of model and pairs and the score settings, which finetune checks, how many
         answers of each split and side are cut at max_length, and the pairs' tokens.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

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
    from spin_core.modeling.pair_logps import PairLogps

NAME = "score"
VERSION = 2
"""2: reads the ids of the pairs, not their text."""
WORK_SAVING = ("real_pairs", "real_logps")
"""Inputs that only save work: what was computed without them is the same to rounding, and stands for this step."""


class Config(Section):
    """What a log-prob depends on besides model and pairs. `chat`: whether an engine's own can stand for it."""

    score: Score
    chat: ChatSection


class Logps(NamedTuple):
    """`values`: log p of each sequence in nats; `tokens`: of the forward passes that computed them, without padding
    between groups; `packed`: whether these had each prompt of a group once."""

    values: list[float]
    tokens: int
    packed: bool


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write logps.parquet and scores.json; give counts and means. Raises StageFailed where a log-prob is not finite."""
    from spin_core.modeling.collate import Groups, note_cuts, read_groups
    from spin_core.modeling.pair_logps import PairLogps

    model_path, tree = cast(Path, inputs["model"]), cast(Path, inputs["pairs"])
    parts = {split: read_groups([tree], split, config.score.max_length) for split in FILES}
    pairs = [(split, id) for split, part in parts.items() for id in part.ids]
    if not pairs:
        raise BadInput(f"{tree}: there are no pairs to score; look at the dataset and its rejects")
    cut = {split: note_cuts(part, split, "finetune.max_length", job) for split, part in parts.items()}
    groups = Groups([file for part in parts.values() for file in part.files], config.score.max_length)
    made = PairLogps(groups)
    shared = _take_real_logps(made, inputs, config, job)
    taken, spent = _compute(made, pairs, inputs, config, job)
    logps = made.values.ravel().tolist()
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
        "forward_tokens": sum(one.tokens for one in spent),
        "forward_tokens_saved": made.tokens_apart(taken, spent[-1].packed) - sum(one.tokens for one in spent),
        "real_logps": shared,
        "cut": sum(count for sides in cut.values() for count in sides.values()),
        "engine_logps": len(taken),
        "forecast": _forecast(len(parts["train"]), groups, logps),
    }


def _take_real_logps(made: PairLogps, inputs: Inputs, config: Config, job: Job) -> int:
    """Set those that the score of another pair set has; how many. Raises BadInput where it is of another model or other
    settings."""
    from spin_core.modeling.scores import real_logps, whose

    if "real_logps" not in inputs:
        return 0
    tree, of = cast(Path, inputs["real_logps"]), cast(Path, inputs["real_pairs"])
    expected = {"model": job.digests["model"], "pairs": job.digests["real_pairs"]}
    whose(tree, {**expected, "score": config_payload(config.score)}, NAME)
    found = real_logps(made.pairs, tree, of)
    made.take(0, found)
    return len(found)


def _forecast(count: int, groups: Groups, logps: list[float]) -> dict[str, float]:
    """Of the first `count` pairs, those of training."""
    same = [
        bool(len(real) == len(other) and (real.ids == other.ids).all())
        for real, other in map(groups.__getitem__, range(count))
    ]
    sides = list(zip(logps[: 2 * count : 2], logps[1 : 2 * count : 2], strict=True))
    return forecast(sides, same, int(groups.targets()[:count, 1].sum()))


def _compute(
    made: PairLogps, pairs: list[tuple[str, str]], inputs: Inputs, config: Config, job: Job
) -> tuple[list[int], list[Logps]]:
    """Set all that are not known: by the model, or the engine's where they can be taken and agree; which were taken,
    and what the model's passes gave.

    A sample of the engine's is computed first, and stays so. If one of it disagrees, all are computed.
    """
    path, settings = cast(Path, inputs["model"]), config.score
    budget, spent, taken = job.runtime.score_tokens, [], {}
    if settings.engine_logps:
        sampled = _sampled(made.pairs, pairs, inputs, config, job)
        checked = sampled_logps.sample(pairs, list(sampled))
        if checked:
            missing = made.missing(budget, checked)
            spent.append(logps_of(path, missing, settings, job, "score to compare"))
            made.put(missing, spent[-1].values)
        off = {i: abs(float(made.values[i, 1]) - sampled[i]) for i in checked}
        worst = max(checked, key=off.__getitem__, default=0)
        if checked and not off[worst] <= sampled_logps.TOLERANCE:
            job.note(
                f"score: all log-probs are computed, as the engine's for pair {pairs[worst][1]} is {off[worst]:.2g} "
                f"nats from the model's own (at most {sampled_logps.TOLERANCE:g} is allowed)."
            )
        else:
            taken = {i: logps for i, logps in sampled.items() if not made.known[i, 1]}
            made.take(1, taken)
    if len(missing := made.missing(budget)):
        spent.append(logps_of(path, missing, settings, job, "score"))
        made.put(missing, spent[-1].values)
    return list(taken), spent


def _sampled(
    groups: Groups, pairs: list[tuple[str, str]], inputs: Inputs, config: Config, job: Job
) -> dict[int, float]:  # fmt: skip
    """The engine's log-probs of generated answers, by the pair's number; none, and a note, where the settings are such
    that they cannot be score's own."""
    if why := engine_logps_unusable(config.score, config.chat):
        job.note(f"score: no log-prob is taken from the engine: {why}.")
        return {}
    return sampled_logps.usable(pairs, groups, cast(Path, inputs["pairs"]), cast(str, job.digests["model"]))


def logps_of(path: Path, groups: Sequence[Group], settings: Score, job: Job, label: str) -> Logps:
    """log p(answer | prompt) of every sequence under the model in `path`, in the order of the groups' sequences.

    A group is sequences that share a prompt; the longest are computed first. Several processes share the work, and all
    get all values.
    """
    from spin_core.modeling.loading import apply_threads, pick_device
    from spin_core.modeling.opponent import opponent

    if not groups:
        return Logps([], 0, packed=True)
    apply_threads(job.runtime)
    sharded = job.runtime.compute.in_parts
    model = opponent(path, pick_device(job.runtime), quantize=settings.quantize, sharded=sharded)
    return logps_under(model, groups, settings, job, label)


def logps_under(model: PreTrainedModel, groups: Sequence[Group], settings: Score, job: Job, label: str) -> Logps:
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
            read = [groups[i] for i in batch]
            try:
                values = policy(policy.batch(read)).tolist()
            except torch.OutOfMemoryError as error:
                size = job.runtime.score_tokens
                raise StageFailed(f"scoring ran out of GPU memory; lower runtime.score_tokens (now {size})") from error
            if not counts:
                continue
            for i, group in zip(batch, read, strict=True):
                own_logps.append((i, values[: len(group)]))
                values = values[len(group) :]
            bar.advance(len(batch))
    logps = dict(pair for process in process_group.gather(own_logps) for pair in process)
    every = [value for i in range(len(groups)) for value in logps[i]]
    return Logps(every, sum(policy.costs(groups).values()), policy.packed)


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
