"""How much of the pages is run, how much checked without running it, and what is marked, by need: `python -m
tests.docs.counts`, and the last lines of a test run."""

from __future__ import annotations

from collections import Counter

from tests.docs import blocks
from tests.docs.blocks import NEEDS
from tests.docs.commands import said_and_run


def lines() -> list[str]:
    """The counts as sentences."""
    shown = blocks.blocks()
    languages = Counter(one.language for one in shown)
    typed = [(one, command) for one in shown for command in one.commands if one.language == "bash"]
    marked = Counter(need for one, command in typed for need in one.needed_by(command)[:1])
    run = len(typed) - sum(marked.values())
    python = Counter("marked" if one.needs else "part" if one.title else "run" for one in blocks.of("python"))
    names = ", ".join(f"{count} {need} ({NEEDS[need][0]})" for need, count in marked.most_common())
    return [
        f"{len(shown)} blocks on {len({one.page for one in shown})} pages: "
        + ", ".join(f"{count} {language}" for language, count in languages.most_common()),
        f"commands in blocks: {len(typed)} checked by parser and file, {run} run, {sum(marked.values())} marked",
        f"marked by need: {names}",
        f"commands in sentences: {len(blocks.inline())} checked by parser and file, {len(said_and_run())} of them run",
        f"YAML: {languages['yaml']} validated as profiles",
        f"Python: {python['run']} run, {python['part']} put into a copy of the code and run, {python['marked']} marked",
    ]


if __name__ == "__main__":
    print(*lines(), sep="\n")
