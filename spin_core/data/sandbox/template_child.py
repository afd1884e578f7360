"""A chat template rendered under limits, in a process of its own: `python -P template_child.py`.

Templates come with models, so they are code of strangers: jinja's sandbox keeps them from Python's attributes, and the
limits here from endless loops, gigabytes and files. Needs jinja2 only, so that it starts in a tenth of a second.
What a template can use is what transformers gives it (tests/security/test_templates.py compares the two), but for
jinja's `random` and `lipsum`: a prompt that differs each time could not be scored as it was sampled.

In: JSON lines `{"template", "variables", "each"}`; each of `each` are variables of one text more. Out: a list of
`{"text"}` or `{"error"}`, one of each.
A rendering that takes too long ends the process with SIGPROF: only the kernel can stop a loop inside of C.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2.0
MEMORY = 512 << 20  # addresses; the interpreter with jinja2 has 50 MiB of them
# Characters that a template may add to a conversation of any length; the longest of the hub's instruct models add
# 10,000 (they explain tools).
ADDED = 1 << 20
ERROR = 400


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text; its text is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        """The marked part, as a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def environment() -> ImmutableSandboxedEnvironment:
    """What a template is compiled in."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _refuse
    # A template that writes today's date (Llama 3.2 does) would make answers and log-probs depend on the day of the
    # run; the day here is the one that template falls back to.
    made.globals["strftime_now"] = datetime(2024, 7, 26).strftime
    del made.filters["random"], made.globals["lipsum"]
    return made


class Refused(Exception):
    """What is wrong with a text."""


def render(template: Any, variables: dict[str, Any]) -> str:
    """The text. Raises Refused where it is longer than the conversation and ADDED characters, and what the template
    raises."""
    most = ADDED + sum(len(str(turn.get("content"))) for turn in variables["messages"])
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > most:
            raise Refused(f"it writes over {ADDED:,} characters more than the conversation has")
    text = "".join(parts)
    text.encode()
    return text


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _limit() -> None:
    """No files, no core dump, bounded addresses (where the system keeps such a limit)."""
    for name, most in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, whose end closes our input


def main() -> None:
    """Serve until standard input ends."""
    compiled = lru_cache(maxsize=1)(environment().from_string)
    _limit()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        request = json.loads(line)
        answers = [_answer(compiled, request["template"], request["variables"] | own) for own in request["each"]]
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(compiled: Any, template: str, variables: dict[str, Any]) -> dict[str, str]:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # the limit is one text's
    try:
        return {"text": render(compiled(template), variables)}
    except Refused as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"it needs over {MEMORY >> 20} MiB of memory"}
    except UnicodeEncodeError:
        return {"error": "it writes half of a surrogate pair, which is not text"}
    except Exception as error:  # a template is free to raise anything
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:ERROR]}"}


if __name__ == "__main__":
    main()
