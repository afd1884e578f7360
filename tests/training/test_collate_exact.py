"""The exact collation: what was sampled is what is scored, and max_length cuts the end of an answer alone."""

from dataclasses import replace

import numpy as np
import pytest
from training_data import CHAT, groups_of, labels_of, made_up_pairs, pad

from spin_core.data.rows import Messages
from spin_core.errors import BadInput
from spin_core.modeling.encoding import Conversation, Encoded, encode
from spin_core.modeling.loading import load_chat

PAIR = replace(made_up_pairs(1)[0], generated="Six.")
"""Its real answer is the longer one."""


@pytest.fixture(scope="module")
def chat(theta):
    return load_chat(theta, CHAT)


def encoded(chat, prompt: Messages, *answers: str, finished: bool = True) -> Encoded:
    (one,) = encode(chat, [Conversation(prompt, answers, (finished,) * len(answers))])
    assert isinstance(one, Encoded)
    return one


def test_groups_prompt_is_the_prompt_that_was_sampled_from(chat) -> None:
    """Catches a prompt tokenised otherwise than for generation (there no answer stands behind it), sides exchanged,
    and labels on the prompt or missing on the answer."""
    sampled_from = encoded(chat, PAIR.prompt).prompt
    one = encoded(chat, PAIR.prompt, PAIR.real, PAIR.generated)
    (group,) = groups_of([PAIR])
    for tokens, answer in zip(group, one.answers, strict=True):
        assert tokens.ids.tolist() == sampled_from + answer
        assert labels_of(tokens).tolist() == [-100] * len(sampled_from) + answer
        assert tokens.targets == len(answer)
        assert tokens.mask().all()
        assert answer[-1] in chat.end_ids


def test_groups_cut_at_max_length_keep_the_prompt_and_drop_the_end(chat) -> None:
    """Catches cuts at the prompt or at the other answer, one token off, or with the end of turn put back behind a
    cut; and a cut that is counted for the wrong side."""
    ((real, generated),) = groups_of([PAIR])
    limit = len(real)
    assert len(generated) < limit - 1
    fits, cut = groups_of([PAIR], limit), groups_of([PAIR], limit - 1)
    assert np.array_equal(fits[0][0].ids, real.ids)
    assert np.array_equal(cut[0][0].ids, real.ids[:-1])
    assert cut[0][0].ids[-1] not in chat.end_ids
    assert cut[0][0].prompt == real.prompt
    assert np.array_equal(cut[0][1].ids, generated.ids)
    assert [(one.cut("real"), one.cut("generated")) for one in (fits, cut)] == [(0, 0), (1, 0)]


def test_groups_prompt_without_room_refused_by_its_row() -> None:
    """Catches an answer of no tokens that is trained on, one token of room that is refused, and a row that is not
    named."""
    longest = made_up_pairs(3)[2]
    ((real, _),) = groups_of([longest])
    (group,) = groups_of([longest], real.prompt + 1)
    assert [tokens.targets for tokens in group] == [1, 1]
    with pytest.raises(BadInput, match=rf"row {longest.id}: .* {real.prompt} tokens .* no room"):
        groups_of(made_up_pairs(3), real.prompt)


def test_answer_that_was_cut_has_no_end_of_turn(chat) -> None:
    """Catches an end of turn that the opponent did not sample, and one that is missing from a finished answer."""
    (finished,) = encoded(chat, PAIR.prompt, PAIR.real).answers
    (unfinished,) = encoded(chat, PAIR.prompt, PAIR.real, finished=False).answers
    assert finished == unfinished + chat.frame.end
    assert not set(unfinished) & chat.end_ids
    stopped, cut = (made_up_pairs(5)[i] for i in (0, 4))
    assert (stopped.finish, cut.finish) == ("stop", "length")
    ends = [group[side].ids[-1] in chat.end_ids for group in groups_of([stopped, cut]) for side in (0, 1)]
    assert ends == [True, True, True, False]


def test_pad_unlike_lengths_no_wider_than_the_longest() -> None:
    """Catches padding that is attended to, learned, on the left, or wider than needed."""
    (both,) = groups_of([PAIR])
    assert len(both[1]) < len(both[0])
    batch, short = pad(both, 3), len(both[1])
    assert batch["input_ids"].shape == (2, max(map(len, both)))
    assert batch["input_ids"][1, :short].tolist() == both[1].ids.tolist()
    assert set(batch["input_ids"][1, short:].tolist()) == {3}
    assert set(batch["labels"][1, short:].tolist()) == {-100}
    assert batch["attention_mask"].sum(1).tolist() == [len(tokens) for tokens in both]
