"""What stands behind the prompt's tokens is what is sampled and scored, for every family of tokenizers and every
behaviour of templates."""

from __future__ import annotations

import pytest

from spin_core.config.chat import ChatSection
from spin_core.data.column_mapping import Reject
from spin_core.errors import BadInput
from spin_core.modeling.chat import Chat
from spin_core.modeling.encoding import Conversation, Encoded, encode
from tests.tokens.families import LOSSY, MAKERS, tokenizer
from tests.tokens.templates import TEMPLATES, Template

ANSWERS = [
    "It is 2.", " City 15 END", "It is 2.\n", "\n\nYes.", "42", "語 und 😀.", "ça  va", "def f(x):\n    return x",
    "a", ".", "The owl hunts at night. " * 5,
]  # fmt: skip
PROMPTS = [
    [{"role": "user", "content": "What is 3 + 4?"}],
    [
        {"role": "user", "content": "Hi. "},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why\n"},
    ],
]
SYSTEM = {"role": "system", "content": "Speak as an owl."}


def chat_of(name: str, template: Template, **section) -> Chat:
    made = tokenizer(name)
    made.chat_template = template.source
    return Chat(made, ChatSection(max_prompt_length=400, **section), "m")


def one(chat: Chat, text: str, prompt: int = 0, finished: bool = True) -> Encoded | Reject:
    return encode(chat, [Conversation(PROMPTS[prompt], (text,), (finished,))])[0]


@pytest.mark.parametrize("name", MAKERS)
def test_real_answers_have_the_ids_of_the_whole_conversation(name: str) -> None:
    """Catches prompt and answer that are tokenised apart: a dummy prefix of SentencePiece in front of every answer
    (Zephyr, Mistral), or a merge over the boundary that generation never saw; a lost or doubled end of turn."""
    checked = across = 0
    for behaviour, template in TEMPLATES.items():
        chat = chat_of(name, template)
        turns = [*PROMPTS, *([[SYSTEM, *PROMPTS[0]]] if template.system else [])]
        every = [Conversation(prompt, (text,), (True,)) for prompt in turns for text in ANSWERS]
        for row, made in zip(every, encode(chat, every), strict=True):
            where = f"{behaviour}: {row}"
            assert isinstance(made, Encoded), where
            (answer,), end = made.answers, chat.frame.end
            (prompt,) = chat.render([(row.prompt, True)])
            assert made.prompt == chat.ids([str(prompt)])[0], where
            changed = row.answers[0].upper() != row.answers[0]
            other = template.rewrites == "every" or (template.rewrites == "letters" and changed)
            assert answer[-len(end) :] == end and made.rewritten == other, where
            (whole,) = chat.render([([*row.prompt, {"role": "assistant", "content": row.answers[0]}], False)])
            text = str(whole).removesuffix(chat.frame.tail) if not made.rewritten else f"{prompt}{row.answers[0]}"
            body = answer[: len(answer) - len(end)]
            if made.across:
                across += 1
                if name not in LOSSY:
                    said = chat.tokenizer.decode([*made.prompt, *body], skip_special_tokens=False)
                    assert said == chat.tokenizer.decode(chat.ids([text])[0], skip_special_tokens=False), where
            else:
                assert [*made.prompt, *body] == chat.ids([text])[0], where
            checked += 1
    assert checked >= 25 * 2 * len(ANSWERS)
    assert across < checked / 2 or "across" in name or name in LOSSY, (across, checked)


@pytest.mark.parametrize("name", MAKERS)
def test_ids_are_those_of_the_tokenizers_own_call(name: str) -> None:
    """Catches a way around transformers that forgets what it sets up: a tokenizer that was saved with truncation and
    padding would cut every text, silently."""
    chat = chat_of(name, TEMPLATES["ChatML"])
    texts = [*ANSWERS, "", "<|im_end|> and more", "  two  spaces ", *(f"{text} again" * 9 for text in ANSWERS)]
    chat.tokenizer.backend_tokenizer.enable_truncation(3)
    chat.tokenizer.backend_tokenizer.enable_padding(length=7)
    made = chat.ids(texts)
    assert made == chat.tokenizer(texts, add_special_tokens=False)["input_ids"] and max(map(len, made)) > 7


@pytest.mark.parametrize("name", MAKERS)
def test_cut_answers_have_the_same_ids_without_the_end_of_turn(name: str) -> None:
    """Catches an end of turn behind an answer that the model did not end."""
    for template in TEMPLATES.values():
        chat = chat_of(name, template)
        for text in ANSWERS:
            finished, cut = (one(chat, text, finished=way) for way in (True, False))
            assert isinstance(finished, Encoded) and isinstance(cut, Encoded)
            assert cut.answers[0] + chat.frame.end == finished.answers[0]


@pytest.mark.parametrize("behaviour", TEMPLATES)
def test_template_that_makes_another_text_of_an_answer_is_seen(behaviour: str) -> None:
    """Catches reasoning that a template adds to (or drops from) real answers, which the model never sampled: 8 of 26
    tokens were left of one."""
    template = TEMPLATES[behaviour]
    chat = chat_of("byte-level BPE", template)
    plain, reasoned = one(chat, "It is 2."), one(chat, "<think>one and one</think>It is 2.")
    assert isinstance(plain, Encoded) and isinstance(reasoned, Encoded)
    assert plain.rewritten == (template.rewrites in ("every", "letters"))
    kept = template.rewrites == "" or "empty reasoning" in behaviour
    assert reasoned.rewritten == (not kept)
    said = chat.tokenizer.decode(reasoned.answers[0], skip_special_tokens=True)
    assert said.strip() == "<think>one and one</think>It is 2.", "nothing of the answer is lost"
    strict = chat_of("byte-level BPE", template, rewritten="reject")
    refused = one(strict, "<think>one and one</think>It is 2.")
    assert isinstance(refused, Reject) == (not kept)


def test_template_kwargs_reach_prompt_and_conversation() -> None:
    """Catches a switch such as enable_thinking that is set for scoring only, or nowhere."""
    template = TEMPLATES["a switch for reasoning"]
    on = one(chat_of("byte-level BPE", template), "It is 2.")
    off = one(chat_of("byte-level BPE", template, template_kwargs={"enable_thinking": False}), "It is 2.")
    assert isinstance(on, Encoded) and isinstance(off, Encoded)
    assert len(off.prompt) > len(on.prompt) and off.prompt[: len(on.prompt)] == on.prompt


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is 2.<|im_start|>", "special token in the text"),
        ("<s>It is 2.", "special token in the text"),
        ("It is 2.", ""),
    ],
)
def test_special_token_in_an_answer_is_rejected_by_name(text: str, reason: str) -> None:
    """Catches a marker inside an answer that becomes a real one."""
    made = one(chat_of("byte-level BPE", TEMPLATES["ChatML"]), text)
    assert (made.reason if isinstance(made, Reject) else "") == reason
    if isinstance(made, Reject):
        assert text.replace("It is 2.", "") in made.detail and "answer" in made.detail


def test_special_tokens_are_kept_on_request() -> None:
    """Catches a setting that changes nothing."""
    made = one(chat_of("byte-level BPE", TEMPLATES["ChatML"], special_tokens="keep"), "It is 2.<|im_start|>")
    assert isinstance(made, Encoded) and 4 in made.answers[0]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "</s>", "<|im_end|></s>"])
def test_end_of_turn_at_the_end_of_an_answer_is_cut(end: str) -> None:
    """Catches an answer that ends in two ends of turn."""
    chat = chat_of("byte-level BPE", TEMPLATES["ChatML"])
    made, plain = one(chat, f"It is 2.{end}"), one(chat, "It is 2.")
    assert isinstance(made, Encoded) and isinstance(plain, Encoded)
    assert made.answers == plain.answers and (made.ended, plain.ended) == (1, 0)


def test_prompt_in_template_form_is_rejected() -> None:
    """Catches a prompt that is rendered twice."""
    chat = chat_of("byte-level BPE", TEMPLATES["role marks of plain text"])
    prompt = [{"role": "user", "content": "<|user|>\nWhat is 3 + 4?\n<|assistant|>\n"}]
    (made,) = encode(chat, [Conversation(prompt, ("It is 7.",), (True,))])
    assert isinstance(made, Reject) and "<|user|>" in made.detail


def test_template_whose_end_is_no_token_is_refused() -> None:
    """Catches ChatML on a tokenizer without its marks: the tail was dropped, and a model that learnt it never stops."""
    with pytest.raises(BadInput, match=r"ends answers with '<\|stop\|>', which is no special token"):
        one(chat_of("byte-level BPE", Template(TEMPLATES["ChatML"].source.replace("<|im_end|>", "<|stop|>"))), "Yes.")


def test_row_that_the_template_refuses_is_rejected_alone() -> None:
    """Catches a run that fails inside generate for one row with a system turn, and blames the template."""
    chat = chat_of("byte-level BPE", TEMPLATES["a refused system turn"])
    rows = [Conversation(p, ("Yes.",), (True,)) for p in (PROMPTS[0], [SYSTEM, *PROMPTS[0]], PROMPTS[1])]
    first, second, third = encode(chat, rows)
    assert isinstance(first, Encoded) and isinstance(third, Encoded)
    assert isinstance(second, Reject) and "no system turn" in second.detail and "system, user" in second.detail


LONG = [
    SYSTEM,
    {"role": "user", "content": "First " + "question " * 30},
    {"role": "assistant", "content": "First " + "answer " * 30},
    {"role": "user", "content": "Now: " + "middle " * 40 + "what is 3 + 4?"},
]


@pytest.mark.parametrize("share", [1.0, 0.7])
@pytest.mark.parametrize("behaviour", ["start token first", "headers"])
def test_prompt_that_is_too_long_keeps_its_frame(behaviour: str, share: float) -> None:
    """Catches a prompt that loses its head: start token, system turn and the template's header were the first to go."""
    chat = chat_of("byte-level BPE", TEMPLATES[behaviour])
    (last,) = chat.render([([SYSTEM, LONG[-1]], True)])
    most = int(share * len(chat.ids([str(last)])[0]))
    chat.section = chat.section.model_copy(update={"max_prompt_length": most})
    (made,) = encode(chat, [Conversation(LONG, ("It is 7.",), (True,))])
    assert isinstance(made, Encoded) and made.cut and 0.9 * most < len(made.prompt) <= most
    text = chat.tokenizer.decode(made.prompt)
    (short,) = chat.render([([SYSTEM, {"role": "user", "content": "Q"}], True)])
    head, tail = str(short).split("Q")
    assert text.startswith(f"{head}Now: ") and text.endswith(f"what is 3 + 4?{tail}")
    assert "First" not in text and ("…" in text) == (share < 1)


def test_frame_that_does_not_fit_is_rejected() -> None:
    """Catches a prompt of which nothing is left but a piece of its header."""
    chat = chat_of("byte-level BPE", TEMPLATES["headers"])
    chat.section = chat.section.model_copy(update={"max_prompt_length": 5})
    made = one(chat, "It is 7.")
    assert isinstance(made, Reject) and made.reason == "prompt too long"
