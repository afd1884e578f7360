"""The losses of `finetune.loss` with settings, and what a finetune of iteration 2 by each reads, on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
from training_data import CHAT, copy_model, finetune_config, job_at, made_up_pairs, pairs_tree

from spin_core.config.finetune import Finetune, score_settings
from spin_core.data.rows import Pair
from spin_core.stages import score

SETTINGS: dict[str, dict] = {
    "sigmoid": {"beta": 0.3},
    "hinge": {"beta": 0.3},
    "unpaired": {"unpaired": {"a": 0.2, "b": 0.7, "w": 0.4}},
    "tspin": {"tspin": {"alpha": 0.3, "beta": 0.6}},
    "tspin against θ_t": {"tspin": {"alpha": 0.3, "beta": 0.6, "reference_free": False}},
    "tpaw": {"beta": 0.3, "tpaw": {"sharpness": 0.0}},
    "alpha": {"beta": 0.3, "alpha": {"base_share": 0.25}},
    "dft": {"dft": {"tau": 0.8}},
    "dft of γ 1": {"dft": {"gamma": 1.0}},
    "dft alone": {"dft": {"reference_free": True}},
}


def part_of(name: str, **more) -> Finetune:
    return Finetune(loss=name.partition(" ")[0], **SETTINGS[name], **more)


# Pair sets on disk: iteration 0 has the rows 0 to 9, iteration 1 all but row 3, iteration 2 all of them.
MODELS = ("opponent_weights.safetensors", "step_weights.safetensors", "step_weights.safetensors")
"""Weights of θ_0, θ_1 and θ_2."""


def answered(i: int, rows: list[int]) -> list[Pair]:
    """The pairs of iteration `i`: the same prompts and real answers, other generated ones."""
    pairs = [pair for pair in made_up_pairs(10) if int(pair.id, 16) in rows]
    return [Pair(p.id, p.prompt, p.real, f"{p.generated} Once more: {i}." if i else p.generated, "stop") for p in pairs]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root, every = tmp_path_factory.mktemp("sets"), list(range(10))
    kept = [every, [row for row in every if row != 3], every]
    return [pairs_tree(root / str(i), answered(i, rows), answered(i, rows)[:1]) for i, rows in enumerate(kept)]


CASES = {
    "unpaired": ([2], [(2, 2)], False),
    "tspin": ([1, 2], [], True),
    "tspin against θ_t": ([1, 2], [(2, 1), (2, 2), (2, 0)], True),
    "tpaw": ([1, 2], [(2, 1), (2, 2), (1, 1), (1, 2), (0, 1), (0, 2)], False),
    "alpha": ([2], [(2, 2), (0, 2)], False),
    "dft": ([0, 1, 2], [(0, 0), (1, 1), (2, 2)], False),
    "dft alone": ([1, 2], [], False),
}
"""Loss → in iteration 2: the sets of pairs, the scores (model, pairs) and whether θ_0's answers are read."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, trees: list[Path]) -> Callable[..., tuple[dict, dict]]:
    """`played(name)`: inputs and digests of a finetune of iteration 2 by the loss. Three models, of which θ_2 is the
    one that is trained."""
    root = tmp_path_factory.mktemp("played")
    models = [copy_model(root / f"model{k}", weights) for k, weights in enumerate(MODELS)]
    known: dict[tuple[int, int], Path] = {}

    def scored(k: int, i: int) -> Path:
        if (k, i) not in known:
            job = job_at(root / f"score{k}{i}", {"model": f"m{k}", "pairs": f"p{i}"})
            config = score.Config(score=score_settings(finetune_config().finetune), chat=CHAT)
            score.run({"model": models[k], "pairs": trees[i]}, config, job)
            known[k, i] = job.out
        return known[k, i]

    def inputs(name: str) -> tuple[dict, dict]:
        sets, scores, reads_first = CASES[name]
        first = {"first": trees[0]} if reads_first else {}
        made = {
            "model": models[2],
            "pairs": [trees[i] for i in sets],
            "logps": [scored(*one) for one in scores],
            **first,
        }
        digests = {"model": "m2", "pairs": [f"p{i}" for i in sets], "logps": ["s"] * len(scores)}
        return made, digests | ({"first": "p0"} if reads_first else {})

    return inputs
