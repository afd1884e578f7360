"""What the measuring parts of the GPU proof count, held to arithmetic on paper; that they run is test_rehearsal's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from spin_core.estimate import hardware, measured
from spin_core.estimate import work as operations
from spin_core.estimate.needs import GIB
from tests.benchmarks.bench_work import Watch, Work
from tests.gpu import estimates, in_turn, sizes
from tests.gpu.profile_step import _covered
from tests.gpu.proof import Proof


@pytest.fixture
def proof(tmp_path: Path) -> Proof:
    return Proof(torch.device("cpu"), True, tmp_path, time.monotonic() + 100)


def test_useful_operations_are_six_for_each_weight_and_token() -> None:
    """Catches an MFU that counts padding, each prompt twice, the output layer for prompts, or three operations for six:
    one pair of 100 + 50 + 60 tokens."""
    shape = sizes._known("meta-llama/Llama-3.2-1B")
    pair = sizes.groups([([0] * 100, [0] * 50, [0] * 60)])
    seen = 100 * 100 / 2 + 50 * 100 + 50 * 50 / 2 + 60 * 100 + 60 * 60 / 2
    expected = 6 * shape.matrices * 210 + 6 * shape.embeddings * 110 + 12 * shape.layers * shape.queries * seen
    assert operations.training_flops(shape, pair, False, False) == pytest.approx(expected)
    assert operations.training_flops(shape, pair, False, True) == pytest.approx(expected * 4 / 6)


@pytest.mark.parametrize(
    ("card", "name", "rank"),
    [("h200", "7B", 0), ("h100-80gb", "7B", sizes.RANK), ("l40s", "3B", sizes.RANK), ("l4", "1B", sizes.RANK)],
)
def test_largest_shape_is_that_which_the_sheet_says_fits(card: str, name: str, rank: int) -> None:
    """Catches a proof that dies of memory on its first model, and one that trains an adapter where all weights fit."""
    gpu = hardware.known()[card]
    rows = sizes.draw(sizes.TINY, "short", 64, False)
    first = next(sizes.fitting(gpu, (gpu.gib - 1) * GIB, rows, 32))
    assert (first.name, first.rank) == (name, rank)
    assert next(sizes.fitting(gpu, 2 * GIB, rows, 32), None) is None


def test_figures_of_a_way_come_from_its_median_step(proof: Proof) -> None:
    """Catches a rate of the first step, scoring that is counted once an epoch, or a table without its ratio."""
    rows = [([1] * 10, [1] * 5, [1] * 5)] * 8
    made = sizes.work(proof, rows, 4, 512)
    ours, reference = in_turn.Measured(GIB, [9.0, 2.0, 2.0], [4.0]), in_turn.Measured(2 * GIB, [4.0])
    figures = in_turn.cells(proof, sizes.TINY, 0, made, {"ours sdpa": ours, "reference": reference})
    assert figures["ours sdpa, tokens/s"] == 4 * 20 / 2 and figures["reference, GiB"] == 2
    assert figures["ours sdpa, pairs/s"] == pytest.approx(1 / (2 / 4 + 4 / 8 / 2))
    assert figures["ours : reference, pairs/s"] == pytest.approx(figures["ours sdpa, pairs/s"] / 1)


def test_way_that_cannot_run_is_named_and_the_others_have_their_figures(proof: Proof) -> None:
    """Catches a kernel whose compiler is missing that takes the whole table with it, one that was padded instead of
    packed under its kernel's name, and a first way that fails in silence."""

    def runs(work: Work, watch: Watch) -> list[float]:
        for _ in range(4):
            watch.step()
        return [0.7]

    def cannot(work: Work, watch: Watch) -> list[float]:
        raise RuntimeError("no compiler")

    def pads(work: Work, watch: Watch) -> list[float]:
        watch.event({"note": "it is padded instead of packed"})
        return [0.7]

    def later(work: Work, watch: Watch) -> list[float]:
        return runs(work, watch) if len(work.rows) == 4 else cannot(work, watch)

    made = sizes.work(proof, [([1] * 10, [1] * 5, [1] * 5)] * 8, 4, 512)
    ways = {"ours sdpa": runs, "flash": cannot, "flex": pads, "reference": later}
    results, without = in_turn.in_turn(proof, made, ways, 90.0)
    assert list(results) == ["ours sdpa"] and len(results["ours sdpa"].steps) == 3
    failed = "failed: RuntimeError: no compiler"
    assert without == {"flash": failed, "flex": "it is padded instead of packed", "reference": failed}
    with pytest.raises(RuntimeError):
        in_turn.in_turn(proof, made, {"flash": cannot, "ours sdpa": runs}, 90.0)
    with pytest.raises(AssertionError, match="padded"):
        in_turn.in_turn(proof, made, {"flex": pads}, 90.0)


def test_covered_time_counts_overlaps_once() -> None:
    """Catches a device that is busy for longer than a step takes, as kernels of two streams overlap."""
    assert _covered([(0, 4), (2, 3), (3, 6), (8, 9)]) == 7


def test_factor_is_of_the_uncorrected_estimate(proof: Proof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second proof on a corrected card whose factors would all be 1, and undo the first one's."""
    case = estimates.Case(
        proof, sizes.Candidate("tiny", sizes.TINY, 0, 512), sizes.draw(sizes.TINY, "short", 8, True), 4, 2, 6
    )
    plain = estimates.estimated(case, "score")
    file = tmp_path / "measured.yaml"
    name = sizes.card(proof).name
    measured.write(measured.added(name, "2026-11-29", sizes.TINY.weights, {"score": (7.0, 7.0)}), file)
    monkeypatch.setattr(measured, "KNOWN", file)
    assert measured.nearest(name, "score", sizes.TINY.weights)
    assert estimates.estimated(case, "score") == plain
