"""One object renders prompts for generation *and* for scoring, so that what was sampled is what is scored.

Not a template engine: templates are the tokenizer's own, rendered in a child with limits
(`spin_core/data/sandbox/templates.py`). Prompt and answer are tokenised apart, because generation sees the prompt's
tokens without the answer behind them. Assumes that special tokens spelt out inside a message mean what the tokenizer
makes of them (as in transformers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from spin_core.config.chat import ChatSection
from spin_core.data.rows import Messages
from spin_core.data.sandbox import templates
from spin_core.errors import BadInput, one_line

PROBE: Messages = [{"role": "user", "content": "What is two plus two?"}]
SENTINEL = "spinloop sentinel answer"


class Chat:
    """The text side of one model: messages to tokens and back.

    `tokenizer` is a loaded transformers tokenizer, `where` the model's name for messages to people, `stop_ids` what its
    generation_config says of `eos_token_id` (a number, several, or None).
    Every method raises BadInput, naming `where`, for a template that is missing, raises or cannot be undone.
    """

    def __init__(self, tokenizer: Any, section: ChatSection, where: str, stop_ids: int | Iterable[int] | None = None):
        self.tokenizer, self.section, self.where = tokenizer, section, where
        given = [] if stop_ids is None else [stop_ids] if isinstance(stop_ids, int) else list(stop_ids)
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids = set(given) | set(eos)

    def prompt(self, messages: Messages) -> str:
        """The prompt that is scored: the conversation under the chat template, with the header of the answer."""
        return render(self.tokenizer, messages, self.where, answer_header=True)

    def generation_prompt(self, messages: Messages) -> str:
        """The prompt that is sampled from: `prompt`, or the published runs' own form under `template: paper`."""
        if self.section.template == "model":
            return self.prompt(messages)
        if [m["role"] for m in messages] != ["user"]:
            raise BadInput(
                f"Model {self.where}: `chat.template: paper` has room for one user turn only, and this prompt "
                f"has the turns {_roles(messages)}; set `chat.template: model`."
            )
        return paper_prompt(messages[0]["content"])

    def encode_prompt(self, messages: Messages, for_generation: bool = False) -> list[int]:
        """Token ids of the prompt; the last `max_prompt_length` of them (as the reference's `keep_end`)."""
        text = self.generation_prompt(messages) if for_generation else self.prompt(messages)
        return self._encode(text)[-self.section.max_prompt_length :]

    def encode_answer(self, messages: Messages, text: str, finished: bool = True) -> list[int]:
        """Token ids of answer `text` as the template renders it behind `prompt(messages)`.

        Up to and including the end-of-turn token when `finished`, and not the newline that many templates put after it;
        without that token for an answer that was cut at `max_new_tokens` (the model did not end it).
        """
        rendered = self._behind_prompt(messages, text)
        tail, end = self._tail
        if not rendered.endswith(tail):
            raise BadInput(
                f"Model {self.where}: its chat template ends answers in different ways ({rendered[-40:]!r}, {tail!r}); "
                "use a template that ends every answer alike."
            )
        body = self._encode(rendered[: len(rendered) - len(tail)])
        return body + end if finished else body

    @cached_property
    def end_ids(self) -> set[int]:
        """Token ids at which generation stops: the tokenizer's EOS, the template's end of turn, generation_config's."""
        return self.stop_ids | {self._tail[1][-1]}

    def clean(self, token_ids: Iterable[int]) -> str:
        """The answer's text: ids up to the first end, without the tokenizer's special tokens, left-stripped.

        The reference strips on the left too, but removes only the literal `</s>`.
        """
        kept = []
        for token in token_ids:
            if int(token) in self.end_ids:
                break
            kept.append(int(token))
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()

    def preflight(self, messages: Messages) -> None:
        """Raise BadInput unless this prompt can be rendered, keeps its text, and is a prefix of the conversation.

        Cheap (three renderings): run it on every prompt before the first forward pass.
        """
        rendered = self.prompt(messages)
        for message in messages:
            # Some templates drop the reasoning of earlier assistant turns on purpose: only what people said must stay.
            if message["role"] != "assistant" and message["content"].strip() not in rendered:
                raise BadInput(
                    f"Model {self.where}: its chat template drops the text of a {message['role']} turn "
                    f"({message['content'][:40]!r}); use a model or a chat template that renders it."
                )
        self.encode_answer(messages, SENTINEL)
        self.generation_prompt(messages)

    def _behind_prompt(self, messages: Messages, text: str) -> str:
        """What the template puts behind the prompt when the answer is `text`."""
        prompt = self.prompt(messages)
        rendered = render(self.tokenizer, [*messages, {"role": "assistant", "content": text}], self.where)
        if not rendered.startswith(prompt):
            raise BadInput(
                f"Model {self.where}: its chat template renders the prompt differently once an answer follows, so what "
                "is sampled would not be what is scored; use a template whose prompt is a prefix of the conversation."
            )
        return rendered[len(prompt) :]

    @cached_property
    def _tail(self) -> tuple[str, list[int]]:
        """The text that the template puts behind an answer, and the ids that end a finished answer."""
        _, answer, tail = self._behind_prompt(PROBE, SENTINEL).rpartition(SENTINEL)
        if not answer:
            raise BadInput(f"Model {self.where}: its chat template drops the answer's text; use one that renders it.")
        ids = self._encode(tail)
        special = self.stop_ids | set(self.tokenizer.all_special_ids)
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for position, token in enumerate(ids):
            if token in special:
                return tail, ids[: position + 1]
        if self.tokenizer.eos_token_id is None:
            raise BadInput(
                f"Model {self.where}: neither its chat template nor its tokenizer says how an answer ends; set "
                "`eos_token` in its tokenizer_config.json."
            )
        return tail, [self.tokenizer.eos_token_id]

    def _encode(self, text: str) -> list[int]:
        # verbose=False: else transformers warns of a prompt over model_max_length, which max_prompt_length sees to.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def render(tokenizer: Any, messages: Messages, where: str, answer_header: bool = False) -> str:
    """The conversation under the tokenizer's chat template, as text. Raises BadInput where it has none or it raises."""
    if not tokenizer.chat_template:
        raise BadInput(
            f"Model {where}: its tokenizer has no chat template; add `chat_template.jinja` to the model's directory "
            "(for instance its instruct version's)."
        )
    special = tokenizer.special_tokens_map.items()
    variables = {
        "messages": messages, "tools": None, "documents": None, "add_generation_prompt": answer_header,
        **{name: token if isinstance(token, list) else str(token) for name, token in special},
    }  # fmt: skip
    try:
        return templates.render(tokenizer.get_chat_template(), variables)
    except (templates.TemplateError, ValueError) as error:  # ValueError: several templates, and none is the default
        text = one_line(error, 300)
        if any(m["role"] == "system" for m in messages):
            text += "; if it refuses a system turn, put that text at the head of the user's"
        raise BadInput(
            f"Model {where}: its chat template fails on the turns {_roles(messages)} ({text}); "
            "correct the template or use another model."
        ) from error


def _roles(messages: Messages) -> list[str]:
    """The roles for a sentence; of a conversation of thousands the first."""
    roles = [m["role"] for m in messages]
    return roles if len(roles) <= 6 else [*roles[:5], f"… {len(roles) - 5:,} more"]


def paper_prompt(text: str) -> str:
    """The prompt under which the published runs sampled (paper, appendix B.1; the reference's generate scripts)."""
    return f"### Instruction: {text}\n\n### Response: "


def reference_texts(row: dict, tokenizer: Any, assistant_prefix: str = "<|assistant|>\n") -> dict[str, str]:
    """The texts that the reference's run_spin.apply_chat_template makes of a record, for `collation: reference`.

    `row` has message lists `real` and `generated`; gives `text_prompt`, `text_real`, `text_generated`. Parity, not
    taste: the prompt is the first user turn behind a system turn (an empty one where the record has none), each answer
    is all turns but the first, and only the prefix given here is cut from its head. Raises BadInput for a record
    without both lists or without a user turn.
    """
    if "real" not in row or "generated" not in row:
        raise BadInput(f"A record for the reference's collation needs `real` and `generated`, not {sorted(row)}.")
    real, generated = row["real"], row["generated"]
    question = next((m for m in real if m["role"] == "user"), None)
    if question is None:
        raise BadInput("A record for the reference's collation needs a user turn in `real`, and this has none.")
    system = real[0] if real[0]["role"] == "system" else {"role": "system", "content": ""}
    where = str(getattr(tokenizer, "name_or_path", "") or "tokenizer")
    head = re.compile("^" + re.escape(assistant_prefix))
    return {
        "text_prompt": render(tokenizer, [system, question], where, answer_header=True),
        "text_real": head.sub("", render(tokenizer, real[1:], where)),
        "text_generated": head.sub("", render(tokenizer, generated[1:], where)),
    }
