"""Chat: parity with the reference's texts, and the promise that what was sampled is what is scored."""

import subprocess
import sys
from pathlib import Path

import pytest

from spin_core.config.chat import ChatSection
from spin_core.errors import BadInput
from spin_core.modeling.chat import Chat, paper_prompt, reference_texts

QUESTION = [{"role": "user", "content": "Tell me something about the orchard."}]
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_for(tokenizer, source=None, **section):
    if source is not None:
        tokenizer.chat_template = source
    return Chat(tokenizer, ChatSection(**section), "org/model")


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
        messages = [{"role": "user", "content": user}]
        assert chat.generation_prompt(messages) == prompt
        assert chat.encode_prompt(messages, for_generation=True) == [i for i, m in zip(ids, mask, strict=True) if m]
        assert chat.clean(continuation) == paper_postprocess(decoded)


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
def test_encode_any_template_prompt_and_answer_spell_the_rendered_conversation(tokenizer, template, name):
    """Catches: an answer with the newline behind its end of turn, without its end, or with a second one."""
    chat = chat_for(tokenizer, template(name))
    dialogue = [*QUESTION, {"role": "assistant", "content": "Owls hunt at night."}]
    rendered = tokenizer.apply_chat_template(dialogue, tokenize=False)
    ids = chat.encode_prompt(QUESTION) + chat.encode_answer(QUESTION, "Owls hunt at night.")
    assert tokenizer.decode(ids) == rendered.rstrip("\n")
    assert ids[-1] in chat.end_ids
    assert sum(i in chat.end_ids for i in chat.encode_answer(QUESTION, "Owls hunt at night.")) == 1


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
def test_encode_answer_truncated_has_no_end_and_is_otherwise_equal(tokenizer, template, name):
    """Catches: teaching a model that an answer which was cut had ended there."""
    chat = chat_for(tokenizer, template(name))
    finished = chat.encode_answer(QUESTION, "Owls hunt at")
    assert chat.encode_answer(QUESTION, "Owls hunt at", finished=False) == finished[:-1]


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
@pytest.mark.parametrize("text", ["Yes.", "é 你好", "a\n\nb", "{% x %} {{ y }}", ""])
def test_clean_after_encode_answer_gives_the_text_back(tokenizer, template, name, text):
    """Catches: a clean that leaves the end-of-turn marker, or that cuts text on the right."""
    chat = chat_for(tokenizer, template(name))
    padding = [tokenizer.pad_token_id] * 3
    assert chat.clean(chat.encode_answer(QUESTION, text) + padding) == text


def test_clean_answer_strips_on_the_left_only(tokenizer):
    """Catches: an answer whose last newline is lost, which the reference keeps."""
    chat = chat_for(tokenizer)
    assert chat.clean(chat.encode_answer(QUESTION, " \n Yes. \n")) == "Yes. \n"


def test_clean_answer_drops_what_follows_its_end(tokenizer, template):
    """Catches: text after the end of turn leaking into the answer (a batch goes on until its longest row ends)."""
    chat = chat_for(tokenizer, template("chatml"))
    ids = chat.encode_answer(QUESTION, "One.") + tokenizer("Two.", add_special_tokens=False)["input_ids"]
    assert chat.clean(ids) == "One."


def test_encode_answer_template_without_end_appends_eos(tokenizer):
    """Catches: an answer that never ends, for templates that write no end of turn."""
    source = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    chat = chat_for(tokenizer, source)
    assert chat.encode_answer(QUESTION, "Yes.")[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(chat.encode_answer(QUESTION, "Yes.")) == "Yes.</s>"


def test_encode_prompt_too_long_keeps_its_last_tokens(tokenizer):
    """Catches: cutting the end of a long prompt, that is the question and the answer's header."""
    full = chat_for(tokenizer).encode_prompt(QUESTION)
    assert chat_for(tokenizer, max_prompt_length=5).encode_prompt(QUESTION) == full[-5:]


def test_end_ids_hold_eos_end_of_turn_and_generation_config(tokenizer, template):
    """Catches: generation running past <|im_end|> because only the tokenizer's EOS stops it."""
    tokenizer.chat_template = template("chatml")
    assert Chat(tokenizer, ChatSection(), "m", stop_ids=[8]).end_ids == {2, 5, 8}
    assert Chat(tokenizer, ChatSection(), "m", stop_ids=2).end_ids == {2, 5}


def test_prompt_template_that_writes_the_date_is_the_same_every_day(tokenizer):
    """Catches: answers and log-probs that change at midnight (Llama 3.2's template prints today)."""
    chat = chat_for(tokenizer, "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert chat.prompt(QUESTION).startswith("26 Jul 2024")


@pytest.mark.parametrize("name", ["zephyr", "chatml", "llama3"])
@pytest.mark.parametrize("turns", [QUESTION, [{"role": "system", "content": "Be kind."}, *QUESTION]])
def test_preflight_usable_template_passes(tokenizer, template, name, turns):
    """Catches: a check so strict that ordinary models are refused."""
    chat_for(tokenizer, template(name)).preflight(turns)


BAD_TEMPLATES = {
    "missing": ("", "no chat template"),
    "raises": ("{{ raise_exception('no') }}", "fails on the turns"),
    "syntax": ("{% for %}", "fails on the turns"),
    "code": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "fails on the turns"),
    "drops prompt": (
        "{% if add_generation_prompt %}A:{% else %}A:{{ messages[-1]['content'] }}{% endif %}",
        "drops the text",
    ),
    "drops answer": ("{{ messages[0]['content'] }}", "drops the answer"),
    "no prefix": (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "differently once an answer follows",
    ),
}


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_preflight_unusable_template_is_one_sentence_naming_the_model(tokenizer, case):
    """Catches: scoring something else than what was sampled, without a word; or a jinja traceback."""
    source, message = BAD_TEMPLATES[case]
    with pytest.raises(BadInput, match=message) as raised:
        chat_for(tokenizer, source).preflight(QUESTION)
    assert "org/model" in str(raised.value) and "\n" not in str(raised.value)


def test_preflight_template_that_refuses_system_says_what_to_do(tokenizer):
    """Catches: silently dropping the system turn, or an error that names no remedy."""
    chat = chat_for(tokenizer, GEMMA)
    chat.preflight(QUESTION)
    with pytest.raises(BadInput, match=r"System role not supported.*head of the user's"):
        chat.preflight([{"role": "system", "content": "Be kind."}, *QUESTION])


def test_generation_prompt_paper_mode_refuses_what_it_has_no_place_for(tokenizer):
    """Catches: the reference's defect of encoding the system text instead of the user's."""
    chat = chat_for(tokenizer, template="paper")
    with pytest.raises(BadInput, match="one user turn only"):
        chat.preflight([{"role": "system", "content": "Be kind."}, *QUESTION])


def test_import_of_text_modules_loads_no_heavy_library():
    """Catches: a flow that takes seconds to start because a module imports torch for a helper."""
    modules = [
        "modeling.chat",
        "data.rows",
        "data.column_mapping",
        "data.readers",
        "sources.resolve",
        "stages.reformat",
        "stages.gather",
    ]
    heavy = ("torch", "transformers", "datasets", "pyarrow", "huggingface_hub", "prefect")
    code = "import sys;" + ";".join(f"import spin_core.{m}" for m in modules)
    code += f";print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout == "[]\n"
