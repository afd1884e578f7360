"""Chat templates that behave as those of real models do; none is a copy of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """`rewrites`: what it makes another text of: nothing, every answer, those with small letters, or with reasoning."""

    source: str
    rewrites: str = ""
    system: bool = True


LOOP = "{% for m in messages %}"
END = "{% endfor %}"
ASK = "{% if add_generation_prompt %}"
OPEN, CLOSE = "<|im_start|>", "<|im_end|>\\n"


def _chatml(answer: str = "m.content", header: str = "", first: str = "", close: str = CLOSE) -> str:
    """A template in the form of ChatML with another `answer`, a longer `header` before it, a `first` turn."""
    turn = "{% if m.role == 'assistant' %}{{ " + answer + " }}{% else %}{{ m.content }}{% endif %}"
    return (
        f"{first}{LOOP}{{{{ '{OPEN}' + m.role + '\\n' }}}}{turn}{{{{ '{close}' }}}}{END}"
        f"{ASK}{{{{ '{OPEN}assistant\\n{header}' }}}}{{% endif %}}"
    )


def _words(user: str, assistant: str, close: str = "\\n", lead: str = " ") -> str:
    return (
        f"{LOOP}{{{{ '{user}' if m.role != 'assistant' else '{assistant}' }}}}"
        f"{{{{ '{lead}' + m.content + ('{close}' if m.role != 'assistant' else eos_token) }}}}{END}"
        f"{ASK}{{{{ '{assistant}' }}}}{{% endif %}}"
    )


THINK = "<think>\\n\\n</think>\\n\\n"
TEMPLATES = {
    "ChatML": Template(_chatml()),
    "ChatML without a line end": Template(_chatml(close="<|im_end|>")),
    "ChatML that trims": Template(_chatml("m.content | trim")),
    "ChatML with a default system turn": Template(
        _chatml(
            first="{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
        )
    ),
    "start token first": Template("{{ bos_token }}" + _chatml()),
    "headers": Template(
        "{{ bos_token }}"
        + LOOP
        + "{{ '<|header|>' + m.role + '<|end_header|>\\n\\n' + m.content + '<|eot|>' }}"
        + END
        + ASK
        + "{{ '<|header|>assistant<|end_header|>\\n\\n' }}{% endif %}"
    ),
    "headers that trim": Template(
        LOOP
        + "{{ '<|header|>' + m.role + '<|end_header|>\\n\\n' + m.content | trim + '<|eot|>' }}"
        + END
        + ASK
        + "{{ '<|header|>assistant<|end_header|>\\n\\n' }}{% endif %}"
    ),
    "role marks of plain text": Template(
        LOOP
        + "{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}"
        + END
        + ASK
        + "{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "brackets, a space before the answer": Template(
        "{{ bos_token }}" + LOOP + "{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}" + END
    ),
    "brackets, no space": Template(
        "{{ bos_token }}" + LOOP + "{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}" + END
    ),
    "brackets, trimmed, a space on both sides": Template(
        LOOP + "{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
        "{% else %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}{% endif %}" + END
    ),
    "system folded into the user turn": Template(
        "{% set s = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
        + LOOP
        + "{% if m.role == 'user' %}{{ '<|im_start|>user\\n' + s + m.content + '<|im_end|>\\n' }}"
        "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
        + END
        + ASK
        + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "a refused system turn": Template(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + _chatml(),
        system=False,
    ),
    "turns that must alternate": Template(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns must alternate') }}{% endif %}{% endfor %}" + _chatml(),
        system=False,
    ),
    "words for roles": Template(_words("USER:", "ASSISTANT:")),
    "words for roles, a space in the header": Template(_words("User: ", "Assistant: ", lead="")),
    "headings": Template(_words("### Instruction:\\n", "### Response:\\n", "\\n\\n", "")),
    "no end of turn of its own": Template(
        LOOP + "{{ m.role + ': ' + m.content + '\\n' }}" + END + ASK + "{{ 'assistant: ' }}{% endif %}"
    ),
    "empty reasoning in the conversation, none in the header": Template(
        _chatml(f"('{THINK}' if '</think>' not in m.content else '') + m.content"), "every"
    ),
    "reasoning begun in the header": Template(_chatml(header="<think>\\n"), "every"),
    "reasoning dropped from answers": Template(_chatml("m.content.split('</think>')[-1].lstrip('\\n')"), "reasoning"),
    "a signature behind every answer": Template(_chatml("m.content + ' (end)'"), "every"),
    "answers in capitals": Template(_chatml("m.content | upper"), "letters"),
    "a switch for reasoning": Template(
        _chatml().replace(
            ASK,
            "{% if enable_thinking is defined and not enable_thinking and add_generation_prompt %}"
            f"{{{{ '{OPEN}assistant\\n{THINK}' }}}}{{% elif add_generation_prompt %}}",
        )
    ),
    "a namespace and loop controls": Template(
        "{% set ns = namespace(n=0) %}" + LOOP + "{% if m.content == '' %}{% continue %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        + END
        + ASK
        + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "tools that are not there": Template("{% if tools %}{{ tools | tojson }}{% endif %}" + _chatml()),
    "generation marked": Template(
        LOOP + "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
        + END
        + ASK
        + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "a date": Template(_chatml(first="{{ strftime_now('%d %b %Y') + '\\n' }}")),
}
