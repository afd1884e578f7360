"""What only stands for a file (pointers of git-lfs, git-annex and Xet, web pages), and weights that are quantised: each
is named where the source is resolved, with the remedy."""

import json
import re
from pathlib import Path

import pytest

from spin_core.errors import BadInput
from spin_core.sources.folders import require_weights
from spin_core.sources.resolve import resolve

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize 12345\n"
POINTERS = {
    "git-lfs": (LFS, "git-lfs pointer.*run `git lfs pull`"),
    "git-annex": ("/annex/objects/SHA256E-s12345--" + "4d7a" * 16 + ".jsonl\n", "run `git annex get`"),
    "Xet": ("# xet version 0\nfilesize = 12345\nhash = '" + "4d7a" * 16 + "'\n", "Xet pointer.*git-xet"),
    "page": ("<!DOCTYPE html>\n<html class='dark'>", "web page.*not `/blob/`"),
    "page in small letters, behind a mark and a comment": ("\ufeff\n<!-- x -->\n<html>", "web page"),
}
MODEL = {
    "config.json": "{}",
    "model.safetensors": "w",
    "model.safetensors.index.json": '{"weight_map": {"a": "model.safetensors"}}',
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def refusal(path: Path, kind: str = "model", **options) -> str:
    with pytest.raises(BadInput) as raised:
        resolve(str(path), kind, "", Path("/"), **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("case", POINTERS)
def test_resolve_file_that_stands_for_another_is_named_with_the_remedy(case, tmp_path):
    """Catches "broken JSON" of a dataset that was cloned without git-lfs, and "header too large", after minutes, of
    such weights."""
    content, message = POINTERS[case]
    for name in MODEL:
        folder = write(tmp_path / name, {**MODEL, name: content})
        said = refusal(folder)
        assert said.startswith(f"{folder / name}: "), said
        assert re.search(message, said), said
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        folder = write(tmp_path / f"of {name}", {name: content})
        for place in (folder, folder / name):
            assert refusal(place, "dataset").startswith(f"{folder / name}: ")


def test_resolve_pointer_of_another_split_does_not_matter(tmp_path):
    """Catches a refusal for a file that nobody reads: of a clone people fetch what they need."""
    write(tmp_path / "d", {"train.jsonl": '{"a": 1}\n', "test.jsonl": LFS, "README.md": LFS})
    assert resolve(str(tmp_path / "d"), "dataset", "", Path("/"), split="train").digest
    assert "git-lfs" in refusal(tmp_path / "d", "dataset", split="test")


def test_resolve_link_into_an_annex_without_its_content_is_named(tmp_path):
    """Catches "there is no such file" of what `ls` shows, and a model that is loaded without its absent tokenizer."""
    target = ".git/annex/objects/4f/8q/SHA256E-s5--4d7a.jsonl/SHA256E-s5--4d7a.jsonl"
    (tmp_path / "rows.jsonl").symlink_to(target)
    (write(tmp_path / "set", {}) / "train.jsonl").symlink_to(f"../{target}")
    (write(tmp_path / "pairs", {}) / "train.parquet").symlink_to(f"../{target}")
    model = write(tmp_path / "model", {name: text for name, text in MODEL.items() if name != "tokenizer.json"})
    (model / "notes.txt.bak").symlink_to(f"../{target}")
    assert resolve(str(model), "model", "", Path("/")).digest, "a link that is no part of a model"
    (model / "tokenizer.json").symlink_to(f"../{target}")
    for path, kind in (("rows.jsonl", "dataset"), ("set", "dataset"), ("pairs", "pairs"), ("model", "model")):
        assert "git annex get" in refusal(tmp_path / path, kind)


QUANTISED = {
    "fp8": ("config.json", {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "quant_method fp8"),
    "of a part": ("config.json", {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "quant_method awq"),
    "bitsandbytes, of old": ("config.json", {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
    "compressed": ("config.json", {"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    "MLX": ("config.json", {"quantization": {"group_size": 64, "bits": 4}}, "quantization"),
    "GPTQ, beside": ("quantize_config.json", {"bits": 4, "group_size": 128}, "quant_method gptq"),
    "ModelOpt, beside": ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "modelopt"),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_resolve_quantised_weights_are_refused_with_their_method(case, tmp_path):
    """Catches an FP8 base of which θ_1 is plain bfloat16 under a config that still says fp8, and "check or download it
    again" of GPTQ."""
    name, content, method = QUANTISED[case]
    said = refusal(write(tmp_path / "m", {**MODEL, name: json.dumps(content)}))
    assert name in said and method in said and "use the unquantised model" in said and "nf4" in said


def test_resolve_model_that_says_nothing_of_quantisation_is_taken(tmp_path):
    """Catches a refusal for the empty setting that merged models carry."""
    for i, config in enumerate(({"quantization_config": None}, {"quantization_config": {}}, {"quantization": "none"})):
        assert resolve(
            str(write(tmp_path / f"m{i}", {**MODEL, "config.json": json.dumps(config)})), "model", "", Path()
        )


def test_resolve_gguf_is_named_for_what_it_is(tmp_path):
    """Catches "there is no config.json; give the directory that save_pretrained wrote" of a file of llama.cpp."""
    alone = write(tmp_path / "alone", {"model.Q4_K_M.gguf": "GGUF"})
    beside = write(tmp_path / "beside", {"model.gguf": "GGUF", "config.json": "{}"})
    for path in (alone, alone / "model.Q4_K_M.gguf", beside):
        assert "GGUF" in refusal(path) and "safetensors" in refusal(path)
    with pytest.raises(BadInput, match="GGUF"):
        require_weights("org/model", ["model.Q8_0.gguf", "README.md"])
    assert resolve(str(write(tmp_path / "both", {**MODEL, "model.gguf": "GGUF"})), "model", "", Path("/")).digest
