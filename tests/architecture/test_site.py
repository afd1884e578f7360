"""The pages, on a code host and as the docs site: their links lead somewhere, and mkdocs.yml names each of them.

No mkdocs and no network: what only a build shows, `make docs` shows, in which a warning is an error.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.architecture.scan import ROOT, tracked_files

TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
MARKDOWN = MarkdownIt("commonmark").enable("table")


def pages() -> dict[Path, str]:
    """Every Markdown page of the repository, with its text."""
    return {file: file.read_text(encoding="utf-8") for file in tracked_files() if file.suffix == ".md"}


def _inner(text: str) -> list[Token]:
    return [inner for token in MARKDOWN.parse(text) for inner in (token, *(token.children or ()))]


def links(text: str) -> list[str]:
    """Where a page's links and pictures lead, those on the same page and of no other site."""
    found = [str(one.attrs.get("href") or one.attrs.get("src") or "") for one in _inner(text)]
    return [unquote(target) for target in found if target and not re.match(r"[a-z][a-z+.-]*:|//", target)]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as code hosts make them: the second heading of a name ends in -1."""
    tokens, made, count = MARKDOWN.parse(text), set[str](), dict[str, int]()
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            title = "".join(part.content for part in token.children or () if part.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
            count[name] = count.get(name, -1) + 1
            made.add(f"{name}-{count[name]}" if count[name] else name)
    return made


def broken(pages: dict[Path, str]) -> list[str]:
    """Links that lead to no file, to no heading, or out of the repository."""
    bad = []
    for page, text in pages.items():
        for target in links(text):
            place, _, heading = target.partition("#")
            file = (page.parent / place).resolve() if place else page
            there = (file in pages or file.exists()) and file.is_relative_to(ROOT)
            if not there or (heading and heading not in anchors(pages.get(file, ""))):
                bad.append(f"{page.relative_to(ROOT)}: {target}")
    return bad


def test_links_of_the_pages_lead_somewhere():
    """Catches a link to a page, a file or a heading that is not there."""
    every = pages()
    assert {ROOT / name for name in TOP} <= every.keys() and sum(len(links(text)) for text in every.values()) > 80
    assert not broken(every)


def test_broken_links_are_seen():
    """Catches a check that sees no link of a list, a table or a picture, one in a code block, or no missing heading."""
    page, other = ROOT / "docs" / "made-up.md", ROOT / "docs" / "other.md"
    text = (
        "# A\n- [x](nowhere.md)\n\n| a |\n|---|\n| [y](../README.md#no-such) ![z](none.svg) [out](../../x.md) |\n\n"
        "[own](#a) [page](other.md#the-opponents-decoder-1) [not](other.md#b) [host](https://x.org/nowhere.md)\n\n"
        "```\n[code](gone.md)\n```\n`[code](gone.md)` [ref]\n\n[ref]: absent.md\n"
    )
    twice = "## The opponent's decoder\n## The `opponent's` decoder\n```\n# b\n```\n"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    seen = broken({page: text, other: twice, ROOT / "README.md": readme})
    seen = [one.partition(": ")[2] for one in seen if one.startswith("docs/made-up.md")]
    to_no_file = ["nowhere.md", "../README.md#no-such", "none.svg", "../../x.md"]
    assert seen == [*to_no_file, "other.md#b", "absent.md"]
    assert anchors(twice) == {"the-opponents-decoder", "the-opponents-decoder-1"}


def nav() -> list[str]:
    """The pages that mkdocs.yml names, in order, by their paths in the repository."""
    waiting, found = [yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]], list[str]()
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, str):
            found.append(one.removeprefix("repository/") if one.startswith("repository/") else f"docs/{one}")
        else:
            waiting[:0] = one.values() if isinstance(one, dict) else one
    return found


def test_every_page_is_in_the_sites_navigation_once():
    """Catches a new page that no reader of the site is led to, and an entry whose page is gone."""
    own = {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")}
    assert sorted(nav()) == sorted({*own, *TOP})
