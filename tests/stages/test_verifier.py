"""`gather.verifier`: among a row's answers the wrong ones first, and what is said of those that are in no pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spin_core.config.gather import Gather
from spin_core.config.right_answer import declared, is_right
from spin_core.errors import BadInput
from spin_core.stages import gather
from spin_core.store.keys import config_payload
from tests.stages.test_several_answers import drawn, job_at, made, pairs_of

__all__ = ["made"]  # a fixture
N = 4
RULE = r"said (\d+)"
TEXTS = {
    "train0": ["said 0", "so said 0.", "said 1", "said"],
    "train1": ["said 1", "he said 1", "said 1!", "that said 1"],
    "train2": ["said 3", "said 20", "said 2", "2"],
}
"""Right are the first two, all, and the third."""
MEANS = [-0.1, -0.2, -0.4, -0.3]
"""Log-prob of a token of each answer: the hardest is the first, of the wrong ones of train0 the last."""


@pytest.fixture(scope="module")
def answers(made: dict[str, Any]) -> Path:
    """N answers to every row, whose texts and log-probs are those above."""
    root = made["root"] / "verified"
    lines, *_ = drawn(made, root, made["shards"], N)
    for id, line in lines.items():
        row, _, number = id.partition("#")
        k = int(number or 1) - 1
        if line["finish"] != "rejected":
            line |= {"text": TEXTS.get(row, TEXTS["train0"])[k], "logps": [MEANS[k]] * line["tokens"]}
    (root / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    return root


def test_the_hardest_wrong_answer_is_the_pair(made: dict[str, Any], answers: Path, tmp_path: Path) -> None:
    """Catches a right answer that is learnt against while there is a wrong one, a wrong one that is not the likeliest
    (or is by the sum), a prompt without a wrong answer that is dropped, and rows whose counts are nowhere."""
    pairs, quality = pairs_of(made, answers, tmp_path / "out", N, pick="hardest", verifier=RULE)
    assert [pair.generated for pair in pairs["train"]] == ["said", "said 1", "said 3"]
    counts = {name: quality["train"][name] for name in ("prompts", "not_picked", "no_wrong_answer", "not_verified")}
    assert counts == {"prompts": 3, "not_picked": 9, "no_wrong_answer": 1, "not_verified": 0}
    plain, quality = pairs_of(made, answers, tmp_path / "plain", N, pick="hardest")
    assert [pair.generated for pair in plain["train"]] == ["said 0", "said 1", "said 3"]
    assert "no_wrong_answer" not in quality["train"]


def test_what_is_in_no_pair_is_said_in_the_step(made: dict[str, Any], answers: Path, tmp_path: Path) -> None:
    """Catches answers that are left out, prompts that have no wrong answer, and real answers that declare no right one,
    of which nobody hears."""
    inputs = {"rows": made["rows"], "tokens": made["tokens"], "answers": [answers]}

    def of(**how: Any) -> dict[str, Any]:
        config = gather.Config(gather=Gather(**how), n=N)
        return gather.run(inputs, config, job_at(tmp_path / str(sorted(how.items()))[:40].replace("/", "")))

    summary = of(pick="hardest", verifier=r"said ([01])$")
    # Rows 2 of both splits declare nothing by this rule; to rows 1 one of four answers is right by it.
    assert (summary["not_picked"], summary["no_wrong_answer"], summary["not_verified"]) == (6 * (N - 1), 0, 2)
    said = gather.console_note(summary)
    assert "18 answers to 6 prompts are in no pair" in said and "In 2 of 6 real answers" in said
    summary = of(pick="hardest", verifier=RULE)
    assert summary["no_wrong_answer"] == 1 and "1 of 6 prompts had no wrong answer" in gather.console_note(summary)
    assert gather.console_note(of(pick="all")) == "" and of(pick="all")["not_picked"] == 0


def test_rule_that_finds_nothing_is_rejected(made: dict[str, Any], answers: Path, tmp_path: Path) -> None:
    """Catches an expression with a mistake in it, with which every answer would be wrong."""
    with pytest.raises(
        BadInput, match=r"gather.verifier: '#### \(.\+\)' is found in none of the 3 real answers"
    ) as why:
        pairs_of(made, answers, tmp_path / "out", N, pick="hardest", verifier="#### (.+)")
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"pick": "shortest", "verifier": "answer"}, "verifier is not used by pick: shortest; set pick: hardest"),
        ({"pick": "hardest", "verifier": "#### .+"}, "needs a group"),
        ({"pick": "hardest", "verifier": "("}, "is not a regular expression"),
    ],
)
def test_verifier_that_cannot_be_used_is_refused(how: dict[str, str], says: str) -> None:
    """Catches a setting that does nothing, and one that fails after hours of sampling."""
    with pytest.raises(ValidationError, match=says):
        Gather.model_validate(how)


def test_without_a_verifier_the_key_is_as_before() -> None:
    """Catches pairs that are gathered again for a setting that is not used."""
    assert config_payload(Gather(pick="hardest")) == {"truncated": "keep", "pick": "hardest"}
    assert config_payload(Gather(pick="hardest", verifier="answer"))["verifier"] == "answer"


@pytest.mark.parametrize(
    ("rule", "real", "text", "right"),
    [
        ("answer", " 12 ", "12\n", True),
        ("answer", "12", "12.", False),
        (r"#### (.+)", "so\n#### 12", "I think\n####  12 ", True),
        (r"#### (.+)", "so\n#### 12", "12", False),
        (r"a(b)?", "ab", "a", False),
    ],
)
def test_right_is_what_the_rule_reads(rule: str, real: str, text: str, right: bool) -> None:
    """Catches spaces that count, an answer without the mark that is right, and a group that is absent."""
    expected = declared(rule, real)
    assert expected is not None and is_right(rule, expected, text) is right
    assert declared(r"x(y)?", "x") is None
