"""Speed of tokenize, and how soon score and finetune are at their first forward pass: `make bench-tokens`.

50,000 made-up rows of the length of UltraChat's (150 tokens of prompt, 300 of answer) under a byte-pair encoding of
32,000 tokens that is trained on their words, and a model of two layers: what is measured is the way to the first pass,
not the pass. `--rows 2000` for a look.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spin_core.config.chat import ChatSection
from spin_core.config.finetune import Finetune, score_settings
from spin_core.config.runtime import Compute, Runtime
from spin_core.data import token_file
from spin_core.data.rows import FILES, Row, write_rows
from spin_core.data.token_file import TokenFile
from spin_core.errors import SpinloopError
from spin_core.job import Job
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, compute
from spin_core.sources.resolve import Ref
from spin_core.stages import finetune, score, tokenize
from spin_core.store.store import Store

VOCABULARY = 32_000
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = ChatSection(max_prompt_length=512)
PART = Finetune(max_length=1024, global_batch=8)


def words(count: int) -> list[str]:
    """Made-up words of two to five syllables."""
    draw = random.Random(1)
    parts = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    return list({"".join(draw.choices(parts, k=draw.randint(2, 5))): None for _ in range(count)})


def model(folder: Path, lexicon: list[str]) -> Path:
    """A tokenizer of VOCABULARY tokens and a model of two layers of 64."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator((" " + word for word in lexicon), trainer)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def rows(folder: Path, count: int, lexicon: list[str]) -> Path:
    """`count` rows of train, 100 held out."""
    draw = random.Random(2)
    weights = [1 / (i + 10) for i in range(len(lexicon))]

    def made(i: int) -> Row:
        text = draw.choices(lexicon, weights, k=324)  # 450 tokens with the template's
        return Row(f"{i:016x}", [{"role": "user", "content": " ".join(text[:108])}], " ".join(text[108:]))

    folder.mkdir()
    write_rows(folder / FILES["train"], map(made, range(count)))
    write_rows(folder / FILES["test"], map(made, range(count, count + 100)))
    return folder


def pairs(folder: Path, tokens: Path) -> Path:
    """The rows' tokens as pairs, whose generated answer is the next row's."""
    folder.mkdir()
    for name in token_file.FILES.values():
        file = TokenFile(tokens / name)
        others = [*range(1, len(file)), 0]
        lines = (
            (id, file.row(i)["prompt"], file.row(i)["answer"], file.row(others[i])["answer"])
            for i, id in enumerate(file.ids)
        )
        token_file.write(folder / name, ("prompt", "real", "generated"), lines)
    (folder / "tokens.json").write_text("{}")
    return folder


def first_pass(store: Store, step: Step, inputs: dict[str, Any], runtime: Runtime) -> float:
    """Seconds from the start of the stage's processes to the end of their first pass, which the bar shows."""
    began, reached = time.monotonic(), threading.Event()
    seconds = [float("nan")]
    with Children(1) as children:

        def send(event: dict) -> None:
            if event.get("label") in ("score", "finetune") and event.get("done") and not reached.is_set():
                seconds[0] = time.monotonic() - began
                reached.set()
                threading.Thread(target=children.__exit__, daemon=True).start()  # what comes then is not measured

        try:
            compute(store, KeyedStep(step, inputs), runtime, children, send)
        except SpinloopError as error:
            if not reached.is_set():
                raise
            del error
    return seconds[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    count = parser.parse_args().rows
    os.environ["OMP_NUM_THREADS"] = "1"
    with TemporaryDirectory() as name:
        root, lexicon = Path(name), words(20_000)
        place, texts = model(root / "model", lexicon), rows(root / "rows", count, lexicon)
        out = root / "tokens"
        out.mkdir()
        began = time.monotonic()
        config = tokenize.Config(chat=CHAT, max_rejected=0.5, shard_rows=512)
        made = tokenize.run({"tokenizer": place, "rows": texts}, config, Job(out, root / "scratch"))
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
        print(
            f"tokenize: {made['train_rows']:,} rows of {made['tokens'] / (count + 100):,.0f} tokens in {seconds:.1f} s,"
        )
        print(f"  {(count + 100) / seconds:,.0f} rows a second; peak {peak:,.0f} MiB with the test's own", flush=True)
        tree = pairs(root / "pairs", out)
        store = Store(root / "store")
        source = Ref("a" * 64, path=str(place), kind="model", stamp="")
        pair_ref = Ref("b" * 64, path=str(tree), kind="pairs", stamp="")
        step = Step(score, "", score.Config(score=score_settings(PART), chat=CHAT))
        for processes in (1, 2):
            runtime = Runtime(device="cpu", threads=1, compute=Compute(processes=processes))
            took = first_pass(store, step, {"model": source, "pairs": pair_ref}, runtime)
            print(f"score, {processes} process(es): first pass {took:.1f} s after their start", flush=True)
        _finetune(root, store, source, pair_ref, tree)


def _finetune(root: Path, store: Store, source: Ref, pair_ref: Ref, tree: Path) -> None:
    """The same of finetune, with log-probs that are made up."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    logps = root / "logps"
    logps.mkdir()
    ids = TokenFile(tree / token_file.FILES["train"]).ids
    columns = {"id": ids, "split": ["train"] * len(ids), "real": [-1.0] * len(ids), "generated": [-1.0] * len(ids)}
    pq.write_table(pa.table(columns), logps / "logps.parquet")
    settings = score_settings(PART)
    from spin_core.store.keys import config_payload

    scores = {"model": source.digest, "pairs": pair_ref.digest, "score": config_payload(settings)}
    (logps / "scores.json").write_text(json.dumps(scores))
    step = Step(finetune, "", finetune.Config(finetune=PART, seed=1))
    inputs = {"model": source, "pairs": [pair_ref], "logps": [Ref("c" * 64, path=str(logps), kind="pairs", stamp="")]}
    for processes in (1, 2):
        runtime = Runtime(device="cpu", threads=1, compute=Compute(processes=processes))
        took = first_pass(store, step, inputs, runtime)
        print(f"finetune, {processes} process(es): first step {took:.1f} s after their start", flush=True)


if __name__ == "__main__":
    main()
