"""Chat: parity with the reference's texts, what ends an answer, and which templates cannot be used. What the ids of
many tokenizers and templates are: tests/tokens."""

import subprocess
import sys
from pathlib import Path

import pytest

from spin_core.config.chat import ChatSection
from spin_core.data.column_mapping import Reject
from spin_core.errors import BadInput
from spin_core.modeling.chat import Chat, paper_prompt, reference_texts, render
from spin_core.modeling.encoding import Conversation, Encoded, encode, encode_paper

QUESTION = [{"role": "user", "content": "Tell me something about the orchard."}]
SYSTEM = [{"role": "system", "content": "Be kind."}, *QUESTION]
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_for(tokenizer, source=None, **section):
    if source is not None:
        tokenizer.chat_template = source
    return Chat(tokenizer, ChatSection(**section), "org/model")


def encoded(chat: Chat, text: str, finished: bool = True, prompt=QUESTION) -> tuple[list[int], list[int]]:
    """The ids of the prompt and of the answer to it."""
    (made,) = encode(chat, [Conversation(prompt, (text,), (finished,))])
    assert isinstance(made, Encoded), made
    return made.prompt, made.answers[0]


def test_reference_texts_golden_rows_equal_the_reference(golden, tokenizer):
    """Catches: no empty system turn, prompt from another turn, prefix cut elsewhere than at the head."""
    for case in golden("chat.json")["cases"]:
        if "error" in case["expected"]:
            with pytest.raises(BadInput):
                reference_texts(case["row"], tokenizer)
        else:
            assert reference_texts(case["row"], tokenizer) == case["expected"], case["id"]


def test_reference_texts_other_templates_cut_only_the_given_prefix(golden, tokenizer, template):
    """Catches: a prefix guessed from the template, where the reference strips a fixed one."""
    for case in golden("chat.json")["other_templates"]:
        tokenizer.chat_template = template(case["template"])
        assert reference_texts(case["row"], tokenizer) == case["expected_default_prefix"], case["id"]
        assert reference_texts(case["row"], tokenizer, case["assistant_prefix"]) == case["expected_with_prefix"], case[
            "id"
        ]


def test_paper_prompt_golden_rows_equal_the_reference(golden):
    """Catches: another space or newline in the published runs' generation prompt."""
    for case in golden("chat.json")["cases"]:
        if "generation_prompt" in case:
            assert paper_prompt(case["generation_fields"]["user_content_used"]) == case["generation_prompt"], case["id"]


def paper_postprocess(decoded: str) -> str:
    """What the reference keeps of a decoded answer: without the literal `</s>` and without whitespace on the left."""
    return decoded.replace("</s>", "").lstrip()


def test_paper_postprocess_golden_texts_equal_the_reference(golden):
    """Catches: stripping on the right, or removing other specials than the literal `</s>`."""
    for case in golden("pipeline.json")["post_processing"]:
        assert paper_postprocess(case["decoded"]) == case["expected"], case["tag"]


def test_paper_generation_golden_run_gives_the_reference_tokens_and_texts(golden, tokenizer):
    """Catches: a BOS in front of the prompt, or an answer cleaned differently from the published pipeline's."""
    run = golden("pipeline.json")["generate_end_to_end"]
    chat = chat_for(tokenizer, template="paper")
    inputs = [ids for batch in run["model_inputs"] for ids in batch["input_ids"]]
    masks = [mask for batch in run["model_inputs"] for mask in batch["attention_mask"]]
    for (user, _), prompt, ids, mask, continuation, decoded in zip(
        run["users"], run["prompts"], inputs, masks, run["continuation_ids"], run["decoded"], strict=True
    ):
        assert paper_prompt(user) == prompt
        assert encode_paper(chat, [[{"role": "user", "content": user}]]) == [
            [i for i, m in zip(ids, mask, strict=True) if m]
        ]
        assert chat.clean(continuation) == paper_postprocess(decoded)


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
def test_encode_any_template_prompt_and_answer_spell_the_rendered_conversation(tokenizer, template, name):
    """Catches: an answer with the newline behind its end of turn, without its end, or with a second one."""
    chat = chat_for(tokenizer, template(name))
    dialogue = [*QUESTION, {"role": "assistant", "content": "Owls hunt at night."}]
    rendered = tokenizer.apply_chat_template(dialogue, tokenize=False)
    prompt, answer = encoded(chat, "Owls hunt at night.")
    assert prompt == tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(prompt + answer) == rendered.rstrip("\n")
    assert [i in chat.end_ids for i in answer] == [False] * (len(answer) - 1) + [True]


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
def test_encode_answer_truncated_has_no_end_and_is_otherwise_equal(tokenizer, template, name):
    """Catches: teaching a model that an answer which was cut had ended there."""
    chat = chat_for(tokenizer, template(name))
    prompt, finished = encoded(chat, "Owls hunt at")
    assert encoded(chat, "Owls hunt at", finished=False) == (prompt, finished[:-1])


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
@pytest.mark.parametrize("text", ["Yes.", "é 你好", "a\n\nb", "{% x %} {{ y }}", ""])
def test_clean_after_encode_answer_gives_the_text_back(tokenizer, template, name, text):
    """Catches: a clean that leaves the end-of-turn marker, or that cuts text on the right."""
    chat = chat_for(tokenizer, template(name))
    padding = [tokenizer.pad_token_id] * 3
    assert chat.clean(encoded(chat, text)[1] + padding) == text


def test_clean_answer_strips_on_the_left_only(tokenizer):
    """Catches: an answer whose last newline is lost, which the reference keeps."""
    chat = chat_for(tokenizer)
    assert chat.clean(encoded(chat, " \n Yes. \n")[1]) == "Yes. \n"


def test_clean_answer_drops_what_follows_its_end(tokenizer, template):
    """Catches: text after the end of turn leaking into the answer (a batch goes on until its longest row ends)."""
    chat = chat_for(tokenizer, template("chatml"))
    ids = encoded(chat, "One.")[1] + tokenizer("Two.", add_special_tokens=False)["input_ids"]
    assert chat.clean(ids) == "One."


def test_encode_answer_template_without_end_appends_eos(tokenizer):
    """Catches: an answer that never ends, for templates that write no end of turn."""
    source = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    chat = chat_for(tokenizer, source)
    _, answer = encoded(chat, "Yes.")
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer) == "Yes.</s>"


def test_encode_prompt_too_long_keeps_the_questions_ends_and_the_frame(tokenizer):
    """Catches: cutting the end of a long prompt, that is the question and the answer's header; and its beginning, that
    is the header of the user's turn."""
    chat = chat_for(tokenizer, max_prompt_length=32)
    question = f"First of all, {'please ' * 50}and lastly?"
    prompt, answer = encoded(chat, "Yes.", prompt=[{"role": "user", "content": question}])
    text = tokenizer.decode(prompt)
    assert 24 < len(prompt) <= 32 and answer == encoded(chat, "Yes.", prompt=[{"role": "user", "content": "Why?"}])[1]
    assert text.startswith("<|user|>\nFirst") and text.endswith("lastly?</s>\n<|assistant|>\n")


def test_encode_paper_too_long_keeps_its_last_tokens(tokenizer):
    """Catches: cutting the end of a long prompt, which the published runs kept."""
    (full,) = encode_paper(chat_for(tokenizer, template="paper"), [QUESTION])
    assert encode_paper(chat_for(tokenizer, template="paper", max_prompt_length=5), [QUESTION]) == [full[-5:]]


def test_end_ids_hold_eos_end_of_turn_and_generation_config(tokenizer, template):
    """Catches: generation running past <|im_end|> because only the tokenizer's EOS stops it."""
    tokenizer.chat_template = template("chatml")
    assert Chat(tokenizer, ChatSection(), "m", stop_ids=[8]).end_ids == {2, 5, 8}
    assert Chat(tokenizer, ChatSection(), "m", stop_ids=2).end_ids == {2, 5}


def test_prompt_template_that_writes_the_date_is_the_same_every_day(tokenizer):
    """Catches: answers and log-probs that change at midnight (Llama 3.2's template prints today)."""
    chat = chat_for(tokenizer, "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert chat.render([(QUESTION, True)])[0].startswith("26 Jul 2024")


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
@pytest.mark.parametrize("turns", [QUESTION, SYSTEM])
def test_encode_usable_template_follows_it(tokenizer, template, name, turns):
    """Catches: a check so strict that ordinary models are refused, or their templates not followed."""
    (made,) = encode(chat_for(tokenizer, template(name)), [Conversation(turns, ("Yes.",), (True,))])
    assert isinstance(made, Encoded) and (made.rewritten, made.across, made.cut) == (0, 0, False)


# No row has an answer under these: the model cannot be used.
UNUSABLE = {
    "missing": ("", "no chat template"),
    "raises": ("{{ raise_exception('no') }}", r"fails on the turns \['user'\] \(.*no"),
    "syntax": ("{% for %}", "fails on the turns"),
    "code": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "fails on the turns"),
    "drops answer": ("{{ messages[0]['content'] }}", "drops the answer"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_encode_unusable_template_is_one_sentence_naming_the_model(tokenizer, case):
    """Catches: scoring something else than what was sampled, without a word; or a jinja traceback."""
    source, message = UNUSABLE[case]
    with pytest.raises(BadInput, match=message) as raised:
        encoded(chat_for(tokenizer, source), "Yes.")
    assert "org/model" in str(raised.value) and "\n" not in str(raised.value)


ASK = "{% if add_generation_prompt %}A:{% endif %}"
# What a template says of these turns, and why they are rejected.
REJECTED = {
    "drops prompt": (
        "{% for m in messages %}{% if m.role != 'user' or messages[0].role == 'user' %}{{ m.content }}{% endif %}"
        "{% endfor %}" + ASK,
        ("template drops a turn", "the text of a user turn"),
    ),
    "drops system": (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}" + ASK,
        ("template drops a turn", "the text of a system turn"),
    ),
    "raises": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
        "{% endfor %}",
        ("template fails", "the turns system, user: TemplateError: no"),
    ),
    "raises once an answer follows": (
        "{% for m in messages %}{% if loop.index == 3 %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
        "{% endfor %}",
        ("template fails", "the turns system, user, assistant: TemplateError: no"),
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_encode_turns_that_the_template_does_not_say_are_rejected_with_the_reason(tokenizer, case):
    """Catches: a question that the model never sees; one such row that ends the run, that takes others with it, or
    whose reason names another row's turns."""
    source, reason = REJECTED[case]
    rows = [Conversation(prompt, ("Yes.",), (True,)) for prompt in (QUESTION, SYSTEM, QUESTION, SYSTEM)]
    made = encode(chat_for(tokenizer, source), rows)
    assert [(one.reason, one.detail) if isinstance(one, Reject) else None for one in made] == [None, reason] * 2


def test_encode_template_whose_prompt_is_no_prefix_is_not_followed(tokenizer):
    """Catches: scoring an answer behind another prompt than it was sampled under; here the number of turns stands in
    front."""
    chat = chat_for(tokenizer, "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    (made,) = encode(chat, [Conversation(QUESTION, ("Yes.", "No"), (True, False))])
    assert isinstance(made, Encoded) and made.rewritten == 2
    assert tokenizer.decode(made.prompt) == "1" + QUESTION[0]["content"]
    assert made.prompt + made.answers[0] == [
        *tokenizer("1" + QUESTION[0]["content"] + "Yes.", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert chat.clean(made.answers[1]) == "No" and tokenizer.eos_token_id not in made.answers[1]
    strict = chat_for(tokenizer, rewritten="reject")
    (refused,) = encode(strict, [Conversation(QUESTION, ("Yes.",), (True,))])
    assert isinstance(refused, Reject) and refused.reason == "template rewrites the answer"


def test_encode_template_that_refuses_system_says_so_and_the_model_what_to_do(tokenizer):
    """Catches: silently dropping the system turn, or an error that names no remedy."""
    chat = chat_for(tokenizer, GEMMA)
    plain, refused = encode(chat, [Conversation(prompt, ("Yes.",), (True,)) for prompt in (QUESTION, SYSTEM)])
    assert isinstance(plain, Encoded) and isinstance(refused, Reject)
    assert refused.reason == "template fails" and "System role not supported" in refused.detail
    with pytest.raises(BadInput, match=r"System role not supported.*head of the user's"):
        render(tokenizer, SYSTEM, "org/model")


def test_encode_paper_refuses_what_it_has_no_place_for(tokenizer):
    """Catches: the reference's defect of encoding the system text instead of the user's."""
    plain, refused = encode_paper(chat_for(tokenizer, template="paper"), [QUESTION, SYSTEM])
    assert isinstance(plain, list) and isinstance(refused, Reject)
    assert "one user turn only" in refused.detail and "the turns system, user" in refused.detail


def test_import_of_text_modules_loads_no_heavy_library():
    """Catches: a flow that takes seconds to start because a module imports torch for a helper."""
    modules = [
        "modeling.chat",
        "modeling.encoding",
        "data.rows",
        "data.column_mapping",
        "data.readers",
        "sources.resolve",
        "stages.reformat",
        "stages.tokenize",
        "stages.gather",
    ]
    heavy = ("torch", "transformers", "datasets", "pyarrow", "huggingface_hub", "prefect")
    code = "import sys;" + ";".join(f"import spin_core.{m}" for m in modules)
    code += f";print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout == "[]\n"
