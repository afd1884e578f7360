"""Paper mode: the published scripts' slices of a dataset, and the tokens that they gave the model."""

import json
from pathlib import Path

import pytest

from spin_core.config.chat import ChatSection
from spin_core.config.dataset import Dataset
from spin_core.config.profile import load_profile
from spin_core.data.ingest import published_slice
from spin_core.data.rows import FILES, read_rows
from spin_core.errors import BadInput
from spin_core.modeling.chat import Chat
from spin_core.modeling.encoding import encode_paper
from spin_core.stages import reformat
from spin_core.stages.reformat import Config
from spin_core.store import keys


@pytest.fixture
def numbered(tmp_path) -> Path:
    """A source of 103 rows, as the golden slices have, whose prompts are their numbers; train and test alike."""
    path = tmp_path / "data"
    path.mkdir()
    for split, mark in (("train", ""), ("test", "t")):
        rows = [{"prompt": f"{mark}{i}", "response": "r"} for i in range(103)]
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sliced(job, source, test=None, seed=7, **dataset):
    given = job("out")
    inputs = {"source": source} | ({"test_source": test} if test else {})
    summary = reformat.run(inputs, Config(dataset=Dataset(**dataset), seed=seed), given)
    return {
        split: sorted(int(row.prompt[0]["content"].lstrip("t")) for row in read_rows(given.out / FILES[split]))
        for split in FILES
    }, summary


def test_published_slice_golden_orders_equal(golden):
    """Catches: another generator or seed, a slice cut before the shuffle, a last slice that is dropped or padded."""
    data = golden("pipeline.json")
    for case in data["shuffle"]:
        assert published_slice(case["n"], 0, 0) == case["order"]
    for case in data["slicing"]:
        assert published_slice(case["n_rows"], case["frac_len"], case["data_frac"]) == case["row_indices"]


GOLDEN_CASES = range(27)


@pytest.mark.parametrize("number", GOLDEN_CASES)
def test_run_golden_slices_are_the_references_rows(job, golden, numbered, number):
    """Catches: a slice of the rows sorted by id, of the training rows left after a split, or of one split only; and an
    empty slice that writes an empty file."""
    case = golden("pipeline.json")["slicing"][number]
    part = {"frac_len": case["frac_len"], "data_frac": case["data_frac"]}
    train, test = numbered / "train.jsonl", numbered / "test.jsonl"
    if not case["row_indices"]:
        with pytest.raises(BadInput, match=f"data_frac {case['data_frac']} begins at row .* and it has 103") as raised:
            sliced(job, train, test, **part)
        assert "\n" not in str(raised.value)
        return
    rows, summary = sliced(job, train, test, **part)
    assert rows == {"train": sorted(case["row_indices"]), "test": sorted(case["row_indices"])}
    assert summary["rejected"] == {}


def test_golden_cases_are_all_there(golden):
    """Catches: golden slices that no test looks at."""
    assert len(golden("pipeline.json")["slicing"]) == len(GOLDEN_CASES)


def test_run_rejects_count_as_rows_of_the_source(job, numbered):
    """Catches: slices of the usable rows, which move every row behind a reject into another slice than published."""
    source = numbered / "train.jsonl"
    lines = source.read_text().splitlines()
    order = published_slice(103, 10, 2)
    lines[order[3]] = json.dumps({"prompt": "no answer", "response": ""})
    lines[published_slice(103, 10, 5)[0]] = "[]"
    source.write_text("\n".join(lines))
    rows, summary = sliced(job, source, numbered / "test.jsonl", frac_len=10, data_frac=2)
    assert rows["train"] == sorted(set(order) - {order[3]})
    assert summary["rejected"] == {"no answer": 1}, "rejects of other slices are not this one's"


def test_run_limits_and_split_are_of_the_slice(job, numbered):
    """Catches: a limit drawn before the slice, or held-out rows from outside it."""
    chosen = set(published_slice(103, 50, 1))
    rows, summary = sliced(job, numbered / "train.jsonl", frac_len=50, data_frac=1, test_fraction=0.3, limit=20)
    assert summary["train_rows"] == 20 and 5 <= summary["test_rows"] <= 25
    assert set(rows["train"]) | set(rows["test"]) <= chosen and not set(rows["train"]) & set(rows["test"])


def test_run_seed_does_not_move_a_slice(job, numbered):
    """Catches: the run's seed in the shuffle, where the published scripts have 42 whatever the run."""
    rows, _ = sliced(job, numbered / "train.jsonl", numbered / "test.jsonl", seed=9, frac_len=10, data_frac=1)
    assert rows["train"] == sorted(published_slice(103, 10, 1))


def test_run_test_set_shorter_than_the_slice_names_the_remedy(job, numbered):
    """Catches: a sentence that leaves the user with a training slice that can never be used."""
    short = numbered / "short.jsonl"
    short.write_text("".join((numbered / "test.jsonl").read_text().splitlines(keepends=True)[:10]))
    with pytest.raises(BadInput, match=r"short\.jsonl.*slices are 0 to 0; or give no test set"):
        sliced(job, numbered / "train.jsonl", short, frac_len=10, data_frac=1)


def test_unsliced_dataset_has_the_key_it_had(golden):
    """Catches: new fields in the key of every dataset, after which all stored rows miss."""
    assert not {"frac_len", "data_frac"} & keys.config_payload(Dataset(path="a", data_frac=0)).keys()
    assert keys.config_payload(Dataset(path="a", frac_len=800))["frac_len"] == 800


def test_paper_mode_golden_prompts_give_the_model_the_references_tokens(golden, tokenizer):
    """Catches: shards of prompts that have paper mode under the chat template, with a BOS, or cuts the prompt."""
    config, _ = load_profile("zephyr-7b-paper")
    run = golden("pipeline.json")["generate_end_to_end"]
    chat = Chat(tokenizer, config.chat, "org/model")
    padded = [
        [id for id, kept in zip(ids, mask, strict=True) if kept]
        for batch in run["model_inputs"]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len(padded) == len(run["users"]) == 6
    for (user, _), prompt, ids in zip(run["users"], run["prompts"], padded, strict=True):
        assert encode_paper(chat, [[{"role": "user", "content": user}]]) == [ids], prompt
    assert config.generate.max_new_tokens == run["generate_kwargs"]["max_new_tokens"]


def test_paper_profile_differs_from_zephyr_7b_only_where_it_says():
    """Catches: a paper profile that trains otherwise than published, or samples by vLLM or at a temperature."""
    paper, plain = (load_profile(name)[0] for name in ("zephyr-7b-paper", "zephyr-7b"))
    assert (paper.chat.template, paper.finetune.collation) == ("paper", "reference")
    assert (paper.generate.engine, paper.generate.temperature, paper.seed) == ("transformers", 0, 42)
    assert paper.dataset.frac_len == 63 * 800 >= 49_792
    assert paper.model == plain.model and paper.overrides == plain.overrides and paper.history == plain.history
    assert paper.finetune == plain.finetune.model_copy(update={"collation": "reference"})
    assert ChatSection(template="paper", max_prompt_length=512) == paper.chat
