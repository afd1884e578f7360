"""Hostile chat templates (S6): rendered in a child that ends them; honest ones give what transformers gives."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from spin_core.config.chat import ChatSection
from spin_core.data.column_mapping import Reject
from spin_core.data.sandbox import templates
from spin_core.errors import BadInput
from spin_core.modeling.chat import Chat, render
from spin_core.modeling.encoding import Conversation, encode
from tests.faults.fault import Fault
from tests.faults.input.through import limited

TOKENIZER = Path(__file__).resolve().parents[1] / "golden" / "tokenizer"
QUESTION = [{"role": "user", "content": "What is two plus two?"}]
OPEN = "{{ messages[0]['content'] }}"

# name → template, what the sentence says. Each must end in well under the test's limit.
HOSTILE = {
    "class walk": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "class walk by filter": ("{{ messages|attr('__class__')|attr('__mro__') }}", "drops the answer"),
    "globals of a function": ("{{ raise_exception.__globals__['json'] }}", "unsafe|undefined"),
    "format string walk": ("{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}", "unsafe|fails"),
    "namespace walk": ("{{ namespace.__init__.__globals__ }}", "unsafe|undefined"),
    "self walk": ("{{ self.__init__.__globals__.__builtins__ }}", "unsafe|undefined"),
    "cycler walk": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe|undefined"),
    "changes its input": ("{% set _ = messages.append(1) %}", "unsafe|fails"),
    "include of a file": ("{% include '/etc/passwd' %}", "no loader"),
    "import of a file": ("{% import '/etc/passwd' as p %}", "no loader"),
    "long range": ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "processor time",
    ),
    "long text": ("{{ 'x' * 1000000000 }}", "memory"),
    "longer than allowed": ("{{ 'x' * 2000000 }}", "characters more"),
    "many short texts": ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "characters more"),
    "list that grows": ("{{ [0] * 100000000 }}", "memory|characters more"),
    "doubling": (
        "{% set ns = namespace(t='x') %}{% for i in range(40) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "memory",
    ),
    "padding": ("{{ '%1000000000d' % 1 }}", "memory|fails"),
    "padding by format": ("{{ '{:1000000000}'.format(1) }}", "memory|fails"),
    "power": ("{{ 9 ** (9 ** 9) }}", "processor time|memory"),
    "centre": ("{{ 'x'|center(1000000000) }}", "memory"),
    "indent": ("{{ ('x\n' * 1000)|indent(9999999) }}", "memory|processor time"),  # 2 s come first on a busy core
    "date": ("{{ strftime_now('%1000000000d') }}", "memory|fails|drops the answer"),
    "recursive macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "recursive loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "RecursionError"),
    "slow pattern": ("{{ ('a,' * 300000)|replace('a,', 'aaaa,')|wordwrap(1)|length }}{% for i in range(99999) %}"
                     "{% set _ = ('a ' * 9999)|wordcount %}{% endfor %}", "processor time"),
    "raises": ("{{ raise_exception('no') }}", "no"),
    "raises at length": ("{{ raise_exception('no ' * 99999) }}", "no no"),
    "raises with lines": ("{{ raise_exception('one\ntwo\x1b[31m') }}", "one two"),
    "divides by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "undefined": ("{{ nothing.at.all }}", "undefined"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "deep syntax": ("{{ " + "(" * 20_000 + " }}", "fails"),
    "half a surrogate": ("{{ '\\ud800' }}", "surrogate"),
    "random": ("{{ [1, 2, 3]|random }}" + OPEN, "random"),
    "another text each time": ("{{ lipsum() }}" + OPEN, "lipsum"),
    "drops the answer": (OPEN, "drops the answer"),
    "slow on one word": (
        "{% for m in messages %}{% if 'two' in m.content %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}",
        "processor time",
    ),
}  # fmt: skip
S6 = Fault("S6", "a chat template that walks classes, loops, fills memory, recurses, raises, drops or leaks a turn")


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


def test_hostile_templates_are_ended_and_named(tokenizer, monkeypatch):
    """Catches a template that hangs or fills a stage, reaches Python, or fails without the model's name and remedy."""
    # Well above 2 s of processor time: without that limit this one would speak, and say something else.
    monkeypatch.setattr(templates, "WALL_SECONDS", 20.0)

    def trial(name: str) -> None:
        source, message = HOSTILE[name]
        tokenizer.chat_template = source
        began = time.monotonic()
        with pytest.raises(BadInput, match=f"(?s){message}") as raised:
            encode(Chat(tokenizer, ChatSection(), "org/model"), [Conversation(QUESTION, ("Four.",), (True,))])
        sentence = str(raised.value)
        assert "org/model" in sentence and re.search("use (a|one)", sentence) and len(sentence) < 1000
        assert sentence.isprintable(), "control characters reach the terminal"
        assert time.monotonic() - began < 30, "2 s of processor time, on a machine with other work"

    S6.each(HOSTILE, trial)


# name → template that is usable but for some rows, of which it makes something else than what people said
SLY = {
    "drops the prompt": (
        "{% for m in messages %}{% if 'three' not in m.content %}{{ m.content }}{% endif %}{% endfor %}",
        "template drops a turn",
    ),
    "slow on one word": (HOSTILE["slow on one word"][0].replace("two", "three"), "template fails"),
    "fills the memory on one word": (
        "{% for m in messages %}{% if 'three' in m.content %}{{ 'x' * 1000000000 }}{% endif %}{{ m.content }}"
        "{% endfor %}",
        "template fails",
    ),
    "leaks the role into the prompt": (
        "{% for m in messages %}{{ m.role }}{{ messages|length if 'three' in messages[0].content }}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
        "template rewrites the answer",
    ),
    "another answer": (
        "{% for m in messages %}{{ m.content if m.content != 'Three.' else 'Thirty.' }}{% endfor %}",
        "template rewrites the answer",
    ),
}


def test_sly_templates_lose_the_rows_that_they_change(tokenizer):
    """Catches a template that shows its face on one row only: scoring there what was not sampled, a batch that ends
    with that row, and the other rows lost with it."""

    def trial(name: str) -> None:
        tokenizer.chat_template, reason = SLY[name]
        chat = Chat(tokenizer, ChatSection(rewritten="reject"), "org/model")
        talks = [(QUESTION[0]["content"], "Four."), ("What is three?", "Three."), ("And four?", "Four.")]
        rows = [Conversation([{"role": "user", "content": ask}], (answer,), (True,)) for ask, answer in talks]
        made = encode(chat, rows)
        assert [one.reason if isinstance(one, Reject) else "" for one in made] == ["", reason, ""]

    S6.each(SLY, trial)


HONEST = {
    **{name: (TOKENIZER / "templates" / f"{name}.jinja").read_text() for name in ("zephyr", "chatml", "llama3")},
    "variables": "{{ bos_token }}{{ eos_token }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ xyz }}",
    "blocks": "  {% if true %}\n  a\n  {% endif %}\n{%- for m in messages %}\n{{ m | tojson }}\n{% endfor %}",
    "tojson": '{{ {"b": "é<&>", "a": [1, 2.5, none]} | tojson(indent=2, sort_keys=true) }}{{ "é"|tojson(true) }}',
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}\n  {% endgeneration %}|{% endfor %}",
    "scope": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "loop controls": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}",
    "macro": "{% macro say(m, end='.') -%}{{ m.content | trim }}{{ end }}{%- endmacro %}{{ say(messages[0], '!') }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "methods": "{{ messages[0].content.split(' ')[0].upper().strip() }}{{ messages[0].get('x', 'none') }}",
    "filters": "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'equalto', 'user') | "
    "list | length }}{{ 'a b' | title | replace('A', 'c') }}",
    "tests": "{{ messages is iterable }}{{ tools is defined }}{{ tools is not none }}{{ documents is none }}",
    "slices": "{{ messages[::-1] }}{{ messages[-1:] }}",
}
TALKS = [
    QUESTION,
    [{"role": "system", "content": " Be kind.\n"}, *QUESTION],
    [*QUESTION, {"role": "assistant", "content": "Four <b>&é\u2028😀"}, {"role": "user", "content": "{{ x }} {% y %}"}],
]


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("header", [True, False])
def test_honest_templates_give_what_transformers_gives(tokenizer, name, header):
    """Catches a rendering that differs from the one that a model was trained and is served with, by a space or more."""
    tokenizer.chat_template = HONEST[name]
    for talk in TALKS:
        expected = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=header)
        assert render(tokenizer, talk, "m", answer_header=header) == expected


def test_several_templates_the_default_is_used(tokenizer):
    """Catches a model with templates by name (tool_use) that no longer renders, and a traceback without a default."""
    tokenizer.chat_template = {"default": "d{{ messages[0].content }}", "tool_use": "t"}
    assert render(tokenizer, QUESTION, "m") == "d" + QUESTION[0]["content"]
    tokenizer.chat_template = {"tool_use": "t", "rag": "r"}
    with pytest.raises(BadInput, match="no default"):
        render(tokenizer, QUESTION, "org/model")


def test_good_template_renders_after_a_hostile_one_was_ended(tokenizer):
    """Catches a child that stays dead, and the answer of one conversation given for another's."""
    for source in HOSTILE["nested loops"][0], HOSTILE["doubling"][0]:
        tokenizer.chat_template = source
        with pytest.raises(BadInput):
            render(tokenizer, QUESTION, "m")
        tokenizer.chat_template = OPEN
        for text in ("a", "b", "a", "c" * 3_000_000, "d"):
            assert render(tokenizer, [{"role": "user", "content": text}], "m") == text


def test_child_has_no_secret_and_writes_no_file(tokenizer, monkeypatch):
    """Catches a hole in jinja's sandbox that would give away a token or change a file: the child has neither."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    child = templates.Renderer()
    assert child.render("{{ 1 }}", {"messages": []}) == "1"
    assert child._process is not None
    facts = Path("/proc") / str(child._process.pid)
    if not facts.exists():
        pytest.skip("no /proc here")
    assert b"hf_secret" not in (facts / "environ").read_bytes()
    limits = {line[:25].strip(): line[25:].split()[0] for line in (facts / "limits").read_text().splitlines()[1:]}
    assert limits["Max file size"] == "0" and limits["Max address space"] == str(512 << 20)
    child._end()


def test_fork_of_a_process_starts_a_child_of_its_own(tokenizer):
    """Catches two processes (a loader's fork) that talk into one pipe and get each other's prompts."""
    tokenizer.chat_template = OPEN
    assert render(tokenizer, QUESTION, "m")
    pid = os.fork()
    if not pid:
        try:
            same = render(tokenizer, [{"role": "user", "content": "f"}], "m") == "f"
        except BaseException:
            same = False
        os._exit(0 if same else 1)
    texts = [str(i) for i in range(200)]
    assert [render(tokenizer, [{"role": "user", "content": t}], "m") for t in texts] == texts
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("length", [1, 1_000_000], ids=["short", "longer than a pipe"])
def test_stopped_child_is_ended(monkeypatch, length):
    """Catches a stage that waits for ever, holding the lock, for a child that neither reads nor writes."""
    child = templates.Renderer()
    assert child.render("{{ 1 }}", {"messages": []}) == "1"  # its start takes longer than what follows, on a busy core
    assert child._process is not None
    monkeypatch.setattr(templates, "WALL_SECONDS", 0.5)
    os.kill(child._process.pid, signal.SIGSTOP)
    with limited(60), pytest.raises(templates.TemplateError, match=r"no text in 0\.5 s"):
        child.render(OPEN, {"messages": [{"content": "x" * length}]})
    monkeypatch.setattr(templates, "WALL_SECONDS", 60.0)
    assert child.render("{{ 2 }}", {"messages": []}) == "2"
    child._end()


def test_broken_template_stays_broken(tokenizer):
    """Catches a second call that sends a child for a template which it could not compile, and says AttributeError."""
    tokenizer.chat_template = "{% for %}"
    for text in "a", "b", "b":
        with pytest.raises(BadInput, match="TemplateSyntaxError"):
            render(tokenizer, [{"role": "user", "content": text}], "m")


def test_fork_while_another_thread_renders(tokenizer):
    """Catches a fork that inherits a lock which nobody in it can release."""
    child = templates.Renderer()
    assert child.render("{{ 1 }}", {"messages": []}) == "1"
    with child._lock:  # as a thread of this process that is in a call has it
        pid = os.fork()
        if not pid:
            signal.alarm(30)
            same = child.render("{{ 2 }}", {"messages": []}) == "2"
            child._end()
            os._exit(0 if same else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert child.render("{{ 3 }}", {"messages": []}) == "3"
    child._end()
