"""Conversations to the token ids that are sampled from and scored, many at once.

The rules, for a conversation `prompt, answer` under a chat template:
1. The prompt's ids are those of the template's text of it, with the header of the answer: what generation sees.
2. An answer's ids are those that stand behind the prompt's when both are tokenised together. Where the prompt's ids are
   not the beginning of the whole's (a token reaches across the boundary), they are the ids of the tokens that begin
   behind it, and before them those of the piece that is left of the token across, tokenised behind a character that it
   does not merge with, so that no tokenizer puts a space of its own in front.
3. A finished answer ends in the template's end of turn; the newline that many templates put after it is left out.
4. A template that makes something else of the answer than its text, white space around it aside, is not followed for
   that answer (`rewritten`): its ids are those of prompt · text · end of turn, as a sampled answer's are.
5. A prompt that is too long loses its oldest turns, then the middle of its last one, never the template's frame, the
   system turn or the start token.
White space around an answer is kept as the template keeps it, on both sides of a pair alike.
What it is *not*: the reference's way (`spin_core/modeling/collate.py`), a filter of rows for quality.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from spin_core.data.column_mapping import Reject
from spin_core.data.rows import Messages, of_tools
from spin_core.data.sandbox.templates import TemplateError
from spin_core.data.tools import BESIDE_CONTENT, CALLS, TOOLS, names
from spin_core.modeling.chat import Chat, paper_prompt

ANCHORS = ("\n", ".", "x", "0")
SAID_BY_PEOPLE = ("system", "user", "tool", TOOLS)
"""Whose texts may not have the template's marks either; assistants say such as <think>."""
NO_TOOLS = "take a model whose template does, or leave `tools` out in dataset.columns"
BETWEEN = "\n…\n"
"""Stands where the middle of a turn was cut."""


@dataclass(frozen=True)
class Conversation:
    """A prompt and its answers, as text; `finished`: of each answer whether it is to end in the end of turn."""

    prompt: Messages
    answers: tuple[str, ...]
    finished: tuple[bool, ...]


@dataclass
class Encoded:
    """A conversation's ids. `rewritten`: of how many answers the template makes something else; `across`: how many
    answers begin inside of a token; `ended`: from how many an end of turn at the end of the text was taken."""

    prompt: list[int]
    answers: list[list[int]] = field(default_factory=list)
    cut: bool = False
    rewritten: int = 0
    across: int = 0
    ended: int = 0


def encode(chat: Chat, conversations: Sequence[Conversation]) -> list[Encoded | Reject]:
    """Each conversation's ids, or why it cannot be used. Raises BadInput for a template that cannot be used at all."""
    texts: list[tuple[str, ...]] = []
    done: dict[int, Reject] = {}
    ended = []
    for i, one in enumerate(conversations):
        stripped = tuple(chat.without_end(text) for text in one.answers)
        ended.append(sum(a != b for a, b in zip(one.answers, stripped, strict=True)))
        texts.append(stripped)
        if why := _markup(chat, one.prompt, stripped):
            done[i] = why
    left = [i for i in range(len(conversations)) if i not in done]
    prompts = dict(zip(left, chat.render([(conversations[i].prompt, True) for i in left]), strict=True))
    for i in left:
        if isinstance(made := prompts[i], TemplateError):
            done[i] = Reject("template fails", f"{_turns(conversations[i].prompt)}: {made}")
        elif dropped := _dropped(conversations[i].prompt, made):
            done[i] = Reject("template drops a turn", f"the text of a {dropped} turn")
    done |= _without_tools(chat, {i: conversations[i].prompt for i in left if i not in done}, prompts)
    rendered = {i: str(prompts[i]) for i in left if i not in done}
    encoded = {i: Encoded([], ended=ended[i]) for i in rendered}
    bodies = _bodies(chat, conversations, texts, rendered, encoded, done)
    wholes = _wholes(chat, rendered, bodies, [i for i in rendered if i not in done])
    for i, ids in _prompts(chat, rendered, wholes).items():
        encoded[i].prompt = ids
    cut = [i for i in wholes if len(encoded[i].prompt) > chat.section.max_prompt_length]
    for i in cut:
        shorter = shorten(chat, conversations[i].prompt)
        if shorter is None:
            done[i] = Reject("prompt too long", f"{len(encoded[i].prompt)} tokens, and no text can be cut from it")
        else:
            rendered[i], encoded[i].prompt, encoded[i].cut = *shorter, True
    wholes |= _wholes(chat, rendered, bodies, [i for i in cut if i not in done])
    for i in wholes:
        if not encoded[i].prompt:
            done.setdefault(i, Reject("no tokens", "the prompt has no tokens under the chat template"))
        if i not in done:
            _add_answers(chat, rendered[i], bodies[i], wholes[i], conversations[i].finished, encoded[i])
    return [done[i] if i in done else encoded[i] for i in range(len(conversations))]


def _markup(chat: Chat, prompt: Messages, answers: Sequence[str]) -> Reject | None:
    """Whether a text has a special token, which would become a real one, or what people say is in template form
    already."""
    if chat.section.special_tokens == "keep":
        return None
    texts = [(turn["role"], turn["content"]) for turn in prompt] + [("answer", text) for text in answers]
    texts += [(name, turn[name]) for turn in prompt for name in turn.keys() & set(BESIDE_CONTENT)]
    for role, text in texts:
        if found := (chat.markup if role in SAID_BY_PEOPLE else chat.special).search(text):
            return Reject("special token in the text", f"{found[0]!r} in the {role}")
    return None


def _dropped(prompt: Messages, rendered: str) -> str:
    """The role of a turn whose text the template drops. Some drop the reasoning of earlier assistant turns on purpose:
    only what people and tools said must stay, the latter as it is or as JSON."""
    for turn in prompt:
        text = turn["content"].strip()
        as_json = (json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
        said = text in rendered or (turn["role"] == "tool" and any(one in rendered for one in as_json))
        if turn["role"] != "assistant" and not said:
            return turn["role"]
    return ""


def _without_tools(
    chat: Chat, prompts: dict[int, Messages], rendered: dict[int, str | TemplateError]
) -> dict[int, Reject]:
    """Why prompts with tools cannot be used: the template writes the same text without their functions or calls, or not
    the name of each."""
    places = [(i, name) for i, prompt in prompts.items() for name in (TOOLS, CALLS) if any(name in m for m in prompt)]
    bare = [[{n: m[n] for n in m if n != name} for m in prompts[i]] for i, name in places]
    rejects: dict[int, Reject] = {}
    for (i, name), text in zip(places, chat.render([(turns, True) for turns in bare]), strict=True):
        every = [one for turn in prompts[i] if name in turn for one in names(turn[name])]
        if lost := next((one for one in every if text == rendered[i] or one not in str(rendered[i])), ""):
            what = "the function" if name == TOOLS else "a call of"
            detail = f"it does not write {what} {lost:.60}; {NO_TOOLS}"
            rejects.setdefault(i, Reject("template drops tools", detail))
    return rejects


def _turns(prompt: Messages) -> str:
    roles = [turn["role"] + " with tools" * (TOOLS in turn) for turn in prompt]
    return "the turns " + ", ".join(roles if len(roles) <= 6 else [*roles[:5], f"… {len(roles) - 5:,} more"])


def _bodies(
    chat: Chat, conversations: Sequence[Conversation], texts: list[tuple[str, ...]], rendered: dict[int, str],
    encoded: dict[int, Encoded], done: dict[int, Reject],
) -> dict[int, list[str]]:  # fmt: skip
    """What stands behind the prompt for each answer, without what ends it (rules 3 and 4)."""
    places = [(i, text) for i in rendered for text in texts[i]]
    turns = [([*conversations[i].prompt, {"role": "assistant", "content": text}], False) for i, text in places]
    bodies: dict[int, list[str]] = {i: [] for i in rendered}
    for (i, text), (conversation, _), whole in zip(places, turns, chat.render(turns), strict=True):
        if isinstance(whole, TemplateError):
            done[i] = Reject("template fails", f"{_turns(conversation)}: {whole}")
            continue
        prompt, tail = rendered[i], chat.frame.tail
        body = whole[len(prompt) : len(whole) - len(tail)]
        fits = whole.startswith(prompt) and whole.endswith(tail) and len(whole) >= len(prompt) + len(tail)
        if not fits or chat.frame.adds or body.strip() != text.strip():
            encoded[i].rewritten += 1
            body = chat.frame.lead + text
            if chat.section.rewritten == "reject":
                done[i] = Reject("template rewrites the answer", whole[-80:])
        bodies[i].append(body)
    return bodies


def _wholes(
    chat: Chat, rendered: dict[int, str], bodies: dict[int, list[str]], left: Sequence[int]
) -> dict[int, list[list[int]]]:
    """The ids of prompt and answer together, for each answer."""
    made = iter(chat.ids([rendered[i] + body for i in left for body in bodies[i]]))
    return {i: [next(made) for _ in bodies[i]] for i in left}


def _prompts(chat: Chat, rendered: dict[int, str], wholes: dict[int, list[list[int]]]) -> dict[int, list[int]]:
    """The ids of each prompt. A text is split at special tokens before anything else is done with it, so what stands
    before the last one has the same ids whatever follows: they are taken from the whole (a quarter of the time, with
    a prompt half as long as its answer)."""
    text, header = chat.header
    taken: dict[int, list[int]] = {}
    for i, answers in wholes.items():
        whole = answers[0] if answers else []
        if rendered[i].endswith(text) and header and header[0] in whole:
            start = len(whole) - 1 - whole[::-1].index(header[0])
            if whole[start : start + len(header)] == header:
                taken[i] = whole[: start + len(header)]
    left = [i for i in wholes if i not in taken]
    return taken | dict(zip(left, chat.ids([rendered[i] for i in left]), strict=True))


def _add_answers(
    chat: Chat, prompt: str, bodies: list[str], wholes: list[list[int]], finished: Sequence[bool], to: Encoded
) -> None:
    for body, whole, ends in zip(bodies, wholes, finished, strict=True):
        answer = whole[len(to.prompt) :]
        if whole[: len(to.prompt)] != to.prompt:
            to.across += 1
            answer = behind(chat, prompt, body)
        to.answers.append(answer + (chat.frame.end if ends else []))


def behind(chat: Chat, prompt: str, body: str) -> list[int]:
    """The ids of `body` where a token reaches across the boundary (rule 2)."""
    starts, ids = chat.starts(prompt + body)
    first = next((n for n, start in enumerate(starts) if start >= len(prompt)), len(starts))
    piece = body[: starts[first] - len(prompt)] if first < len(starts) else body
    made = chat.ids([text for anchor in ANCHORS for text in (anchor, anchor + piece)])
    apart = (whole[len(own) :] for own, whole in zip(made[::2], made[1::2], strict=True) if whole[: len(own)] == own)
    return next(apart, chat.ids([piece])[0]) + ids[first : len(starts)]


def shorten(chat: Chat, prompt: Messages) -> tuple[str, list[int]] | None:
    """Text and ids of a prompt that is too long, with as much of it as fits (rule 5); None where nothing helps."""
    most = chat.section.max_prompt_length

    def fitting(messages: Messages) -> tuple[str, list[int]] | None:
        if TOOLS in prompt[0]:
            messages = [{**messages[0], TOOLS: prompt[0][TOOLS]}, *messages[1:]]
        (text,) = chat.render([(messages, True)])
        if isinstance(text, TemplateError):
            return None
        (ids,) = chat.ids([text])
        return (text, ids) if len(ids) <= most else None

    first = 1 if prompt[0]["role"] == "system" else 0
    starts = [i for i, turn in enumerate(prompt) if turn["role"] == "user" and i > first]
    for start in starts:
        if made := fitting([*prompt[:first], *prompt[start:]]):
            return made
    head, last = prompt[:first], prompt[-1]
    best, low, high = None, 0, len(last["content"])
    while low < high:
        kept = (low + high) // 2
        text = last["content"]
        middle = text[: (kept + 1) // 2] + BETWEEN + text[len(text) - kept // 2 :]
        if made := fitting([*head, {**last, "content": middle}]):
            best, low = made, kept + 1
        else:
            high = kept
    return best


def encode_paper(chat: Chat, prompts: Sequence[Messages]) -> list[list[int] | Reject]:
    """The prompts that the published runs sampled from (`chat.template: paper`), the last `max_prompt_length` ids."""
    texts = [paper_prompt(prompt[0]["content"]) for prompt in prompts]
    made = chat.ids(texts)
    why = "chat.template: paper has room for one user turn only, and this prompt has {}; set chat.template: model"
    return [
        ids[-chat.section.max_prompt_length :]
        if [turn["role"] for turn in prompt] == ["user"] and not of_tools(prompt)
        else Reject("no room for its turns", why.format(_turns(prompt)))
        for prompt, ids in zip(prompts, made, strict=True)
    ]
