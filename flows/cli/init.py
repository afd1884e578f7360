"""`spinloop init`: a first profile for one's own model and data, written from what `spinloop data` would show of them.

Is not: a profile that suits. Lengths are the data's own and the paths are the person's; all else is the paper's, with a
comment on what to change.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from flows.streams import print_escaped
from spin_core.analysis.format import plural
from spin_core.config.dataset import ENDINGS
from spin_core.config.gate import Gate
from spin_core.config.profile import Config, parse
from spin_core.errors import BadInput, StoreError

TEXT = (
    "Write a commented profile for your model and data into the folder where you stand. Reads the data as `spinloop "
    "data` does (columns, layout, lengths in the model's own tokens), says what it guessed, and overwrites nothing."
)
STANDING_IN = ("builtin:tiny-llama", "builtin:docstrings")
PROMPTS = ("prompt", "question", "instruction", "query", "problem", "input", "user", "request", "source", "ask")
ANSWERS = ("response", "answer", "output", "completion", "reply", "solution", "target", "assistant", "chosen", "text")
"""Parts of column names, the likeliest first, for tables whose columns nothing else says."""
USUAL = {"prompt": 512, "answer": 256}  # tokens, where they could not be counted
HELD_OUT = 500
SHARE = "99 %"

PROFILE = Template("""\
# Written by `spinloop init`. Look first, then run:
#   spinloop data $file      what is read: columns, rejects, lengths, the first rows as the model sees them
#   spinloop plan $file      what would be computed, and what it costs (--gpu h100-80gb --gpus 8: on that machine)
#   spinloop run $file
# Fields: `spinloop run --help finetune`, and so for each section. Paths begin at this file's folder.
name: $name
seed: 42
iterations: 3                   # the gate after each one ends the run where another does not pay
history: 2                      # train on the pairs of the latest two iterations, as the paper

model:
  path: $model$model_note

dataset:
  path: $data$data_note
$columns  test_fraction: 0.1            # held out of training; or a split or file of its own: test_split, test_path
$test_limit
chat:
  max_prompt_length: $prompt        # tokens; $share of the rows are no longer; a longer prompt loses its oldest turns

$sft
generate:
  # What SPIN takes back is what decoding over-produces. `deployed`: as the model's generation_config.json says.
  # `sampled` at temperature 1 is close to SFT.
  decoder: greedy
  max_new_tokens: $answer           # $share of the real answers are no longer; a longer one is cut

finetune:
  beta: 0.1
  lr: $lr
  schedule_epochs: 2
  global_batch: 64
  order: prompts                # pairs of one prompt together: 1.3 to 1.4 times as fast from the second iteration on
  max_length: $both               # prompt and answer together
$lora
evaluate:
  exact_match: ""               # a regular expression with a group finds the final answer, e.g. '#### (.+)'
  max_new_tokens: $answer

runtime:
  generate_batch: 16            # answers at once; more is faster while memory lasts
  micro_tokens: 4096            # tokens that a training step has in memory at once
  # min_new_rows: 100           # on a schedule: train only where so many rows are new since the last run that trained
""")
SFT = """\
sft:                            # θ_0 is made from a base model, which this one is; leave out for an instruct model
  lr: 4.0e-3
  epochs: 3
  global_batch: 64
  max_length: {both}
"""
NO_SFT = """\
# A base model, which does not answer yet, is first fine-tuned on the data: θ_0 is made of it.
# sft: {{lr: 1.0e-5, epochs: 2, global_batch: 64, max_length: {both}}}
"""
LR_BASE = "1.0e-4"
LR = "5.0e-7                    # the paper's, of 7B; smaller models take more, 1.0e-6 to 1.0e-5"
LORA = """\
  # lora: {rank: 16, alpha: 16}   # adapters: fits a 7B model on one GPU of 80 GB; a higher lr, such as 1.0e-5
"""


@dataclass
class Guess:
    """What is written, and a sentence on each guess."""

    columns: dict[str, str]
    prompt: int
    answer: int
    both: int
    held_out: int
    said: list[str]


def add_command(within: Any, add: Callable) -> None:
    """Put `init` under the parser `within`."""
    sub = add(within, "init", _init, TEXT)
    sub.add_argument("model", nargs="?", default="", metavar="MODEL", help="a model folder or hub id (org/name)")
    sub.add_argument("data", nargs="?", default="", metavar="DATA", help="a file, folder or hub id of a dataset")
    sub.add_argument("--out", default="spinloop.yaml", metavar="FILE", help="what to write (default: spinloop.yaml)")


def _init(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.suffix not in (".yaml", ".yml"):
        raise BadInput(f"--out {out}: a profile's name ends in .yaml.")
    if out.exists():
        raise BadInput(f"{out}: it is there already, and nothing is overwritten; name another file with --out.")
    if args.model and not args.data and ENDINGS.search(args.model):
        raise BadInput(f"{args.model}: that is data; the model comes first: spinloop init MODEL {args.model}.")
    model, data = args.model or STANDING_IN[0], args.data or STANDING_IN[1]
    guess = _guess(model, data)
    text = _profile(args, out, _from_there(model, out), _from_there(data, out), guess)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror}); name another file with --out.") from None
    for sentence in guess.said:
        print_escaped(sentence)
    print_escaped(f"Written: {out}. Next: spinloop plan {out}")


def _guess(model: str, data: str) -> Guess:
    """Look at the data with the model's tokenizer. Raises BadInput where a run could not read it."""
    from flows import live
    from spin_core.preview.look import look
    from tasks.runner.progress import Progress

    said: list[str] = []
    columns: dict[str, str] = {}
    progress = Progress(live.view())

    def seen() -> Any:
        return look(_config(model, data, columns), Path.cwd(), data, 0, progress)

    made = seen()
    if made.failures and not made.train and (columns := _columns([one.name for one in made.columns])):
        made = seen()
        said.append(f"Columns: {columns['prompt']} is taken for the prompt and {columns['answer']} for the answer.")
    progress.close()
    if made.failures:
        names = ", ".join(one.name for one in made.columns)
        raise BadInput(made.failures[0] + (f" Its columns: {names}." if names and not made.train else ""))
    layouts = " · ".join(made.layouts) or "rows"
    rejected = sum(one.count for one in made.rejected)
    read = f"{data}: {plural(made.read, 'row')} read as {layouts}; {made.train:,} to train on"
    said.insert(0, f"{read}, {made.test:,} held out, {rejected:,} rejected.")
    said += filter(None, [made.few_held_out(Gate().min_rows)])
    lengths = {one.name: one.quantiles for one in made.lengths if one.count}
    prompt, answer = (_rounded(lengths[name][SHARE]) if name in lengths else USUAL[name] for name in USUAL)
    room = _context(model)
    if room and prompt + answer > room:
        prompt, answer = max(room // 2, room - answer), min(answer, room // 2)
        said.append(f"The model's context of {room:,} tokens is shorter than prompt and answer; they are cut to it.")
    both = min(room or 1 << 30, prompt + answer)
    longest = ", ".join(f"{name} {lengths[name]['max']:,}" for name in USUAL if name in lengths)
    kept = f"which {SHARE} of the rows keep to (the longest: {longest})"
    said.append(f"Lengths: {prompt:,} tokens of prompt and {answer:,} of answer, {kept}.")
    held_out = HELD_OUT if made.test > HELD_OUT else 0
    if held_out:
        said.append(f"Of the {made.test:,} held-out rows {held_out:,} are used (dataset.test_limit).")
    return Guess(columns, prompt, answer, both, held_out, said)


def _config(model: str, data: str, columns: dict[str, str]) -> Config:
    """A profile with nothing but the two; no prompt is cut."""
    dataset = {"path": data, **({"columns": columns} if columns else {})}
    limits = {"chat": {"max_prompt_length": 1 << 20}, "finetune": {"max_length": 1 << 21}}
    return parse({"name": "init", "model": {"path": model}, "dataset": dataset, **limits}, data)


def _columns(names: Sequence[str]) -> dict[str, str]:
    """A column for the prompt and one for the answer by their names; empty where there is no such pair."""
    prompt, answer = (next(_named(names, words), "") for words in (PROMPTS, ANSWERS))
    return {"prompt": prompt, "answer": answer} if prompt and answer and prompt != answer else {}


def _named(names: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    return (name for word in words for name in names if word in name.lower())


def _rounded(length: int) -> int:
    """To the next multiple of 32 tokens."""
    return -(-max(length, 1) // 32) * 32


def _context(model: str) -> int | None:
    """How many tokens the model takes; None where it does not say so."""
    from spin_core.engines.answer_checks import Limits
    from spin_core.sources.resolve import resolve
    from spin_core.stages import demo_model

    if model == STANDING_IN[0]:
        return demo_model.Config(seed=0).context
    folder = Path(resolve(model, "tokenizer", "", Path.cwd(), notes=[]).path)
    return Limits.of(folder).context if (folder / "config.json").is_file() else None


def _from_there(path: str, out: Path) -> str:
    """A path as the profile's folder has it; a hub id and a builtin stay."""
    return os.path.relpath(path, out.parent) if Path(path).expanduser().exists() and not os.path.isabs(path) else path


def _profile(args: argparse.Namespace, out: Path, model: str, data: str, guess: Guess) -> str:
    base = model == STANDING_IN[0]
    columns = ", ".join(f"{part}: {json.dumps(name)}" for part, name in guess.columns.items())
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in out.stem.lower()).strip("-")[:40] or "run"
    held_out = f"  test_limit: {guess.held_out}               # more would cost much and say little more\n"
    return PROFILE.substitute(
        file=out.name,
        name=name,
        model=json.dumps(model, ensure_ascii=False),
        data=json.dumps(data, ensure_ascii=False),
        model_note="" if args.model else "     # stands in for yours: a folder or a hub id (org/name)",
        data_note="" if args.data else "     # stands in for yours: .jsonl, .parquet, .csv, …, a folder or a hub id",
        columns=f"  columns: {{{columns}}}   # guessed by their names\n" if columns else "",
        test_limit=held_out if guess.held_out else "",
        prompt=guess.prompt,
        answer=guess.answer,
        both=guess.both,
        share=SHARE,
        sft=(SFT if base else NO_SFT).format(both=guess.both),
        lora="" if base else LORA,
        lr=LR_BASE if base else LR,
    )
