"""A sweep's comparison: what chance alone gives is not called better, and what is better is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spin_core.analysis.results import ModelResults
from spin_core.analysis.sweep import START, Training, Variant, as_json, compare, verdict
from spin_core.report import sweep_page
from tests.report.columns import without_tooltip

EM = "exact_match/greedy"


def model(right: Any, nll: float = 1.0, label: str = "θ_1") -> ModelResults:
    """A model that is right on the rows where `right` is 1."""
    answers = {f"r{i:04}": {"greedy_match": float(one), "nll": nll, "tokens": 3} for i, one in enumerate(right)}
    return ModelResults(label, "iteration", 0, {}, answers)


def variant(label: str, seeds: Any, alarm: str = "", **changes: str) -> Variant:
    """`seeds`: of each training its rows."""
    runs = [Training(f"run-{label}-{s}", s, model(rows), EM, "θ_1", alarm) for s, rows in enumerate(seeds)]
    return Variant(label, changes or {"finetune.beta": label}, runs)


def drawn(seed: int, share: float, rows: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).random(rows) < share


def test_chance_alone_has_no_winner() -> None:
    """Catches many comparisons without a correction: of 20 sweeps with 8 equal variants one may have a winner (95 %
    hold), uncorrected nine have one."""
    winners = 0
    for n in range(20):
        made = compare([variant(f"{k}", [drawn(100 * n + k, 0.5, rows=60)]) for k in range(8)], None, 0.95)
        winners += bool(made.beaten())
    assert winners <= 3
    assert made.corrected == pytest.approx(1 - 0.05 / 28)


def test_better_variant_is_clearly_better_on_every_seed_only() -> None:
    """Catches a winner by one lucky seed, seeds that are not paired, and a best that is not the highest mean."""
    weak = [drawn(s, 0.3) for s in (1, 2, 3)]
    strong = [drawn(s, 0.6) for s in (4, 5, 6)]
    lucky = [drawn(7, 0.9), drawn(8, 0.31), drawn(2, 0.3)]
    made = compare(
        [variant("weak", weak), variant("strong", strong), variant("lucky", lucky)], model(drawn(9, 0.3)), 0.95
    )
    assert made.best == 1 and set(made.beaten()) == {0, START}, "lucky has one seed that is better than strong's"
    of = {(one.first, one.second): one for one in made.against}
    assert (of[1, 2].agree, of[1, 2].seeds) == (2, 3) and not of[1, 2].is_clear
    assert made.corrected == pytest.approx(1 - 0.05 / 6), "θ_0 counts"
    figure = made.figures[EM][1]
    assert figure.each == pytest.approx([float(rows.mean()) for rows in strong])
    assert figure.seeds and figure.seeds[0] < figure.value < figure.seeds[1]
    assert "strong is the best by exact match (greedy)" in verdict(made) and "1 of 2 other variants" in verdict(made)


def test_variant_with_an_alarm_is_not_the_best_unless_asked() -> None:
    """Catches a best that the gate of its own run does not trust."""
    variants = [variant("sound", [drawn(1, 0.3)]), variant("loops", [drawn(2, 0.9)], alarm="θ_1: never ends")]
    assert compare(variants, None, 0.95).best == 0
    assert compare(variants, None, 0.95, alarmed_best=True).best == 1
    alone = compare(variants[1:], None, 0.95)
    assert alone.best is None and verdict(alone).startswith("Every variant raised an alarm")
    assert "loops, alarm: θ_1: never ends" in sweep_page.text(compare(variants, None, 0.95), (3, 4))


def test_less_is_better_by_nll() -> None:
    """Catches the highest NLL as the best, and figures with their sign turned."""
    rows = drawn(1, 0.5)
    low, high = ([Training("r", 0, model(rows, nll), "nll/real")] for nll in (1.0, 2.0))
    made = compare([Variant("high", {"a": "1"}, high), Variant("low", {"a": "2"}, low)], None, 0.95)
    assert made.metric == "nll/real" and made.best == 1 and made.figures["nll/real"][1].value == 1.0


def test_equal_variants_have_no_best_in_the_sentence() -> None:
    """Catches a winner among variants that did exactly the same."""
    rows = drawn(1, 0.5)
    made = compare([variant("one", [rows]), variant("two", [rows])], None, 0.95)
    assert verdict(made).startswith("All variants have the same figure by exact match (greedy), 0.")


def test_effect_of_a_setting_is_the_mean_over_the_others() -> None:
    """Catches effects of one variant each, and an effect where there is one setting only."""
    made = compare([variant(f"{a}{b}", [drawn(3, share)], **{"x.a": a, "x.b": b}) for a, b, share in AXES], None, 0.95)
    effects = {(one.setting, one.value): (one.figure, one.variants) for one in made.effects}
    values = {
        label: figure.value for label, figure in zip(("11", "12", "21", "22"), made.figures[EM].values(), strict=True)
    }
    assert effects["x.a", "1"] == (pytest.approx((values["11"] + values["12"]) / 2), 2)
    assert effects["x.b", "2"] == (pytest.approx((values["12"] + values["22"]) / 2), 2)
    assert not compare([variant("1", [drawn(1, 0.5)]), variant("2", [drawn(2, 0.5)])], None, 0.95).effects


AXES = (("1", "1", 0.2), ("1", "2", 0.4), ("2", "1", 0.6), ("2", "2", 0.8))


def test_variant_with_other_rows_is_counted_as_not_compared() -> None:
    """Catches a variant that is left out of the comparison in silence, or called not better, as it shares no row."""
    other = model([1.0] * 50)
    moved = ModelResults("θ_1", "iteration", 0, {}, {f"z{key}": row for key, row in other.answers.items()})
    apart = Variant("other rows", {"finetune.beta": "3"}, [Training("r", 0, moved, EM)])
    made = compare([variant("one", [drawn(1, 0.5)]), variant("two", [drawn(2, 0.1)]), apart], None, 0.95)
    assert made.best == 2 and made.apart() == 2
    assert "2 variants with other held-out rows cannot be compared with it" in verdict(made)


def test_failed_runs_stay_in_sight() -> None:
    """Catches a variant whose runs failed and that is on no page, and a crash where all did."""
    made = compare(
        [variant("one", [drawn(1, 0.5)]), Variant("two", {"a": "2"}, [], ["seed 3: out of memory"])], None, 0.95
    )
    page = sweep_page.page(made, "t-sweep", (1, 2))
    assert "two, seed 3: out of memory" in page and "two" in sweep_page.text(made, (1, 2))
    assert as_json(made, {})["variants"][1]["failed"] == ["seed 3: out of memory"]
    assert compare([Variant("two", {"a": "2"}, [], ["no"])], None, 0.95).best is None


REPETITION = "repetition/t0.3"


def repeating(label: str, shares: Any) -> Variant:
    """`shares`: of each training, by row, the share of its answer's 4-grams that it repeats."""
    of = [{f"r{i:04}": {"t0.3_repetition": float(one)} for i, one in enumerate(each)} for each in shares]
    runs = [
        Training(f"run-{label}-{s}", s, ModelResults("θ_1", "iteration", 0, {}, rows), REPETITION)
        for s, rows in enumerate(of)
    ]
    return Variant(label, {"finetune.beta": label}, runs)


def test_shares_are_in_per_cent_and_differences_are_those_of_the_figures() -> None:
    """Catches a share in per cent beside its interval as a fraction (2.9 % (0.027 to 0.032)), bounds below zero, and a
    repetition that is 8 points lower shown as 8 more; and the metric that decides at the end of a wide table."""
    noise = np.random.default_rng(1).random((2, 3, 200)) * 0.02
    made = compare([repeating("much", 0.08 + noise[0]), repeating("rare", noise[1] * 0.1)], None, 0.95)
    assert made.best == 1
    head, _, *rows = [line.split("|")[1:-1] for line in sweep_page.text(made, (1, 2)).splitlines() if line[:1] == "|"]
    assert [cell.strip() for cell in head[:4]] == ["variant", "repetition at T = 0.3", "to the best", "alarms"]
    much, rare = ([cell.strip() for cell in row] for row in rows[:2])
    assert much[1:3] == ["9.0 % (8.9 to 9.0)", "+8.9 points (clearly worse)"] and rare[1] == "0.1 % (0.1 to 0.1)"
    page = sweep_page.page(made, "t-sweep", (1, 2))
    assert "−8.9 points<small>−8.9 to −8.8 points<" in page and "(lower is better)" in page
    assert "repeat, % (lower is better). much: 8.990 (8.946 to 9.034)" in page, "the chart has the table's unit"
    uneven = compare([repeating("one", [[0.0] * 9, [0.0] * 9, [0.3] * 9]), repeating("two", [[0.5] * 9])], None, 0.95)
    assert "seeds 0.0 to 53.0" in sweep_page.page(uneven, "t-sweep", (1, 2))


def test_page_holds_every_variant_and_no_markup_of_others() -> None:
    """Catches a page without a variant, and a setting's text that becomes markup."""
    made = compare([variant("<b>one</b>", [drawn(1, 0.5)]), variant("two", [drawn(2, 0.5)])], None, 0.95)
    page = sweep_page.page(made, "t-sweep", (1, 2))
    assert "<b>one</b>" not in page and "&lt;b&gt;one" in page and page.count("<svg") == len(made.figures)
    assert without_tooltip(page) == []


def test_no_line_breaks_within_a_number() -> None:
    """Catches `lr 0.` above `0001` in a narrow column."""
    made = compare([variant("0.0001", [drawn(1, 0.5)]), variant("1", [drawn(2, 0.5)])], None, 0.95)
    page = sweep_page.page(made, "t-sweep", (1, 2))
    assert '<th scope="row">0.0001<' in page and "0.<wbr>" not in page
