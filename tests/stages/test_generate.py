"""generate: which prompts are sampled, which answers are drawn again, and what an engine may not give."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import decoders

from spin_core.config.chat import ChatSection
from spin_core.config.generate import Generate
from spin_core.config.runtime import Runtime
from spin_core.engines import Answer, Request, Sampling
from spin_core.engines.answer_checks import Limits, check, text_and_finish
from spin_core.errors import StageFailed
from spin_core.job import Job
from spin_core.modeling.chat import Chat
from spin_core.modeling.encoding import Conversation, encode
from spin_core.modeling.loading import load_chat
from spin_core.stages import demo_model, generate
from spin_core.stages.generate import environment
from spin_core.store.keys import config_payload

CHAT = ChatSection(max_prompt_length=60)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character model of random weights with a context of 128."""
    out = tmp_path_factory.mktemp("model")
    demo_model.run({}, demo_model.Config(seed=5), Job(out=out, scratch=out))
    return out


@pytest.fixture
def answered(model, tmp_path):
    """Runs the stage on prompts of the given texts: (lines by id, summary, notes)."""
    runs = iter(range(99))

    def run(texts: dict[str, str], path: Path = model, **settings) -> tuple[dict[str, dict], dict, list[str]]:
        folder = tmp_path / f"run{next(runs)}"
        folder.mkdir()
        prompts = [Conversation([{"role": "user", "content": text}], (), ()) for text in texts.values()]
        made = encode(load_chat(path, CHAT), prompts)
        rows = [{"id": id, "prompt": one.prompt} for id, one in zip(texts, made, strict=True)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        events: list[dict] = []
        job = Job(folder, folder, Runtime(device="cpu", threads=1), {"model": "digest"}, events.append)
        config = generate.Config(generate=Generate(**{"max_new_tokens": 6, **settings}), chat=CHAT, seed=3)
        summary = generate.run({"model": path, "prompts": folder / "prompts.jsonl"}, config, job)
        lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == sorted(texts)
        return {line["id"]: line for line in lines}, summary, [e["note"] for e in events if "note" in e]

    return run


def _texts(count: int, first: int = 0) -> dict[str, str]:
    return {f"row{i:03}": f"say {i}" for i in range(first, first + count)}


def test_line_has_five_fields_and_the_summary_counts_them(answered) -> None:
    """Catches a field that old readers do not know where nothing was requested, and counts of other answers."""
    lines, summary, notes = answered(_texts(40))
    assert {tuple(line) for line in lines.values()} == {("id", "text", "finish", "tokens", "token_ids")}
    tokens = [line["tokens"] for line in lines.values()]
    cut = sum(line["finish"] == "length" for line in lines.values())
    expected = {"answers": 40, "tokens": sum(tokens), "tokens_mean": sum(tokens) / 40, "cut": cut}
    expected |= {"empty": sum(not line["text"] for line in lines.values()), "redrawn": 0, "rejected": 0}
    assert {name: summary[name] for name in expected} == expected
    assert notes == []


def test_prompt_over_the_context_is_rejected_and_the_others_are_answered(answered) -> None:
    """Catches one long prompt that fails a shard, one that is sampled all the same, and a limit that is off by one."""
    texts = _texts(4) | {"fits": "x" * 35, "long": "x" * 36, "longer": "x" * 50}  # three more tokens of template
    lines, summary, notes = answered(texts, max_new_tokens=90)
    assert {id for id, line in lines.items() if line["finish"] == "rejected"} == {"long", "longer"}
    assert {name: lines["long"][name] for name in ("text", "tokens", "token_ids")} == {
        "text": "", "tokens": 0, "token_ids": []
    }  # fmt: skip
    assert lines["long"]["why"] == "its prompt of 39 tokens leaves no room for 90 new ones"
    assert (summary["answers"], summary["rejected"]) == (5, 2)
    assert notes == [
        "2 prompts do not fit into the model's context of 128 tokens with 90 new ones and are left out; first: row "
        "long with 39; lower chat.max_prompt_length or generate.max_new_tokens."
    ]
    alone, *_ = answered({"fits": texts["fits"]}, max_new_tokens=90)
    assert alone["fits"] == lines["fits"]


def test_shard_of_rejected_prompts_calls_no_engine(answered, model, tmp_path) -> None:
    """Catches an engine that is started (or fails) for nothing."""
    shutil.copytree(model, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    lines, summary, notes = answered({"one": "x" * 50}, tmp_path / "weightless", max_new_tokens=90)
    assert lines["one"]["finish"] == "rejected" and summary["answers"] == 0
    assert notes[0].startswith("1 prompt does not fit")


def test_empty_answers_are_drawn_again_by_a_seed_of_the_attempt(answered) -> None:
    """Catches a redraw that draws the same again, that touches other rows, that stops early or never, or that depends
    on the shard."""
    texts, how = _texts(250), {"max_new_tokens": 1, "temperature": 9}  # 6 of the 100 tokens are special or a space
    once, first, _ = answered(texts, **how)
    empty = {id for id, line in once.items() if not line["text"]}
    assert len(empty) == first["empty"] > 1 and first["redrawn"] == 0
    often, summary, _ = answered(texts, **how, attempts=20)
    assert {id: often[id] for id in texts if id not in empty} == {id: once[id] for id in texts if id not in empty}
    assert all(often[id]["text"] and often[id]["attempts"] > 1 for id in empty)
    assert (summary["redrawn"], summary["empty"], summary["answers"]) == (len(empty), 0, 250)
    id = min(empty)
    assert answered({id: texts[id]}, **how, attempts=20)[0][id] == often[id]


def test_attempts_end_and_the_last_answer_stays(answered, model, tmp_path) -> None:
    """Catches a loop without end, and a row that gets lost on the way: this model says nothing but its end."""
    import torch
    from safetensors.torch import load_file, save_file

    silent = tmp_path / "silent"
    shutil.copytree(model, silent)
    weights = load_file(silent / "model.safetensors")
    end = load_chat(model, CHAT).tokenizer.eos_token_id
    for name, weight in weights.items():  # the residual stream is the embedding of the token before: made all ones
        if "embed_tokens" in name:
            weight[:], weight[end] = 1.0, torch.full_like(weight[end], 50.0)
        elif "o_proj" in name or "down_proj" in name:
            weight.zero_()
    save_file(weights, silent / "model.safetensors", {"format": "pt"})
    lines, summary, _ = answered(_texts(5), silent, attempts=3)
    assert [(line["attempts"], line["text"], line["finish"]) for line in lines.values()] == [(3, "", "stop")] * 5
    assert (summary["empty"], summary["redrawn"]) == (5, 5)


def test_answers_of_broken_weights_are_not_published(answered, model, tmp_path) -> None:
    """Catches a stage that writes whatever its engine gave: here log-probs that are not numbers."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(3e38)  # finite, so that it loads; its logits are not
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(StageFailed, match="the transformers engine's answer has the log-prob nan"):
        answered(_texts(3), broken, logprobs=True)


def test_stop_string_cuts_the_text_and_ends_the_answer(answered) -> None:
    """Catches a text that keeps the stop string, an answer that goes on behind it, and one that counts as cut."""
    plain, *_ = answered(_texts(30), max_new_tokens=30)
    ended, *_ = answered(_texts(30), max_new_tokens=30, stop=["e", "7Q"])
    stopped = 0
    for id, line in ended.items():
        before = plain[id]["text"]
        if "e" in before or "7Q" in before:
            assert (line["text"], line["finish"]) == (before.split("e")[0].split("7Q")[0], "stop")
            assert line["token_ids"] == plain[id]["token_ids"][: line["tokens"]]
            stopped += 1
        else:
            assert line == plain[id]
    assert 3 < stopped < 30


def test_no_answer_ends_before_the_least_number_of_tokens(answered) -> None:
    """Catches an option that does not reach the engine."""
    texts, how = _texts(100), {"max_new_tokens": 5, "temperature": 9}
    lines, *_ = answered(texts, **how, min_new_tokens=5)
    assert {line["tokens"] for line in lines.values()} == {5}
    assert min(line["tokens"] for line in answered(texts, **how)[0].values()) < 5


def test_logps_stand_beside_the_tokens_with_the_models_digest(answered) -> None:
    """Catches log-probs of other tokens, and ones of which nobody knows under which model they are."""
    plain, *_ = answered(_texts(20))
    lines, *_ = answered(_texts(20), logprobs=True)
    for id, line in lines.items():
        assert {name: line[name] for name in plain[id]} == plain[id]
        assert line["model"] == "digest" and len(line["logps"]) == line["tokens"] and max(line["logps"]) <= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 2, "temperature": 0}, "attempts above 1 need a temperature above 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens must not be above"),
        ({"min_new_tokens": 3, "stop": ["a"]}, "cannot be combined"),
        ({"stop": ["x", ""]}, "empty string"),
        ({"decoder": "greedy", "temperature": 0.7}, "greedy contradicts temperature: 0.7; leave one of them out"),
        ({"decoder": "sampled", "temperature": 0}, "sampled contradicts temperature: 0, which is greedy"),
        ({"decoder": "deployed", "top_p": 0.9}, "deployed contradicts top_p: 0.9"),
        ({"decoder": "greedy", "attempts": 2}, "attempts above 1 need a temperature above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message) -> None:
    """Catches a profile that runs for hours before it is seen to request nothing."""
    with pytest.raises(ValidationError, match=message):
        Generate(**settings)


def test_new_settings_leave_old_keys_and_name_the_interpreter() -> None:
    """Catches a field that makes every cached answer stale, and vLLM in the interpreter that has none."""
    old = {"engine": "transformers", "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 256}
    assert config_payload(Generate()) == old
    assert config_payload(Generate(stop=["\n"], attempts=2)) == {**old, "stop": ["\n"], "attempts": 2}
    greedy = {**old, "temperature": 0.0}
    assert config_payload(Generate(temperature=0)) == config_payload(Generate(decoder="greedy")) == greedy
    assert config_payload(Generate(decoder="sampled")) == old and Generate(temperature=0).decoder == "greedy"
    configs = [generate.Config(generate=Generate(engine=name), chat=CHAT, seed=1) for name in ("transformers", "vllm")]
    runtime = Runtime(vllm_python=sys.executable)
    own = f"vllm {CHAT.max_prompt_length + 256}", sys.executable, "spin_core.engines.vllm_engine"
    assert [environment(config, runtime) for config in configs] == [None, own]


# --- what an engine may not give ----------------------------------------------------------

END = 4


@pytest.fixture(scope="module")
def chat(model) -> Chat:
    loaded = load_chat(model, CHAT)
    assert loaded.end_ids == {END}
    return loaded


HOW = Sampling(1.0, 1.0, 4, frozenset({END}), 0, stop=("no",), logprobs=True)
GOOD = Answer("a", [40, 41, END], "stop", [-1.0, -0.5, 0.0])


def _checked(chat: Chat, *answers: Answer, ids: tuple[str, ...] = ("a",)) -> None:
    check(answers, [Request(id, [7], 0) for id in ids], HOW, chat, 100, "test")


def test_allowed_answers_pass(chat) -> None:
    """Catches a check that refuses what the protocol allows: each kind of ending, and rounding above 0."""
    _checked(chat, GOOD)
    _checked(chat, replace(GOOD, token_ids=[40, 41, 42, 43], finish="length", logps=[1e-4] * 4))
    _checked(chat, replace(GOOD, token_ids=chat.tokenizer("xno")["input_ids"]))
    _checked(chat, replace(GOOD, token_ids=[END], logps=[-3.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [40, 100, END]}, "the token 100, which is none"),
        ({"token_ids": [40, -1, END]}, "the token -1"),
        ({"token_ids": [40, 41.0, END]}, "the token 41.0"),
        ({"token_ids": [40, 41, 42, 43, END], "logps": [-1.0] * 5}, "5 tokens, more than the 4"),
        ({"finish": "abort"}, "ended with 'abort'"),
        ({"token_ids": [40, END, 41]}, "goes on behind"),
        ({"token_ids": [40, 41, 42]}, "no stop token and holds no stop string"),
        ({"token_ids": [], "logps": []}, "no stop token"),
        ({"finish": "length"}, "said to be cut, but ended in a stop token"),
        ({"token_ids": [40, 41, 42], "finish": "length"}, "after 3 of 4 tokens"),
        ({"logps": None}, "no log-probs for its 3 tokens"),
        ({"logps": [-1.0, -1.0]}, "2 log-probs for its 3"),
        ({"logps": [-1.0, float("nan"), -1.0]}, "log-prob nan"),
        ({"logps": [-1.0, float("-inf"), -1.0]}, "log-prob -inf"),
        ({"logps": [-1.0, 0.002, -1.0]}, "log-prob 0.002"),
    ],
)
def test_answer_that_cannot_be_is_refused_by_row_and_engine(chat, change, message) -> None:
    """Catches an engine's fault that would be published, and noticed by training on it."""
    with pytest.raises(StageFailed, match=rf"row a: the test engine's answer .*{message}"):
        _checked(chat, replace(GOOD, **change))


@pytest.mark.parametrize("given", [["a", "c", "b"], ["a", "b"], ["a", "b", "c", "c"], ["a", "a", "b"], []])
def test_answers_are_one_for_each_request_in_order(chat, given) -> None:
    """Catches an engine that loses, doubles or mixes up rows."""
    with pytest.raises(StageFailed, match=f"gave {len(given)} answers to 3 prompts, the first that is out of place"):
        _checked(chat, *[replace(GOOD, id=id) for id in given], ids=("a", "b", "c"))


def test_text_is_cut_at_the_first_stop_string_before_it_is_stripped(chat) -> None:
    """Catches a cut behind the wrong string, and one that stripping the left has hidden."""
    how = replace(HOW, stop=("no", " b", "ye"))
    made = {"ab no ye": "ab ", "yes no": "", " b": "", "abc": "abc", "  a no": "a ", "a no no": "a "}
    for sentence, text in made.items():
        ids = chat.tokenizer(sentence)["input_ids"]
        finish = "length" if text == sentence else "stop"
        assert text_and_finish(Answer("a", ids, finish), chat, how) == (text, finish), sentence
    cut = Answer("a", chat.tokenizer("a no x")["input_ids"], "length")
    assert text_and_finish(cut, chat, how) == ("a ", "stop")  # before min_new_tokens an engine may go on


def test_stop_string_that_begins_with_a_dropped_space_is_seen(model) -> None:
    """Catches an answer that ended as requested and is refused, or keeps half of the stop string, because the tokenizer
    drops the space before the first word (as Llama 2's does)."""
    chat = load_chat(model, CHAT)
    backend = chat.tokenizer.backend_tokenizer
    ids = chat.tokenizer(" b")["input_ids"]
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    assert chat.tokenizer.decode(ids) == "b"
    answer, how = Answer("a", ids, "stop"), replace(HOW, stop=(" b",), logprobs=False)
    check([answer], [Request("a", [7], 0)], how, chat, 100, "test")
    assert text_and_finish(answer, chat, how) == ("", "stop")


def test_limits_are_read_where_models_keep_them(tmp_path) -> None:
    """Catches a long prompt that is not seen for a model whose config has another shape."""
    for config, result in (
        ({"max_position_embeddings": 64, "vocab_size": 9}, Limits(64, 9)),
        ({"n_positions": 32, "vocab_size": 9}, Limits(32, 9)),
        ({"text_config": {"max_position_embeddings": 16, "vocab_size": 8}}, Limits(16, 8)),
        ({"max_position_embeddings": None}, Limits(None, None)),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert Limits.of(tmp_path) == result
