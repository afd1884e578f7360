"""The stage tokenize, and that what was sampled is what is scored, from the engine to the loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from spin_core.config.chat import ChatSection
from spin_core.config.gather import Gather
from spin_core.config.generate import Generate
from spin_core.config.runtime import Runtime
from spin_core.data import token_file
from spin_core.data.rows import FILES, Pair, Row, write_pairs, write_rows
from spin_core.data.token_file import TokenFile
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.modeling.collate import Groups, note_cuts, read_groups
from spin_core.modeling.loading import load_chat, load_tokenizer
from spin_core.sources.resolve import Ref, tokenizer_of
from spin_core.stages import demo_model, gather, generate, tokenize
from spin_core.store.store import Store

CHAT = ChatSection(max_prompt_length=60)


def job_at(folder: Path, notes: list[str] | None = None) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    said = [] if notes is None else notes
    runtime = Runtime(device="cpu", threads=1)
    return Job(
        folder, folder, runtime, {"model": "m"}, lambda event: said.append(event["note"]) if "note" in event else None
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character model of random weights."""
    out = tmp_path_factory.mktemp("model")
    demo_model.run({}, demo_model.Config(seed=5), job_at(out))
    return out


def rows(folder: Path, train: list[tuple[str, str]], test: Sequence[tuple[str, str]] = (("Say so", "so"),)) -> Path:
    folder.mkdir(parents=True)
    for split, texts in (("train", train), ("test", test)):
        made = [Row(f"{split}{i:03}", [{"role": "user", "content": ask}], say) for i, (ask, say) in enumerate(texts)]
        write_rows(folder / FILES[split], made)
    return folder


def config(**changes) -> tokenize.Config:
    return tokenize.Config(**{"chat": CHAT, "max_rejected": 0.5, "shard_rows": 4, **changes})


TRAIN = [(f"Reverse: {i}", f"{i} reversed") for i in range(20)]


def test_sampled_ids_are_scored_for_every_pair_cut_answers_too(model, tmp_path) -> None:
    """Catches an answer that is tokenised again behind the engine: of a real model 16 % got other ids. Random weights
    draw what no text of theirs tokenises to, and half of the answers are cut."""
    tokens = tmp_path / "tokens"
    tree = rows(tmp_path / "rows", TRAIN, [("Sort: ba", "ab"), ("Sort: dc", "cd")])
    tokenize.run({"tokenizer": model, "rows": tree}, config(), job_at(tokens))
    shards = json.loads((tokens / "shards.json").read_text())
    assert sum(shard["rows"] for shard in shards) == 22 and len(shards) > 4
    answers = []
    for n, shard in enumerate(shards):
        how = generate.Config(generate=Generate(max_new_tokens=60), chat=CHAT, seed=3)
        answers.append(tmp_path / f"answers{n}")
        generate.run({"model": model, "prompts": tokens / shard["file"]}, how, job_at(answers[-1]))
    pairs = tmp_path / "pairs"
    gather.run({"rows": tree, "tokens": tokens, "answers": answers}, gather.Config(gather=Gather()), job_at(pairs))
    lines = [json.loads(line) for each in answers for line in (each / "answers.jsonl").read_text().splitlines()]
    sampled = {line["id"]: line for line in lines}
    chat, checked, again = load_chat(model, CHAT), 0, 0
    for split in ("train", "test"):
        groups, real = read_groups([pairs], split, 128), TokenFile(tokens / token_file.FILES[split])
        for id, (own, generated), row in zip(groups.ids, groups, real, strict=True):
            assert generated.ids[generated.prompt :].tolist() == sampled[id]["token_ids"]
            assert own.ids.tolist() == [*row["prompt"], *row["answer"]]
            again += (
                chat.ids([sampled[id]["text"]])[0]
                != sampled[id]["token_ids"][: len(chat.ids([sampled[id]["text"]])[0])]
            )
            checked += 1
    assert checked == 22
    assert {line["finish"] for line in lines} == {"stop", "length"}
    assert again, "where tokenising again gives the same, the test shows nothing"


def test_rows_that_cannot_be_used_are_counted_by_reason_and_left_out(model, tmp_path) -> None:
    """Catches a row that fails the run inside generate, and one that goes without a word."""
    notes: list[str] = []
    bad = [("Say: <|user|>", "a"), ("Sort", "a<pad>b")]
    made = tokenize.run(
        {"tokenizer": model, "rows": rows(tmp_path / "rows", [*TRAIN, *bad])}, config(), job_at(tmp_path / "out", notes)
    )
    assert made["rejected"] == {"special token in the text": 2} and made["train_rows"] == 20
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(one["id"], one["split"]) for one in rejects] == [("train020", "train"), ("train021", "train")]
    assert "'<|user|>' in the user" in rejects[0]["detail"] and "'<pad>' in the answer" in rejects[1]["detail"]
    assert len(notes) == 1 and "2 of 23 rows are left out" in notes[0] and "train020" in notes[0]
    text = "".join(file.read_text() for file in (tmp_path / "out" / "prompts").iterdir())
    assert "train020" not in text and "train019" in text


def test_too_many_rejected_rows_fail_before_anything_is_computed(model, tmp_path) -> None:
    """Catches a run on what happens to be left of a set that was meant otherwise."""
    tree = rows(tmp_path / "rows", [("a", "b"), *[(f"Say: <|user|> {i}", "a") for i in range(4)]])
    with pytest.raises(
        BadInput, match=r"4 of 6 rows cannot be used.*special token in the text: 4; first: row train001"
    ):
        tokenize.run({"tokenizer": model, "rows": tree}, config(), job_at(tmp_path / "out"))
    made = tokenize.run({"tokenizer": model, "rows": tree}, config(max_rejected=1.0), job_at(tmp_path / "all"))
    assert made["train_rows"] == 1


def test_cut_prompts_are_counted_and_noted(model, tmp_path) -> None:
    """Catches prompts that lose text without a word."""
    notes: list[str] = []
    long = [("word " * 30, "a"), ("short", "b")]
    out = tmp_path / "out"
    made = tokenize.run({"tokenizer": model, "rows": rows(tmp_path / "rows", long)}, config(), job_at(out, notes))
    assert made["prompts_cut"] == 1 and json.loads((out / "tokens.json").read_text())["train"]["prompts_cut"] == 1
    assert any("1 of 3 prompts (33%) are longer than chat.max_prompt_length 60" in note for note in notes), notes
    prompts = TokenFile(out / "train_tokens.arrow").lengths("prompt")
    assert prompts.max() <= 60


def test_pairs_of_text_are_tokenized_like_real_answers(model, tmp_path) -> None:
    """Catches one side of a published pair that keeps the white space which the other has lost, and an end of turn
    behind an answer that was cut."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    ask = [{"role": "user", "content": "Say"}]
    made = [Pair("a", ask, " so", "so", "stop"), Pair("b", ask, "so", "so", "length")]
    write_pairs(folder / FILES["train"], made)
    write_pairs(folder / FILES["test"], [Pair("c", ask, "no", "so", "stop")])
    out = tmp_path / "out"
    tokenize.run({"tokenizer": model, "pairs": folder}, config(shard_rows=0), job_at(out))
    (a, a_other), (b, b_other) = read_groups([out], "train", 128)
    end = load_chat(model, CHAT).frame.end
    assert a.ids.tolist() == a_other.ids.tolist() and b.ids.tolist() == [*b_other.ids.tolist(), *end]
    assert json.loads((out / "tokens.json").read_text())["ids"] == "of the text"


def test_a_trained_model_has_the_same_tokenizer_by_content(model, tmp_path) -> None:
    """Catches a key that hangs on weights: every iteration would tokenize again; and one that does not see a changed
    template."""
    trained, changed = (Path(shutil.copytree(model, tmp_path / name)) for name in ("trained", "changed"))
    (trained / "model.safetensors").write_bytes(b"other weights")
    (changed / "chat_template.jinja").write_text("{{ messages[0].content }}")
    store = Store(tmp_path / "store")
    digests = [tokenizer_of(store, Ref("x", path=str(one), kind="model")).digest for one in (model, trained, changed)]
    assert digests[0] == digests[1] != digests[2]


def test_tokenizer_with_more_tokens_than_the_model_is_refused(model, tmp_path) -> None:
    """Catches `index out of range in self` in the first forward pass, hours after a plan that was well."""
    small = Path(shutil.copytree(model, tmp_path / "small"))
    settings = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**settings, "vocab_size": 50}))
    with pytest.raises(BadInput, match=r"tokenizer\.json: its highest token id is 99 .* has 50 tokens"):
        load_tokenizer(small)


def token_rows(folder: Path, count: int) -> Path:
    """A file of pairs whose ids say which row they are of."""
    folder.mkdir(parents=True)
    lines = ((f"{i:05}", [i, i], [i] * (1 + i % 3), [i] * 4) for i in range(count))
    token_file.write(folder / "train_tokens.arrow", ("prompt", "real", "generated"), lines)
    return folder


@pytest.mark.parametrize("count", [0, 1, token_file.ROWS, token_file.ROWS + 1, 2 * token_file.ROWS + 7])
def test_token_file_gives_every_row_back(tmp_path, count: int) -> None:
    """Catches rows that are read from another batch, at and behind its border."""
    file = TokenFile(token_rows(tmp_path / "a", count) / "train_tokens.arrow")
    assert len(file) == count and file.ids == [f"{i:05}" for i in range(count)]
    for i in {0, 1, token_file.ROWS - 1, token_file.ROWS, count - 1} & set(range(count)):
        assert {name: ids.tolist() for name, ids in file.row(i).items()} == {
            "prompt": [i, i], "real": [i] * (1 + i % 3), "generated": [i] * 4,
        }  # fmt: skip
    assert file.lengths("real").tolist() == [1 + i % 3 for i in range(count)]


def test_groups_of_several_files_come_in_order_and_cut_only_answers(tmp_path) -> None:
    """Catches a pair of another file, a cut prompt, a cut that is not counted."""
    files = [TokenFile(token_rows(tmp_path / str(n), n) / "train_tokens.arrow") for n in (3, 0, 5)]
    groups = Groups(files, 4)
    assert groups.ids == ["00000", "00001", "00002", "00000", "00001", "00002", "00003", "00004"]
    assert [int(real.ids[0]) for real, _ in groups] == [0, 1, 2, 0, 1, 2, 3, 4]
    real, generated = groups[7]
    assert (real.prompt, len(real), len(generated)) == (2, 4, 4) and np.all(generated.ids == 4)
    assert (groups.cut("real"), groups.cut("generated")) == (2, 8)
    notes: list[str] = []
    assert note_cuts(groups, "train", "finetune.max_length", job_at(tmp_path / "job", notes)) == {
        "real": 2,
        "generated": 8,
    }
    assert len(notes) == 2 and "8 of 8 generated answers of the train split (100%)" in notes[1]
    with pytest.raises(BadInput, match="row 00000: the prompt's 2 tokens leave no room"):
        Groups(files, 2)


@pytest.mark.parametrize("answers", [("real",), ("real", "generated")])
def test_figures_of_all_groups_are_those_of_each(tmp_path, answers) -> None:
    """Catches lengths, labels or packed sizes that are counted otherwise than the sequences are made: passes would be
    over their budget, and the counts of labels in logps.parquet wrong. With an empty prompt, which has no label for
    the first token, an empty answer, and answers that are cut."""
    from spin_core.modeling.collate import Groups, longest_of
    from spin_core.modeling.packing import tokens_of as packed_tokens

    rows = [("a", [1, 2], [3, 4, 5], [6]), ("b", [], [1, 2], []), ("c", [1], list(range(20)), [2] * 9)]
    token_file.write(tmp_path / "tokens.arrow", ("prompt", "real", "generated"), rows)
    groups = Groups([TokenFile(tmp_path / "tokens.arrow")], 10, answers)
    each = list(groups)
    assert groups.lengths().tolist() == [[len(tokens) for tokens in group] for group in each]
    assert groups.targets().tolist() == [[tokens.targets for tokens in group] for group in each]
    assert groups.packed().tolist() == [packed_tokens(group) for group in each]
    assert longest_of(groups) == longest_of(each) == 10


def test_damaged_file_of_tokens_is_one_sentence(tmp_path) -> None:
    """Catches a traceback of Arrow."""
    (tmp_path / "train_tokens.arrow").write_bytes(b"ARROW1 not")
    for split in ("train", "test"):
        with pytest.raises(BadInput, match=f"{split}_tokens.arrow: not a readable file of tokens"):
            read_groups([tmp_path], split, 8)


@pytest.mark.parametrize("changes", [{"max_prompt_length": 20}, {"template_kwargs": {"end": "!"}}])
def test_another_prompt_limit_or_template_gives_other_tokens(model, tmp_path, changes: dict) -> None:
    """Catches scores of pairs under other chat settings that count for these: a score tree names its pairs by content,
    so their files must differ."""
    own = Path(shutil.copytree(model, tmp_path / "model"))
    source = (own / "chat_template.jinja").read_text()
    (own / "chat_template.jinja").write_text(source.replace("'<|end|>'", "(end or '') + '<|end|>'", 1))
    tree = rows(tmp_path / "rows", [("word " * 6, "a")])
    for name, section in (("one", {}), ("other", changes)):
        chat = CHAT.model_copy(update=section)
        tokenize.run({"tokenizer": own, "rows": tree}, config(chat=chat), job_at(tmp_path / name))
    files = [(tmp_path / name / "train_tokens.arrow").read_bytes() for name in ("one", "other")]
    assert files[0] != files[1]


def test_cuts_of_the_published_codes_way_are_counted(model, tmp_path) -> None:
    """Catches `cut: 0` in the report of a run whose pairs were cut while they were collated."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    texts = {"a": ("word " * 20, "so", "so"), "b": ("Say", "so " * 40, "so"), "c": ("Say", "so", "so")}
    made = [
        Pair(id, [{"role": "user", "content": ask}], real, other, "stop") for id, (ask, real, other) in texts.items()
    ]
    write_pairs(folder / FILES["train"], made)
    write_pairs(folder / FILES["test"], made[2:])
    out = tmp_path / "out"
    how = config(shard_rows=0, reference_length=80, chat=CHAT.model_copy(update={"max_prompt_length": 30}))
    tokenize.run({"tokenizer": model, "pairs": folder}, how, job_at(out))
    counts = json.loads((out / "tokens.json").read_text())
    assert {name: counts["train"][name] for name in ("prompts_cut", "cut_real", "cut_generated")} == {
        "prompts_cut": 1, "cut_real": 1, "cut_generated": 0,
    }  # fmt: skip
    assert counts["test"]["prompts_cut"] == counts["test"]["cut_real"] == 0
    assert counts["train"]["tokens"] == sum(
        len(one.ids) for pair in read_groups([out], "train", 80) for one in pair
    ) - sum(pair[0].prompt for pair in read_groups([out], "train", 80))
