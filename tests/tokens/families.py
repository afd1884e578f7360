"""Small tokenizers of the families that real models use, trained in the test; none has a file of its own."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|end_header|>", "<|eot|>"]
CORPUS = [
    "The owl hunts at night. It is 2. The answer is 42.\nYes.",
    "User: What is 3 + 4?\nAssistant: It is 7.\n### Response:\nIt is so.\n",
    "[INST] How many boxes are there? [/INST] There are twelve boxes.",
    "Ça va? Das ist schön, 語 und 😀. naïve café  two  spaces\n\nnew line",
    "def f(x):\n    return x + 1\n\n\tprint(f(2))",
] * 20
DIGITS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def _byte_level(prefix: bool, split: Any = None) -> Tokenizer:
    core = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None)
    parts = [pre_tokenizers.Split(split, "isolated"), level] if split else [level]
    core.pre_tokenizer = pre_tokenizers.Sequence(parts)
    core.decoder = decoders.ByteLevel()
    return core


def _across_words() -> Tokenizer:
    """Merges reach over spaces and line ends, so over the boundary of prompt and answer too."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(model: Any, legacy: bool, prefix: str = "") -> Tokenizer:
    """As SentencePiece models are converted: `legacy` puts the dummy prefix in front of each piece between special
    tokens by a normalizer, else Metaspace does (`prefix`: always, first, never)."""
    core = Tokenizer(model)
    if legacy:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
        core.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prefix, split=False), decoders.Fuse()]
        )
    return core


def _word_piece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def _end_of_word() -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    return core


def _characters() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.decoder = decoders.Fuse()
    return core


def _unigram_nfkc() -> Tokenizer:
    core = _sentencepiece(models.Unigram(), False, "first")
    core.normalizer = normalizers.NFKC()
    return core


def _bpe(fallback: bool) -> Any:
    return models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=not fallback)


MAKERS: dict[str, Any] = {
    "byte-level BPE": lambda: _byte_level(False),
    "byte-level BPE with a prefix space": lambda: _byte_level(True),
    "byte-level BPE that splits digits": lambda: _byte_level(False, DIGITS),
    "byte-level BPE across words": _across_words,
    "SentencePiece BPE, legacy dummy prefix, byte fallback": lambda: _sentencepiece(_bpe(True), True),
    "SentencePiece BPE, dummy prefix first, byte fallback": lambda: _sentencepiece(_bpe(True), False, "first"),
    "SentencePiece BPE, dummy prefix always, unknown token": lambda: _sentencepiece(_bpe(False), False, "always"),
    "SentencePiece BPE without dummy prefix": lambda: _sentencepiece(_bpe(True), False, "never"),
    "Unigram, dummy prefix always": lambda: _sentencepiece(models.Unigram(), False, "always"),
    "Unigram without dummy prefix": lambda: _sentencepiece(models.Unigram(), False, "never"),
    "Unigram with NFKC": _unigram_nfkc,
    "WordPiece, lower case": _word_piece,
    "BPE with ends of words": _end_of_word,
    "characters": _characters,
}
LOSSY = {"SentencePiece BPE, dummy prefix always, unknown token", "WordPiece, lower case", "BPE with ends of words"}
LOSSY |= {name for name in MAKERS if name.startswith("Unigram")} | {"characters"}
"""What their ids say is not the text to the letter: unknown characters, case, spaces."""


@cache
def tokenizer(name: str) -> Any:
    """The tokenizer of a family, with the special tokens of several templates."""
    core = MAKERS[name]()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if "byte-level" in name else []
    size = {"vocab_size": 700, "special_tokens": SPECIAL, "show_progress": False}
    if isinstance(core.model, models.Unigram):
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **size)
    elif isinstance(core.model, models.WordPiece):
        trainer = trainers.WordPieceTrainer(**size)
    else:
        bytes_ = [f"<0x{i:02X}>" for i in range(256)] if core.model.byte_fallback else []
        size["special_tokens"] = SPECIAL + bytes_
        suffix = {"end_of_word_suffix": "</w>"} if name == "BPE with ends of words" else {}
        merges = {"vocab_size": 0} if name == "characters" else {"vocab_size": 700 + len(bytes_)}
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **{**size, **merges, **suffix})
    core.train_from_iterator(CORPUS, trainer)
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=SPECIAL[4:], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return made
