"""What is held out is held out: no conversation, and no prompt, on both sides."""

import json

import pytest
from hypothesis import given, settings

from spin_core.data.rows import fraction, prompt_id
from tests.text.conversations import CONVERSATIONS, begins, conversation, split

TURNS = ("first", "last", "all")


@pytest.mark.parametrize("own_test", [False, True])
@pytest.mark.parametrize("turns", TURNS)
def test_no_conversation_is_on_both_sides(tmp_path, turns, own_test):
    """Catches: a split by the prompt alone, with which the second turn of a conversation is trained on and its first
    one is measured by; and a test set of its own that is compared by another rule."""
    alone = {}  # a conversation that is trained on, and one that is held out, so that no side is ever empty
    for letter in "mnopqrstuvwxy":
        held = fraction(3, "split", prompt_id([{"role": "user", "content": letter}])) < 0.5
        alone.setdefault(held, conversation([letter, letter]))

    @settings(max_examples=30, deadline=None)
    @given(CONVERSATIONS, CONVERSATIONS)
    def check(drawn, test):
        source = [*drawn, *alone.values()]
        inputs = {"source": source} | ({"test_source": test} if own_test else {})
        rows, summary = split(tmp_path, inputs, turns=turns, test_fraction=0.5, max_rejected=1)
        sides = {side: {begins(row) for row in part} for side, part in rows.items()}
        assert not sides["train"] & sides["test"]
        everything, _ = split(
            tmp_path, {"source": source, "test_source": [conversation(["z", "z"])]}, turns=turns, max_rejected=1
        )
        lost = len(everything["train"]) - len(rows["train"]) - (0 if own_test else len(rows["test"]))
        assert lost == summary["rejected"].get("also held out", 0)

    check()


@pytest.mark.parametrize("turns", TURNS)
def test_own_test_set_takes_out_whole_conversations(tmp_path, turns):
    """Catches: a training row left in because only its first turn, and not its prompt, is a held-out one's; and a row
    taken out because a later turn, or another system text, is the same."""
    held = conversation(["hello", "hi", "how are you", "fine"])
    source = [
        conversation(["hello", "hi", "what is 2", "2"]),
        conversation(["hello", "good day"], system="be brief"),
        conversation(["what now", "this", "how are you", "fine"]),
    ]
    rows, summary = split(tmp_path, {"source": source, "test_source": [held]}, turns=turns)
    assert {begins(row) for row in rows["train"]} == {("be brief", "hello"), ("what now",)}
    assert summary["rejected"]["also held out"] == {"first": 1, "last": 1, "all": 2}[turns]


def test_rejects_of_a_conversation_name_the_prompt_it_begins_with(tmp_path):
    """Catches: a reject that names an id which no held-out row has."""
    held, more = conversation(["hello", "hi"]), conversation(["hello", "hey", "and now", "this"])
    split(tmp_path, {"source": [more, conversation(["x", "y"])], "test_source": [held]}, turns="all")
    lines = next(tmp_path.glob("*/tree/rejects.jsonl")).read_text().splitlines()
    prompt = prompt_id([{"role": "user", "content": "hello"}])
    details = [json.loads(line)["detail"] for line in lines]
    assert sorted(details) == [f"begins with prompt {prompt}", f"prompt {prompt}"]


def test_single_turns_are_split_by_their_prompt(tmp_path):
    """Catches: a split of ordinary sets that moves: all of their rows would be answered again."""
    source = [conversation([f"q{n}", "a", *["more", "b"] * (n % 2)], "be brief" * (n % 3 == 0)) for n in range(60)]
    rows, _ = split(tmp_path, {"source": source}, test_fraction=0.3)
    held = {side: [fraction(3, "split", prompt_id(row.prompt)) < 0.3 for row in part] for side, part in rows.items()}
    assert not any(held["train"]) and all(held["test"]) and sum(map(len, held.values())) == 60
