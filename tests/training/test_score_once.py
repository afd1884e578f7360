"""Nothing is scored twice: the pairs of one row as one group, and the real answers of another pair set of the same rows
read from its score."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from loss_data import answered, trees
from training_data import finetune_config, groups_of, job_at, made_up_pairs, pairs_tree, score_config

from spin_core.data.rows import Pair, answer_id
from spin_core.errors import BadInput
from spin_core.modeling.collate import Tokens, read_groups
from spin_core.modeling.pair_logps import PairLogps
from spin_core.stages import score

__all__ = ["trees"]  # a fixture
ROUNDING = 1e-4
"""Nats between an answer's log-prob in one batch and in another, in float32."""
MANY = 1 << 20
NEXT = str.maketrans("0123456789", "1234567890")


def score_of(
    path: Path, model: Path, pairs: Path, first: tuple[Path, Path] | None = None, digests: dict | None = None,
    **runtime: Any,
) -> tuple[dict, dict[tuple[str, str], dict]]:  # fmt: skip
    """Summary, and the lines of logps.parquet by split and id. `first`: the pairs that were scored first, their
    score."""
    given = {"model": "m", "pairs": pairs.name, **(digests or {})}
    inputs: dict[str, Any] = {"model": model, "pairs": pairs}
    if first:
        inputs |= dict(zip(score.WORK_SAVING, first, strict=True))
        given.setdefault("real_pairs", first[0].name)
    job = job_at(path, given, **runtime)
    summary = score.run(inputs, score_config(finetune_config()), job)
    lines = pq.read_table(job.out / "logps.parquet").to_pylist()
    return summary, {(line["split"], line["id"]): line for line in lines}


def pairs_of(tree: Path) -> list[tuple[Tokens, Tokens]]:
    return [pair for split in ("train", "test") for pair in read_groups([tree], split, 128)]


def apart(pairs: Sequence[tuple[Tokens, Tokens]]) -> int:
    """Tokens of the pairs, each with its prompt once."""
    return sum(real.prompt + real.answer + generated.answer for real, generated in pairs)


def same(lines: dict, others: dict) -> bool:
    assert lines.keys() == others.keys()
    return all(lines[at][side] == pytest.approx(others[at][side], abs=ROUNDING) for at in lines for side in SIDES)


SIDES = ("real", "generated")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows with three answers each: another, an answer that two have, and the real one."""
    made = []
    for pair in made_up_pairs(10):
        answers = [pair.generated, "Half of 12 is 6." if int(pair.id, 16) % 2 else pair.generated, pair.real]
        for k, answer in enumerate(answers):
            made.append(Pair(answer_id(pair.id, k), pair.prompt, pair.real, answer, "stop"))
    return pairs_tree(tmp_path_factory.mktemp("several") / "pairs", made, made_up_pairs(2, 100))


@pytest.fixture(scope="module")
def alone(several: Path, theta: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict]:
    """The lines of each pair of `several` when it is the only one of its tree."""
    lines: dict[tuple[str, str], dict] = {}
    root = tmp_path_factory.mktemp("alone")
    train = [Pair(f"{i:016x}", p.prompt, p.real, p.generated, "stop") for i, p in enumerate(_texts(several))]
    _, found = score_of(root / "score", theta, pairs_tree(root / "pairs", train, []), score_tokens=1)
    ids = [p.id for p in _texts(several)]
    for line, id in zip(found.values(), ids, strict=True):
        lines[("test" if int(id.partition("#")[0], 16) >= 100 else "train", id)] = line
    return lines


def _texts(tree: Path) -> list[Pair]:
    from spin_core.data.rows import FILES, read_pairs

    return [pair for name in FILES.values() for pair in read_pairs(tree / name)]


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_pairs_of_a_row_are_scored_as_one_group_and_as_each_alone(
    packing, several, alone, theta, tmp_path, policy_calls
) -> None:
    """Catches a log-prob at another pair or side, a real answer that each of a row's pairs computes again, equal
    answers that are computed twice, and figures that count otherwise than the passes do."""
    summary, lines = score_of(tmp_path, theta, several, packing=packing)
    assert same(lines, alone)
    distinct = {
        (real.ids[: real.prompt].tobytes(), one.ids.tobytes()) for real, generated in pairs_of(several)
        for one in (real, generated)
    }  # fmt: skip
    assert sum(batch.sequences for batch in policy_calls) == len(distinct) + probes(policy_calls)
    if packing:
        prompts = {real.ids[: real.prompt].tobytes(): real.prompt for real, _ in pairs_of(several)}
        once = sum(prompts.values()) + sum(len(ids) // 4 - prompts[prompt] for prompt, ids in distinct)
        assert summary["forward_tokens"] == once
        assert summary["forward_tokens_saved"] == apart(pairs_of(several)) - once > 0
    assert summary["forward_tokens_saved"] > summary["forward_tokens"] / 4


def probes(calls: list) -> int:
    """Sequences of the passes that find out how a model can be computed."""
    return sum(batch.sequences for batch in calls if batch.sequences == 4 and len(batch.targets) == 38)


def test_identical_answers_have_one_log_prob(several, theta, tmp_path) -> None:
    """Catches a log-ratio of rounding where there is none: y′ = y is one sequence."""
    _, lines = score_of(tmp_path, theta, several)
    same_text = [line for (_, id), line in lines.items() if id.endswith("#3")]
    assert len(same_text) == 10 and all(line["real"] == line["generated"] for line in same_text)


def test_row_with_more_answers_than_a_pass_holds_is_divided(several, alone, theta, tmp_path, policy_calls) -> None:
    """Catches a pass of all the answers to a prompt, however many, which `runtime.score_tokens` does not bound."""
    _, lines = score_of(tmp_path, theta, several, score_tokens=100)
    sizes = [batch.inputs["input_ids"].numel() for batch in policy_calls if "layout" in batch.inputs]
    longest = max(apart([pair]) for pair in pairs_of(several))
    assert max(sizes) <= max(100, longest) and same(lines, alone)


def test_real_answers_are_read_from_the_score_of_another_set(trees, theta, tmp_path) -> None:
    """Catches real answers that are computed again for each set of an iteration, those of a row that the other set
    lacks (row 3) left without one, a value of the wrong row, and an artifact that says something else than one made
    alone."""
    _, newest = score_of(tmp_path / "newest", theta, trees[1])
    _, plain = score_of(tmp_path / "plain", theta, trees[0])
    first = trees[1], tmp_path / "newest" / "out"
    summary, lines = score_of(tmp_path / "older", theta, trees[0], first)
    assert same(lines, plain)
    shared = [at for at in lines if at in newest]
    assert summary["real_logps"] == len(shared) == 10 and len(lines) == 11
    assert all(lines[at]["real"] == newest[at]["real"] for at in shared)
    every = pairs_of(trees[0])
    once = {id: pair for (_, id), pair in zip(lines, every, strict=True)}  # the held-out row is a train row as well
    reals = sum(pair[0].answer for id, pair in once.items() if ("train", id) in newest)
    assert summary["forward_tokens"] == apart([*once.values()]) - reals
    assert summary["forward_tokens_saved"] == apart(every) - summary["forward_tokens"]
    made, alone = ((tmp_path / name / "out" / "scores.json").read_bytes() for name in ("older", "plain"))
    assert made == alone, "finetune and evaluate are to read it as any other"


@pytest.mark.parametrize(
    "change", [lambda text: f"No. {text}", lambda text: text.translate(NEXT)], ids=["longer", "as long"]
)
def test_same_rows_with_another_real_answer_are_computed(change, trees, theta, tmp_path) -> None:
    """Catches log-probs that are looked up by id, or by the lengths: an imported set may have another text there."""
    made = answered(0, list(range(10)))
    other = pairs_tree(
        tmp_path / "other", [Pair(p.id, p.prompt, change(p.real), p.generated, "stop") for p in made], []
    )
    lengths = [[real.ids.size for real, _ in pairs_of(tree)[:10]] for tree in (other, trees[0])]
    as_long = sum(map(int.__eq__, *lengths))
    assert as_long >= 2 if change("1") == "2" else not as_long
    score_of(tmp_path / "newest", theta, trees[1])
    summary, lines = score_of(tmp_path / "score", theta, other, (trees[1], tmp_path / "newest" / "out"))
    _, plain = score_of(tmp_path / "plain", theta, other)
    assert summary["real_logps"] == 0 and lines == plain


@pytest.mark.parametrize(
    ("digests", "says"),
    [({"model": "another"}, "`model` is m"), ({"real_pairs": "another"}, "`pairs` is 1, this score has another")],
)
def test_score_of_another_model_or_set_is_rejected(digests, says, trees, theta, tmp_path) -> None:
    """Catches real answers whose log-probs are of another model, for ever under this one's key."""
    score_of(tmp_path / "newest", theta, trees[1])
    with pytest.raises(BadInput, match=says):
        score_of(tmp_path / "score", theta, trees[0], (trees[1], tmp_path / "newest" / "out"), digests)


def test_score_of_other_settings_is_rejected(trees, theta, tmp_path) -> None:
    """Catches log-probs of answers that were cut elsewhere."""
    score_of(tmp_path / "newest", theta, trees[1])
    tree = tmp_path / "changed"
    shutil.copytree(tmp_path / "newest" / "out", tree)
    said = json.loads((tree / "scores.json").read_text())
    said["score"]["max_length"] = 64
    (tree / "scores.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match="`score` is"):
        score_of(tmp_path / "score", theta, trees[0], (trees[1], tree))


def test_pair_logps_asks_for_what_is_not_known() -> None:
    """Catches a sequence that is asked for though it is known, and one that is never asked for."""
    pairs = groups_of([*made_up_pairs(4)])
    made = PairLogps(pairs)
    assert [len(group) for group in made.missing(MANY)] == [2] * 4
    made.take(0, {0: -1.0, 2: -2.0})
    made.take(1, {0: -3.0})
    missing = made.missing(MANY, [0, 1, 2])
    assert [len(group) for group in missing] == [2, 1] and missing[1][0].ids.tolist() == pairs[2][1].ids.tolist()
    made.put(missing, [-4.0, -5.0, -6.0])
    assert made.known.tolist() == [[True, True]] * 3 + [[False, False]]
    assert np.array_equal(made.values[:3], [[-1, -3], [-4, -5], [-2, -6]])
    lengths, packed = pairs.lengths(), pairs.packed()
    several = [Pair(answer_id(pairs.ids[0], k), [{"role": "user", "content": "Hi"}], "Yes", said, "stop") for k, said in
               enumerate(("No", "Well"))]  # fmt: skip
    row = PairLogps(groups_of(several))
    row.put(row.missing(MANY, [0]), [-1.0, -2.0])
    assert [len(group) for group in row.missing(MANY)] == [1] and row.values[:, 0].tolist() == [-1, -1]
    assert made.tokens_apart([3], True) == packed[:3].sum() + lengths[3, 0]
    assert made.tokens_apart([3], False) == 2 * lengths[:3].max(axis=1).sum() + lengths[3, 0]
