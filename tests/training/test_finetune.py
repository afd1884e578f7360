"""The finetune stage: what the result depends on, and what it must not depend on."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_data import (
    CHAT,
    DIGESTS,
    copy_model,
    finetune_config,
    has_begun,
    job_at,
    labels_of,
    made_up_pairs,
    metrics_of,
    pairs_tree,
    score_config,
    scored,
    sequence_logps,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_core.analysis.definitions import TRAINING
from spin_core.errors import BadInput, StageFailed
from spin_core.modeling.collate import Tokens
from spin_core.modeling.encoding import Conversation, Encoded, encode
from spin_core.modeling.loading import load_chat, load_model
from spin_core.stages import finetune, score

KEYS = {
    "step", "epoch", "lr", "loss", "grad_norm", "pairs", "rewards/real", "rewards/generated", "rewards/accuracies",
    "rewards/margins", "logps/real", "logps/generated",
}  # fmt: skip


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def far_apart(a: Path, b: Path) -> float:
    first, second = weights_of(a), weights_of(b)
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def test_finetune_ten_pairs_learns_and_reports(spin, theta) -> None:
    """Catches weights that do not move, metrics without their contract keys, a short last global batch that is lost, a
    figure that docs/metrics.md does not define."""
    summary, out = spin()
    lines = metrics_of(out)
    assert [line["pairs"] for line in lines] == [4, 4, 2, 4, 4, 2]
    assert all(set(line) == KEYS for line in lines)
    of_sft, of_anchor = "rows", "nll/real"
    assert {one.name for one in TRAINING} == KEYS | {of_sft, of_anchor}
    assert [line["epoch"] for line in lines] == [(i + 1) / 3 for i in range(6)]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[-1]["loss"] < 0.1
    assert summary["rewards/margins"] > 1
    assert summary["steps"] == 6
    assert summary["pairs"] == 10
    assert far_apart(out, theta) > 1e-3


def test_finetune_saved_model_loads_without_pickle_or_paths(spin, theta) -> None:
    """Catches pickled weights, a tokenizer left behind, machine paths in the output, bytes that differ between runs."""
    _, out = spin()
    model = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True, trust_remote_code=False)
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out).chat_template
    kinds = {".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".model", ".md"}
    assert {path.suffix for path in out.iterdir()} <= kinds
    for path in out.iterdir():
        assert str(theta).encode() not in path.read_bytes(), path
    _, again = spin(again=1)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


@pytest.mark.parametrize(
    ("runtime", "pairs"),
    [
        ({"micro_tokens": 160}, 2),
        ({"micro_tokens": 240}, 3),
        ({"micro_tokens": 100_000}, 4),
        ({"micro_tokens": 1, "packing": False}, 1),
        ({"micro_tokens": 250, "packing": False}, 2),
        ({"micro_tokens": 160, "gradient_checkpointing": True}, 2),
    ],
)
def test_finetune_runtime_changes_result_stays(spin, policy_calls, runtime, pairs) -> None:
    """Catches a mean of micro-batch means (the last global batch has 2 of 4 pairs): runtime fields change nothing. Nor
    is the test empty: a budget really gives so many pairs a pass."""
    settings = {"lr": 1e-5, "schedule_epochs": 1.0}
    _, one = spin(runtime={"micro_tokens": 1}, **settings)
    policy_calls.clear()
    _, other = spin(runtime=runtime, **settings)
    assert max(batch.sequences for batch in policy_calls) == 2 * pairs
    assert all(("layout" in batch.inputs) is runtime.get("packing", True) for batch in policy_calls)
    lines = list(zip(metrics_of(one), metrics_of(other), strict=True))
    assert any(has_begun(a) for a, _ in lines)
    for a, b in lines:
        for name in ("loss", "rewards/margins", *(["rewards/accuracies"] if has_begun(a) else [])):
            assert a[name] == pytest.approx(b[name], abs=2e-5), name
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    # RMSprop divides by the gradient's own size, which blows up the rounding of the few gradients near 0.
    first, second = weights_of(one), weights_of(other)
    difference = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert (difference > 1e-6).double().mean() < 1e-3


def test_finetune_stop_epoch_runs_the_head_of_the_schedule(spin) -> None:
    """Catches one setting for schedule and stop: a run of 1 of 3 epochs must be the first third of the long run."""
    settings = {"schedule_epochs": 3.0, "warmup_ratio": 0.2}
    _, long = spin(**settings)
    _, short = spin(stop_epoch=1.0, **settings)
    assert metrics_of(short) == metrics_of(long)[:3]
    assert [line["lr"] for line in metrics_of(short)] == pytest.approx([0.0, 0.0005, 0.001])


def test_finetune_fractional_stop_epoch_stops_inside_an_epoch(spin) -> None:
    """Catches epochs rounded to whole ones: 1.5 of 3 steps an epoch is 5 steps (4.5, upwards)."""
    _, out = spin(schedule_epochs=2.0, stop_epoch=1.5)
    assert len(metrics_of(out)) == 5


def test_finetune_other_seed_other_order(spin) -> None:
    """Catches a seed that does not reach the order of the data."""
    _, one = spin(seed=1)
    _, two = spin(seed=2)
    assert [x["logps/real"] for x in metrics_of(one)] != [x["logps/real"] for x in metrics_of(two)]


def test_finetune_hinge_first_loss_is_one(spin) -> None:
    """Catches a hinge that does not reach the loop: max(0, 1 − 0) = 1 while policy and opponent are equal."""
    _, out = spin(loss="hinge")
    assert metrics_of(out)[0]["loss"] == pytest.approx(1.0, abs=1e-4)


def test_finetune_bfloat16_runs_near_float32(spin) -> None:
    """Catches autocast that is not switched on (equal to float32), or log-probs kept in bfloat16 (far from it)."""
    _, exact = spin()
    _, rough = spin(precision="bfloat16")
    first, second = metrics_of(exact)[0], metrics_of(rough)[0]
    assert second["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert first["logps/real"] != second["logps/real"]
    assert first["logps/real"] == pytest.approx(second["logps/real"], rel=0.01)


def test_finetune_bfloat16_source_saved_as_bfloat16_and_trained_in_float32(spin, tmp_path) -> None:
    """Catches weights trained in bfloat16 (lr 1e-6 vanishes there) and output of another dtype than the source."""
    source = copy_model(tmp_path / "source")
    halved = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(halved, source / "model.safetensors", metadata={"format": "pt"})
    _, out = spin(model=source, lr=1e-6, schedule_epochs=4.0)
    assert {tensor.dtype for tensor in weights_of(out).values()} == {torch.bfloat16}
    assert metrics_of(out)[-1]["rewards/margins"] > 0


def test_finetune_reference_collation_runs_from_its_own_scores(spin) -> None:
    """Catches training and scoring that tokenise differently under `reference`: the first loss would not be ln 2."""
    _, out = spin(collation="reference")
    _, exact = spin()
    assert metrics_of(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics_of(out)[0]["logps/real"] != metrics_of(exact)[0]["logps/real"]


def test_finetune_two_pairs_trees_are_concatenated(tmp_path, theta) -> None:
    """Catches history that is not trained on, or scores joined to the wrong tree."""
    config = finetune_config(schedule_epochs=1.0)
    trees = [pairs_tree(tmp_path / f"pairs{i}", made_up_pairs(6, 50 * i), []) for i in (0, 1)]
    logps = [scored(tmp_path / f"score{i}", theta, tree, config, digest=f"p{i}") for i, tree in enumerate(trees)]
    digests = {"model": "m", "pairs": ["p0", "p1"], "logps": ["s0", "s1"]}
    inputs = {"model": theta, "pairs": trees, "logps": logps}
    assert finetune.run(inputs, config, job_at(tmp_path / "run", digests))["pairs"] == 12
    assert metrics_of(tmp_path / "run" / "out")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    with pytest.raises(BadInput, match="pairs"):
        finetune.run({**inputs, "logps": logps[::-1]}, config, job_at(tmp_path / "swapped", digests))


@pytest.mark.parametrize(
    ("changes", "digests", "field"),
    [
        ({}, {**DIGESTS, "model": "another"}, "model"),
        ({}, {**DIGESTS, "pairs": ["another"]}, "pairs"),
        ({"max_length": 100}, DIGESTS, "score"),
        ({"precision": "bfloat16"}, DIGESTS, "score"),
    ],
)
def test_finetune_stale_scores_refused(tmp_path, theta, changes, digests, field) -> None:
    """Catches log-probs of another model, other pairs or other settings that are trained on without a word."""
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(4), [])
    logps = scored(tmp_path / "score", theta, tree, finetune_config())
    inputs = {"model": theta, "pairs": [tree], "logps": [logps]}
    with pytest.raises(BadInput, match=f"`{field}`.*run score again"):
        finetune.run(inputs, finetune_config(**changes), job_at(tmp_path / "run", digests))


def test_finetune_scores_of_other_ids_refused(tmp_path, theta) -> None:
    """Catches scores matched by position alone."""
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(4), [])
    logps = scored(
        tmp_path / "score", theta, pairs_tree(tmp_path / "others", made_up_pairs(4, 9), []), finetune_config()
    )
    inputs = {"model": theta, "pairs": [tree], "logps": [logps]}
    with pytest.raises(BadInput, match="ids are not"):
        finetune.run(inputs, finetune_config(), job_at(tmp_path / "run", DIGESTS))


def test_finetune_no_pairs_refused(tmp_path, theta) -> None:
    """Catches an empty train split that gives back θ_t, or divides by zero."""
    tree = pairs_tree(tmp_path / "pairs", [], made_up_pairs(2))
    logps = scored(tmp_path / "score", theta, tree, finetune_config())
    inputs = {"model": theta, "pairs": [tree], "logps": [logps]}
    with pytest.raises(BadInput, match="no pairs to train on"):
        finetune.run(inputs, finetune_config(), job_at(tmp_path / "run", DIGESTS))


def test_finetune_schedule_of_warmup_only_refused(spin) -> None:
    """Catches a run whose every step has learning rate 0: one step, 10 % warm-up, θ_{t+1} = θ_t."""
    with pytest.raises(BadInput, match="warmup_ratio"):
        spin(global_batch=64, schedule_epochs=1.0, warmup_ratio=0.1)


def test_finetune_diverging_run_names_the_step(spin) -> None:
    """Catches NaN weights that are published. The step before it had lr 1e30."""
    with pytest.raises(StageFailed, match=r"step 2 of 6.*lower lr"):
        spin(lr=1e30)


@pytest.mark.parametrize(
    ("runtime", "passes"),
    [
        ({"score_tokens": 1}, 12),
        ({"score_tokens": 300}, 3),
        ({"score_tokens": 300, "packing": False}, 6),
        ({"packing": True}, 1),
    ],
)
def test_score_any_batch_equals_each_pair_alone(tmp_path, theta, policy_calls, runtime, passes) -> None:
    """Catches padding or neighbours that leak into log-probs, results put back in the wrong order, sides or splits
    exchanged, a budget that is not kept."""
    pairs, test = made_up_pairs(9), made_up_pairs(3, 100)
    tree = pairs_tree(tmp_path / "pairs", pairs, test)
    out = scored(tmp_path / "score", theta, tree, finetune_config(), **runtime)
    sizes = [batch.inputs["input_ids"].numel() for batch in policy_calls]
    assert len(sizes) == passes
    assert passes == 12 or max(sizes) <= runtime.get("score_tokens", 8192)
    table = pq.read_table(out / "logps.parquet").to_pydict()
    assert table["id"] == [pair.id for pair in pairs + test]
    assert table["split"] == ["train"] * 9 + ["test"] * 3
    chat, model = load_chat(theta, CHAT), load_model(theta, "cpu")
    for number, pair in enumerate(pairs + test):
        (one,) = encode(chat, [Conversation(pair.prompt, (pair.real, pair.generated), (True, pair.finish == "stop"))])
        assert isinstance(one, Encoded)
        for side, answer in zip(("real", "generated"), one.answers, strict=True):
            tokens = Tokens(np.array(one.prompt + answer, np.int32), len(one.prompt))
            ids, labels = (torch.from_numpy(x.astype("int64"))[None] for x in (tokens.ids, labels_of(tokens)))
            alone = sequence_logps(model(ids).logits, labels).item()
            assert table[side][number] == pytest.approx(alone, abs=2e-4)
            assert table[f"{side}_tokens"][number] == tokens.targets


def test_score_unfinished_answer_has_no_end_token(tmp_path, theta) -> None:
    """Catches an end of turn that a cut answer never had (a target the opponent did not sample)."""

    stopped = dataclasses.replace(made_up_pairs(1)[0], finish="stop")
    tokens = []
    for number, pair in enumerate((stopped, dataclasses.replace(stopped, finish="length"))):
        tree = pairs_tree(tmp_path / f"pairs{number}", [pair], [])
        out = scored(tmp_path / f"score{number}", theta, tree, finetune_config())
        tokens.append(pq.read_table(out / "logps.parquet").to_pydict())
    assert tokens[0]["generated_tokens"][0] == tokens[1]["generated_tokens"][0] + 1
    assert tokens[0]["real_tokens"] == tokens[1]["real_tokens"]


def test_score_long_answer_cut_and_short_one_untouched(tmp_path, theta) -> None:
    """Catches the reference's habit of cutting both answers when one is long, and prompts cut for an answer's sake."""
    pair = made_up_pairs(1)[0]

    long = dataclasses.replace(pair, real="Rivers carve valleys slowly. " * 40)
    counts = []
    for number, one in enumerate((pair, long)):
        tree = pairs_tree(tmp_path / f"pairs{number}", [one], [])
        out = scored(tmp_path / f"score{number}", theta, tree, finetune_config())
        counts.append(pq.read_table(out / "logps.parquet").to_pydict())
    assert counts[0]["generated_tokens"] == counts[1]["generated_tokens"]
    prompt = 128 - counts[1]["real_tokens"][0]
    assert 0 < prompt < 64


def test_score_nothing_or_broken_weights_refused(tmp_path, theta) -> None:
    """Catches NaN log-probs that are cached, and empty pairs that are scored."""
    config = score_config(finetune_config())
    empty = pairs_tree(tmp_path / "empty", [], [])
    with pytest.raises(BadInput, match="no pairs"):
        score.run({"model": theta, "pairs": empty}, config, job_at(tmp_path / "a"))
    broken = copy_model(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(3e38)  # finite, so that it loads; its logits are not
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(2), [])
    with pytest.raises(StageFailed, match="pair 0000"):
        score.run({"model": broken, "pairs": tree}, config, job_at(tmp_path / "b"))


def test_score_progress_ends_at_all_pairs(tmp_path, theta) -> None:
    """Catches a bar that counts passes."""
    events: list[dict] = []
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(5), [])
    config = score_config(finetune_config())
    score.run({"model": theta, "pairs": tree}, config, job_at(tmp_path / "a", events=events, score_tokens=160))
    last = [event for event in events if event["label"] == "score"][-1]
    assert (last["done"], last["total"]) == (5, 5)
    assert json.loads((tmp_path / "a" / "out" / "scores.json").read_text())["model"] == "m"
