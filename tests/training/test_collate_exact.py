"""The exact collation: what was sampled is what is scored."""

import numpy as np
import pytest
from training_data import CHAT, labels_of, made_up_pairs, pad

from spin_core.errors import BadInput
from spin_core.modeling.collate import encode_answer
from spin_core.modeling.loading import load_chat

PAIR = made_up_pairs(1)[0]


@pytest.fixture(scope="module")
def chat(theta):
    return load_chat(theta, CHAT)


def test_encode_answer_prompt_is_the_prompt_that_was_sampled_from(chat) -> None:
    """Catches a prompt tokenised otherwise than for generation, and labels on the prompt or missing on the answer."""
    tokens = encode_answer(chat, PAIR.prompt, PAIR.real, True, 128, "pair")
    prompt = chat.encode_prompt(PAIR.prompt, for_generation=True)
    answer = chat.encode_answer(PAIR.prompt, PAIR.real)
    assert tokens.ids.tolist() == prompt + answer
    assert labels_of(tokens).tolist() == [-100] * len(prompt) + answer
    assert tokens.targets == len(answer)
    assert tokens.mask().all()


def test_encode_answer_cut_at_max_length_keeps_prompt_and_drops_end(chat) -> None:
    """Catches cuts at the prompt, one token off, or with the end of turn put back behind a cut."""
    untruncated = encode_answer(chat, PAIR.prompt, PAIR.real, True, 128, "pair")
    fits = encode_answer(chat, PAIR.prompt, PAIR.real, True, len(untruncated), "pair")
    cut = encode_answer(chat, PAIR.prompt, PAIR.real, True, len(untruncated) - 1, "pair")
    assert np.array_equal(fits.ids, untruncated.ids)
    assert np.array_equal(cut.ids, untruncated.ids[:-1])
    assert cut.prompt == untruncated.prompt
    with pytest.raises(BadInput, match=r"pair 7: .* no room"):
        encode_answer(chat, PAIR.prompt, PAIR.real, True, untruncated.prompt, "pair 7")


def test_pad_unlike_lengths_no_wider_than_the_longest(chat) -> None:
    """Catches padding that is attended to, learned, on the left, or wider than needed."""
    both = [encode_answer(chat, PAIR.prompt, text, True, 128, "pair") for text in (PAIR.real, "Six.")]
    batch, short = pad(both, 3), len(both[1])
    assert batch["input_ids"].shape == (2, max(map(len, both)))
    assert batch["input_ids"][1, :short].tolist() == both[1].ids.tolist()
    assert set(batch["input_ids"][1, short:].tolist()) == {3}
    assert set(batch["labels"][1, short:].tolist()) == {-100}
    assert batch["attention_mask"].sum(1).tolist() == [len(tokens) for tokens in both]
