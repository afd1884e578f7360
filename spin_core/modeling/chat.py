"""The chat side of one model: its template, what ends an answer, and the text of sampled tokens.

Not a template engine: templates are the tokenizer's own, rendered in a child with limits
(`spin_core/data/sandbox/templates.py`). Not the rules of which ids an answer has (`spin_core/modeling/encoding.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spin_core.config.chat import ChatSection
from spin_core.data.rows import Messages
from spin_core.data.sandbox import templates
from spin_core.data.sandbox.templates import TemplateError
from spin_core.data.tools import TOOLS, as_rendered
from spin_core.errors import BadInput, one_line

PROBE: Messages = [{"role": "user", "content": "What is two plus two?"}]
SENTINEL = "spinloop sentinel answer"
SHORTEST = 3  # characters of a special token that is looked for in texts: some models declare "!" as one
MARKS = re.compile(r"[<\[{|#]")
"""Of the template's own text: what has one of these is markup, and not a word that people write."""


@dataclass(frozen=True)
class Frame:
    """What a template puts around an answer: white space before it, text behind it, and the ids that end it; `adds`:
    words of its own stand between answer and end of turn."""

    lead: str
    tail: str
    end: list[int]
    adds: bool = False


class Chat:
    """The text side of one model: conversations to text, texts to ids, ids to text.

    `tokenizer` is a loaded transformers tokenizer, `where` the model's name for messages to people, `stop_ids` what its
    generation_config says of `eos_token_id` (a number, several, or None).
    `frame` and what needs it raise BadInput, naming `where`, for a template that is missing, raises or has no end of
    turn.
    """

    def __init__(self, tokenizer: Any, section: ChatSection, where: str, stop_ids: int | Iterable[int] | None = None):
        self.tokenizer, self.section, self.where = tokenizer, section, where
        given = [] if stop_ids is None else [stop_ids] if isinstance(stop_ids, int) else list(stop_ids)
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids = set(given) | set(eos)

    def render(self, conversations: Sequence[tuple[Messages, bool]]) -> list[str | TemplateError]:
        """The text of each conversation under the template; with True behind it the header of an answer follows.
        Raises BadInput where the tokenizer has no template."""
        texts: list[str | TemplateError] = [""] * len(conversations)
        for kind in (False, True):
            places = [i for i, (turns, _) in enumerate(conversations) if bool(turns and TOOLS in turns[0]) == kind]
            each = [_variables_of(*conversations[i]) for i in places]
            source = _template(self.tokenizer, self.where, kind) if each else ""
            made = templates.render_all(source, self._variables, each) if each else []
            for i, text in zip(places, made, strict=True):
                texts[i] = text
        return texts

    @cached_property
    def _variables(self) -> dict[str, Any]:
        return variables(self.tokenizer) | self.section.template_kwargs

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, in which special tokens count as such."""
        if not texts:
            return []
        if self.tokenizer.is_fast and not getattr(self.tokenizer, "split_special_tokens", False):
            # What the tokenizer's own call does, without the offsets: a third less time (32k BPE, 600 tokens a text).
            backend = self.tokenizer.backend_tokenizer
            if backend.truncation is not None:
                backend.no_truncation()
            if backend.padding is not None:
                backend.no_padding()
            return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]
        # verbose=False: else transformers warns of a text over model_max_length, which max_prompt_length sees to.
        return [list(ids) for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    def starts(self, text: str) -> tuple[list[int], list[int]]:
        """At which character each token begins, and the ids; ([], []) of a tokenizer that does not say."""
        if not self.tokenizer.is_fast:
            return [], []
        made = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        return [start for start, _ in made["offset_mapping"]], list(made["input_ids"])

    @cached_property
    def header(self) -> tuple[str, list[int]]:
        """What prompts end in, from their last special token on, as text and ids; ("", []) where that token may be a
        part of texts, or takes white space around it with it."""
        every = list(self.special.finditer(self._probe(header=True)))
        if not every or self.section.special_tokens == "keep":
            return "", []
        text = every[-1].string[every[-1].start() :]
        ids = self.ids([text])[0]
        token = self.tokenizer.added_tokens_decoder.get(ids[0])
        plain = token and token.content == every[-1][0] and not (token.normalized or token.lstrip or token.rstrip)
        return (text, ids) if plain else ("", [])

    @cached_property
    def end_ids(self) -> set[int]:
        """Token ids at which generation stops: the tokenizer's EOS, the template's end of turn, generation_config's."""
        return self.stop_ids | {self.frame.end[-1]}

    def clean(self, token_ids: Iterable[int]) -> str:
        """The answer's text for people and the hub: ids up to the first end, without the tokenizer's special tokens,
        left-stripped. What is scored are the ids.

        The reference strips on the left too, but removes only the literal `</s>`.
        """
        kept = []
        for token in token_ids:
            if int(token) in self.end_ids:
                break
            kept.append(int(token))
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()

    def without_end(self, text: str) -> str:
        """An answer without an end of turn that is spelt out at its end."""
        while end := next((end for end in self._ends if text.rstrip().endswith(end)), ""):
            text = text.rstrip().removesuffix(end)
        return text

    @cached_property
    def _ends(self) -> list[str]:
        return [token for token in self._special if self.tokenizer.convert_tokens_to_ids(token) in self.end_ids]

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Finds a special token of the tokenizer in a text."""
        return _any_of(self._special)

    @cached_property
    def markup(self) -> re.Pattern[str]:
        """As `special`, and the template's own marks around a user's turn."""
        around = self._probe(header=True).replace(PROBE[0]["content"], "\n")
        pieces = {piece.strip() for part in self.special.split(around) for piece in part.split("\n")}
        marks = {piece for piece in pieces if len(piece) >= SHORTEST and MARKS.search(piece)}
        return _any_of([*self._special, *marks])

    @cached_property
    def _special(self) -> list[str]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        every = {str(token) for token in (*self.tokenizer.all_special_tokens, *added)}
        return sorted(token for token in every if len(token.strip()) >= SHORTEST)

    def _probe(self, header: bool) -> str:
        turns = PROBE if header else [*PROBE, {"role": "assistant", "content": SENTINEL}]
        (text,) = self.render([(turns, header)])
        if isinstance(text, TemplateError):
            raise _failed(self.where, turns, text)
        return text

    @cached_property
    def frame(self) -> Frame:
        """What the template puts around an answer."""
        prompt, whole = self._probe(header=True), self._probe(header=False)
        place = whole.lower().rfind(SENTINEL)  # a template that changes the case is seen where answers are compared
        if place < 0:
            raise BadInput(f"Model {self.where}: its chat template drops the answer's text; use one that renders it.")
        before, tail = whole[:place], whole[place + len(SENTINEL) :]
        lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        ids = self.ids([tail])[0] if tail else []
        special = self.stop_ids | set(self.tokenizer.all_special_ids)
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        end = next((ids[: n + 1] for n, token in enumerate(ids) if token in special), [])
        if not end and tail.strip():
            raise BadInput(
                f"Model {self.where}: its chat template ends answers with {tail.strip()!r}, which is no special token "
                "of its tokenizer, so that no answer would end there; add it to the tokenizer (special_tokens), or end "
                "answers with the eos_token in the template."
            )
        if not end and self.tokenizer.eos_token_id is None:
            raise BadInput(
                f"Model {self.where}: neither its chat template nor its tokenizer says how an answer ends; set "
                "`eos_token` in its tokenizer_config.json."
            )
        adds = bool(end) and bool(tail.partition(str(self.tokenizer.convert_ids_to_tokens(end[-1])))[0].strip())
        end = end[-1:] if adds else end or [self.tokenizer.eos_token_id]
        return Frame("" if lead.strip() else lead, tail, end, adds)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(texts), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _variables_of(turns: Messages, header: bool) -> dict[str, Any]:
    """What a template sees of one conversation; without functions not even `tools`, which `chat.template_kwargs` may
    set for all."""
    own: dict[str, Any] = {"messages": [as_rendered(turn) for turn in turns], "add_generation_prompt": header}
    return own | ({TOOLS: json.loads(turns[0][TOOLS])} if turns and TOOLS in turns[0] else {})


def _template(tokenizer: Any, where: str, tools: bool = False) -> str:
    """The template; with `tools` that for conversations with functions, where a tokenizer has one of its own."""
    try:
        if tokenizer.chat_template:
            return str(tokenizer.get_chat_template(tools=[{}] if tools else None))
    except ValueError as error:  # several templates, and none is the default
        raise BadInput(f"Model {where}: {one_line(error, 300)}") from error
    raise BadInput(
        f"Model {where}: its tokenizer has no chat template; add `chat_template.jinja` to the model's directory "
        "(for instance its instruct version's)."
    )


def variables(tokenizer: Any) -> dict[str, Any]:
    """What a template sees beside messages, as transformers gives it."""
    special = tokenizer.special_tokens_map.items()
    named = {name: token if isinstance(token, list) else str(token) for name, token in special}
    return {"tools": None, "documents": None, **named}


def render(tokenizer: Any, messages: Messages, where: str, answer_header: bool = False) -> str:
    """The conversation under the tokenizer's chat template, as text. Raises BadInput where it has none or it raises."""
    source = _template(tokenizer, where)
    try:
        return templates.render(
            source, {**variables(tokenizer), "messages": messages, "add_generation_prompt": answer_header}
        )
    except TemplateError as error:
        raise _failed(where, messages, error) from error


def _failed(where: str, messages: Messages, error: TemplateError) -> BadInput:
    text = one_line(error, 300)
    if any(m["role"] == "system" for m in messages):
        text += "; if it refuses a system turn, put that text at the head of the user's"
    return BadInput(
        f"Model {where}: its chat template fails on the turns {_roles(messages)} ({text}); "
        "correct the template or use another model."
    )


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
