"""The sft stage."""

import math

import pytest
import torch
from training_data import groups_of, job_at, made_up_pairs, metrics_of, pad, rows_tree, sequence_logps, sft_config

from spin_core.errors import BadInput
from spin_core.modeling.loading import load_model
from spin_core.stages import sft


def run(tmp_path, theta, name="run", count=10, runtime=None, **changes):
    tree = tmp_path / "rows"
    if not tree.exists():
        rows_tree(tree, made_up_pairs(count))
    job = job_at(tmp_path / name, **(runtime or {}))
    return sft.run({"model": theta, "tokens": tree}, sft_config(**changes), job), job.out


def test_sft_ten_rows_learns_and_reports(tmp_path, theta) -> None:
    """Catches a loss that is not per token, keys off the contract, a last global batch that is lost."""
    summary, out = run(tmp_path, theta, epochs=4.0)
    lines = metrics_of(out)
    assert [line["rows"] for line in lines] == [4, 4, 2] * 4
    assert all(set(line) == {"step", "epoch", "lr", "loss", "grad_norm", "rows"} for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    assert summary["rows"] == 10
    assert summary["loss/last"] == lines[-1]["loss"]
    load_model(out, "cpu")


def test_sft_first_loss_is_token_mean_of_answers_only(tmp_path, theta) -> None:
    """Catches prompts in the loss, padding in the mean, and a mean of row means."""
    _, out = run(tmp_path, theta, global_batch=10, epochs=1.0)
    batch = pad([real for real, _ in groups_of(made_up_pairs(10))], 3)
    with torch.no_grad():
        logits = load_model(theta, "cpu")(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = -sequence_logps(logits, batch["labels"]).sum() / (batch["labels"] != -100).sum()
    assert metrics_of(out)[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert expected.item() > math.log(2)


@pytest.mark.parametrize(
    ("runtime", "rows"),
    [({"micro_tokens": 150}, 3), ({"micro_tokens": 150, "packing": False}, 3), ({"micro_tokens": 1000}, 4)],
)
def test_sft_micro_batches_same_result(tmp_path, theta, policy_calls, runtime, rows) -> None:
    """Catches a mean of micro-batch means: rows of unlike length would weigh differently."""
    _, one = run(tmp_path, theta, "alone", runtime={"micro_tokens": 1}, lr=1e-5)
    assert {batch.sequences for batch in policy_calls} == {1}
    policy_calls.clear()
    _, several = run(tmp_path, theta, "several", runtime=runtime, lr=1e-5)
    assert max(batch.sequences for batch in policy_calls) == rows
    for a, b in zip(metrics_of(one), metrics_of(several), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


def test_sft_no_rows_or_no_room_refused(tmp_path, theta) -> None:
    """Catches an empty train split that gives back the base model, and answers cut to nothing. The longest
    prompt is named."""
    with pytest.raises(BadInput, match="no rows to train on"):
        run(tmp_path / "none", theta, count=0)
    with pytest.raises(BadInput, match=r"row 0{15}8: .* no room for an answer"):
        run(tmp_path / "tight", theta, max_length=8)
