"""Sources: content decides the digest, local wins over hub, and what would run code or is not complete is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve


@pytest.fixture
def model(tmp_path):
    """Makes a directory that looks like a model's."""

    def make(name="model", **files):
        folder = tmp_path / name
        folder.mkdir()
        files = {"config.json": "{}", "model.safetensors": "w", "tokenizer.json": "{}"} | files
        for file, text in files.items():
            if text is not None:
                (folder / file).write_text(text)
        return folder

    return make


def digest(path, kind="model", **options):
    return resolve(str(path), kind, "", Path("/"), **options).digest


def test_resolve_model_digest_follows_content_not_name_or_bystanders(model):
    """Catches: a digest of the path, or one that a README or an optimiser state changes."""
    first = digest(model("a"))
    assert first == digest(model("b", **{"README.md": "x", "optimizer.bin": "x", "notes.py": "x"}))
    for file in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
    ):
        changed = model(file, **{file: '{"x": 1}'})
        assert digest(changed) != first, file


def test_resolve_model_links_are_read_through(model, tmp_path):
    """Catches: refusing huggingface_hub's own cache, in which every file is a link."""
    real = model("a")
    (tmp_path / "linked").mkdir()
    for file in real.iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    assert digest(tmp_path / "linked") == digest(real)


REFUSED: dict[str, Any] = {
    "pickled": ({"model.safetensors": None, "pytorch_model.bin": "x"}, "pickled .pytorch_model.bin.*save_pretrained"),
    "no weights": ({"model.safetensors": None}, "no .safetensors file"),
    "code": ({"config.json": '{"auto_map": {"AutoModel": "m.M"}}'}, "config.json has `auto_map`.*never run"),
    "tokenizer code": ({"tokenizer_config.json": '{"auto_map": {}}'}, "tokenizer_config.json has `auto_map`"),
    "adapter": ({"adapter_config.json": "{}", "config.json": None}, "adapter.*merge"),
    "no config": ({"config.json": None}, "no config.json"),
    "broken config": ({"config.json": "{"}, "config.json: broken JSON"),
    "lost shard": (
        {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})},
        "model-00001-of-00002.safetensors is missing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_resolve_unusable_model_is_one_sentence_with_the_remedy(model, case):
    """Catches: un-pickling, running a model's code, or training on half of the weights."""
    files, message = REFUSED[case]
    folder = model(**files)
    with pytest.raises(BadInput, match=message) as raised:
        digest(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_resolve_dataset_file_digest_follows_content_and_ending(jsonl, tmp_path):
    """Catches: a renamed file that is another dataset, or a .json read as .jsonl from the cache."""
    first, same = jsonl([{"a": 1}], "a.jsonl"), jsonl([{"a": 1}], "b.jsonl")
    assert digest(first, "dataset") == digest(same, "dataset")
    assert (
        digest(jsonl([{"a": 1}], "a.json"), "dataset")
        != digest(first, "dataset")
        != digest(jsonl([{"a": 2}], "c.jsonl"), "dataset")
    )


def test_resolve_dataset_folder_counts_only_the_split(tmp_path):
    """Catches: a changed test file that makes the training rows new."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "d" / "test.jsonl").write_text('{"a": 2}\n')
    before = digest(tmp_path / "d", "dataset", split="train"), digest(tmp_path / "d", "dataset", split="test")
    (tmp_path / "d" / "test.jsonl").write_text('{"a": 3}\n')
    after = digest(tmp_path / "d", "dataset", split="train"), digest(tmp_path / "d", "dataset", split="test")
    assert before[0] == after[0] and before[1] != after[1]


def test_resolve_relative_path_starts_from_the_profile_then_from_here(tmp_path, jsonl, monkeypatch):
    """Catches: a profile that works only from its own folder, or only from another."""
    for place in ("profile", "here"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    jsonl([{"a": 1}], "here/a.jsonl")
    assert resolve("a.jsonl", "dataset", "", tmp_path / "profile").path == str(tmp_path / "here" / "a.jsonl")
    jsonl([{"a": 1}], "profile/a.jsonl")
    assert resolve("a.jsonl", "dataset", "", tmp_path / "profile").path == str(tmp_path / "profile" / "a.jsonl")


@pytest.mark.parametrize("path", ["none.jsonl", "./none", "/none", "~/none", "none/", "", "a b/c", "builtin:tasks"])
def test_resolve_path_that_can_only_be_local_never_calls_the_hub(path, tmp_path, monkeypatch):
    """Catches: a misspelt file name that is sent to the hub and fails there with its own words."""
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("it went to the network"))
    with pytest.raises(BadInput, match=r"no such file or folder|path is empty"):
        resolve(path, "dataset", "", tmp_path)


def test_resolve_revision_of_a_local_path_is_refused(jsonl, tmp_path):
    """Catches: a pinned revision that is silently ignored because a folder of the same name exists."""
    with pytest.raises(BadInput, match=r"dataset\.revision"):
        resolve(str(jsonl([{"a": 1}])), "dataset", "main", tmp_path)
