"""Tokens, masks, labels and padding against the reference's collator."""

import pytest
from training_data import GOLDEN, labels_of, pad
from transformers import AutoTokenizer

from spin_core.modeling.collate import Tokens, encode_reference
from tests.benchmarks.reference_way import pad_reference

TEXTS = ("prompt", "real", "generated")


def encode(features: dict, tokenizer, case: dict) -> tuple[Tokens, Tokens]:
    texts = {f"text_{name}": features[name] for name in TEXTS}
    return encode_reference(
        texts, tokenizer, case["max_length"], case["max_prompt_length"], truncation_mode=case["truncation_mode"]
    )


@pytest.fixture(scope="module")
def tokenizers() -> dict[bool, object]:
    """By `pad_token_is_eos`."""
    path = GOLDEN / "tokenizer"
    return {False: AutoTokenizer.from_pretrained(path), True: AutoTokenizer.from_pretrained(path, pad_token="</s>")}


def test_reference_tokens_every_golden_case_equal(golden, tokenizers) -> None:
    """Catches wrong cuts, a visible EOS inside a text, a missing final EOS, special tokens added."""
    cases = golden("collator.json")["cases"]
    assert len(cases) > 70
    for case in cases:
        expected = case["expected"]
        if "error" in expected:
            with pytest.raises((ValueError, TypeError)):
                encode(case, tokenizers[False], case)
            continue
        real, generated = encode(case, tokenizers[False], case)
        for side, tokens in (("real", real), ("generated", generated)):
            assert tokens.ids.tolist() == expected[f"{side}_input_ids"], case["id"]
            assert tokens.mask().tolist() == expected[f"{side}_attention_mask"], case["id"]
            assert labels_of(tokens).tolist() == expected[f"{side}_labels"], case["id"]
        assert real.ids[: real.prompt].tolist() == expected["prompt_input_ids"], case["id"]
        assert real.mask()[: real.prompt].tolist() == expected["prompt_attention_mask"], case["id"]


def test_reference_batches_every_golden_batch_equal(golden, tokenizers) -> None:
    """Catches padding with the wrong token or width, generated before real, padding that is attended to or learned."""
    batches = golden("collator.json")["batches"]
    assert len(batches) > 4
    for case in batches:
        tokenizer = tokenizers[case["pad_token_is_eos"]]
        pairs = [encode(features, tokenizer, case) for features in case["features"]]
        for side, sequences in zip(("real", "generated"), zip(*pairs, strict=True), strict=True):
            for key, value in pad(sequences, tokenizer.pad_token_id).items():
                assert value.tolist() == case["expected"][f"{side}_{key}"], case["id"]
                assert str(value.dtype) == case["expected_dtypes"][f"{side}_{key}"]
        for key, value in pad_reference(pairs, tokenizer.pad_token_id).items():
            assert value.tolist() == case["expected_concatenated"][f"concatenated_{key}"], case["id"]
