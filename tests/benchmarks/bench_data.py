"""Pairs of token ids for the training benchmark, from question/answer rows: short prompts, or long ones.

No model runs: the "generated" answer of a row is another row's answer of about the same length. What a step costs
depends on lengths only, and with a handful of pairs on luck: padded tokens to useful ones are 1.5 in one random batch
of four GSM8K rows and 2.1 in another (its 10 % and 90 % quantiles). So many batches are drawn, and the one in the
middle is taken.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spin_core.data.column_mapping import Reject
from spin_core.data.readers import read
from spin_core.data.rows import Messages
from spin_core.errors import BadInput
from spin_core.modeling.chat import Chat
from spin_core.modeling.encoding import Conversation, Encoded, encode

SETS = ("short", "long")
LONG_PROMPT = (260, 508)
"""Tokens that a prompt of the long set has at least and at most; decoding and encoding again may move it by a few."""
MAX_PROMPT, MAX_LENGTH = 512, 1024
DRAWS = 101

Row = tuple[list[int], list[int], list[int]]


def read_rows(path: Path, wanted: int) -> list[tuple[str, str]]:
    """(question, answer) of the training rows in a file or folder. Raises BadInput where there are too few."""
    texts = [(r.fields.get("question"), r.fields.get("answer")) for r in read(path, "train") if not r.reject]
    rows = [(q, a) for q, a in texts if isinstance(q, str) and isinstance(a, str) and q.strip() and a.strip()]
    if len(rows) < wanted + 1:
        raise BadInput(
            f"{path}: {len(rows)} rows with a text `question` and `answer`, and the benchmark needs {wanted + 1}; "
            "lower --pairs or give --data a set like GSM8K"
        )
    return rows


def make_pairs(rows: list[tuple[str, str]], chat: Chat, count: int, name: str, seed: int) -> list[Row]:
    """`count` pairs as token ids of (prompt, real answer, generated answer): of DRAWS random sets of pairs the one
    whose padding is the median. `name`: short or long."""
    random = np.random.default_rng([seed, SETS.index(name)])
    drawn = [_draw(rows, chat, count, name, random) for _ in range(DRAWS)]
    return sorted(drawn, key=padding)[DRAWS // 2]


def padding(pairs: list[Row]) -> float:
    """Tokens of the padded batch of all pairs, each answer with its own prompt, to tokens with each prompt once."""
    width = max(len(p) + max(len(r), len(g)) for p, r, g in pairs)
    return 2 * width * len(pairs) / sum(len(p) + len(r) + len(g) for p, r, g in pairs)


def _draw(rows: list[tuple[str, str]], chat: Chat, count: int, name: str, random: np.random.Generator) -> list[Row]:
    order = random.permutation(len(rows))
    conversations: list[Conversation] = []
    for number in range(count):
        question, answer = rows[order[number]]
        if name == "long":
            question = _with_examples(question, rows, chat, random)
        prompt: Messages = [{"role": "user", "content": question}]
        other, wanted = "", int(len(answer) * random.uniform(0.8, 1.2))
        for follower in range(1, len(rows)):  # the next answer that is long enough to be cut
            other = rows[order[(number + follower) % len(rows)]][1]
            if len(other) >= wanted:
                break
        conversations.append(Conversation(prompt, (answer, other[:wanted]), (True, len(other) <= wanted)))
    pairs: list[Row] = []
    for one in encoded(chat, conversations):
        real, generated = (ids[: MAX_LENGTH - len(one.prompt)] for ids in one.answers)
        pairs.append((one.prompt, real, generated))
    return pairs


def encoded(chat: Chat, conversations: list[Conversation]) -> list[Encoded]:
    """The ids of each conversation. Raises BadInput where one cannot be used."""
    made = []
    for conversation, one in zip(conversations, encode(chat, conversations), strict=True):
        if isinstance(one, Reject):
            text = conversation.prompt[-1]["content"]
            raise BadInput(f"The question {text[:60]!r} cannot be used: {one.reason} ({one.detail}); take it out.")
        made.append(one)
    return made


def lengths(pairs: list[Row]) -> dict[str, dict[str, float]]:
    """Least, mean and largest number of tokens of prompts, real and generated answers."""
    columns = dict(zip(("prompt", "real", "generated"), zip(*pairs, strict=True), strict=True))
    sizes = {name: [len(ids) for ids in column] for name, column in columns.items()}
    return {name: {"min": min(s), "mean": sum(s) / len(s), "max": max(s)} for name, s in sizes.items()}


def _with_examples(question: str, rows: list[tuple[str, str]], chat: Chat, random: np.random.Generator) -> str:
    """The question behind other rows' questions and answers, the oldest cut so that the prompt has a drawn length."""
    target = int(random.integers(LONG_PROMPT[0], LONG_PROMPT[1] + 1))
    (alone,) = encoded(chat, [Conversation([{"role": "user", "content": f"Question: {question}"}], (), ())])
    own = len(alone.prompt)
    examples: list[int] = []
    while len(examples) < target - own:
        query, answered = rows[int(random.integers(len(rows)))]
        text = f"Question: {query}\nAnswer: {answered}\n\n"
        examples += chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    kept = examples[len(examples) - max(target - own, 0) :]
    return f"{chat.tokenizer.decode(kept)}Question: {question}"
