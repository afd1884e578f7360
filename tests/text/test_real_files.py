"""What the real files of others had and was misread, with the smallest input of each."""

from __future__ import annotations

import pytest

from spin_core.data.column_mapping import Reject, examples
from spin_core.data.rows import Row
from spin_core.data.unused import Unused

SAID = [{"role": "user", "content": "<image>Who is it?"}, {"role": "assistant", "content": "Nobody."}]


@pytest.mark.parametrize("column", ["images", "image", "videos", "audios", "audio"])
def test_row_about_an_image_is_no_row_of_text(column):
    """Catches LLaMA-Factory's mllm_demo.json: its answers about pictures were learnt without them."""
    (one,) = examples({"messages": SAID, column: ["data/1.jpg"]}, {}, "first")
    assert isinstance(one, Reject) and one.reason == "images or sounds" and column in one.detail
    (one,) = examples({"messages": SAID, column: []}, {}, "first")
    assert isinstance(one, Row), "an empty list is none"
    (one,) = examples({"messages": SAID, column: ["data/1.jpg"]}, {"messages": "messages"}, "first")
    assert isinstance(one, Row), "who names the columns has said that it does not count"


def test_loss_weight_is_a_weight():
    """Catches LLaMA-Factory's v1 form, of which a turn with loss_weight 0 became an answer."""
    turns = [
        {"role": "user", "content": "a", "loss_weight": 0.0},
        {"role": "assistant", "content": "bad", "loss_weight": 0.0},
        {"role": "user", "content": "b", "loss_weight": 0.0},
        {"role": "assistant", "content": "good", "loss_weight": 1.0},
    ]
    made = examples({"messages": turns}, {}, "all")
    assert [one.answer for one in made if isinstance(one, Row)] == ["good"]
    (one,) = examples({"messages": [*turns[:3], {**turns[3], "loss_weight": 0.5}]}, {}, "all")
    assert isinstance(one, Reject) and one.reason == "not understood"


def test_remedy_keeps_the_columns_that_few_records_fill():
    """Catches GPTeacher's toolformer set: who mapped its `example_input` as the sentence said lost every
    `input`."""
    counted = Unused()
    for i in range(9):
        counted.count({"instruction": "Add", "input": "1 and 2" if i == 3 else "", "output": "3"}, {})
    counted.count({"instruction": "Add", "input": "", "output": "3", "example_input": "4"}, {})
    assert "{prompt: instruction, answer: output, input: input, context: example_input}" in counted.sentence("source")
