"""What mkdocs needs beyond docs/: pages that stand elsewhere in the repository, anchors as a code host makes them, and
a search that works from a folder.

Is not: text of its own. A page from elsewhere (README.md, tests/faults/README.md) is that very file, under
`repository/`; mkdocs.yml names it so. Links are those of a code host.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([\w./-]+)(#[\w-]*)?\)")
SEARCH = "assets/javascripts/search-from-a-folder.js"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors are a code host's; the script that the plugin `offline` would fetch gives way to ours."""
    config.mdx_configs["toc"]["slugify"] = lambda title, _separator: anchor(title)
    config.extra["polyfills"] = [SEARCH]
    return config


def anchor(title: str) -> str:
    """Of a heading's text: `The opponent's decoder` → `the-opponents-decoder`."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def uri_of(path: str) -> str:
    """Where the site has a page of the repository: docs/store.md → store.md, README.md → repository/README.md."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def target(page: str, link: str) -> str:
    """Where in the repository a link of a page of it leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README and the like, and every page that a page links to, wherever in the repository it stands."""
    waiting, known = [*TOP, *(f"docs/{file.src_uri}" for file in files.documentation_pages())], set[str]()
    while waiting:
        page = waiting.pop()
        if page in known or not (ROOT / page).is_file():
            continue
        known.add(page)
        text = (ROOT / page).read_text(encoding="utf-8")
        waiting += [at for link in LINK.finditer(text) if (at := target(page, link[3])).endswith(".md")]
    for page in sorted(known):
        if not page.startswith("docs/"):
            level = InclusionLevel.INCLUDED if page in TOP else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, uri_of(page), abs_src_path=str(ROOT / page), inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Each link as the site has it; to what the site does not show (a folder, a script) its text alone."""
    own = page.file.src_uri
    here = own.removeprefix("repository/") if own.startswith("repository/") else f"docs/{own}"

    def link(found: re.Match[str]) -> str:
        mark, text, place, heading = found.groups(default="")
        there = uri_of(target(here, place))
        if (ROOT / target(here, place)).exists() and there not in files.src_uris:
            return text
        return f"{mark}[{text}]({posixpath.relpath(there, posixpath.dirname(own) or '.')}{heading})"

    return LINK.sub(link, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """A browser starts no worker from a file that it opened from a folder; the search's is given to it as text."""
    site = Path(config.site_dir)
    (worker,) = site.glob("assets/javascripts/workers/search.*.min.js")
    text = json.dumps(worker.read_text(encoding="utf-8"))
    (site / SEARCH).write_text(
        'if (location.protocol === "file:") {\n'
        f"  const text = {text}, Own = Worker\n"
        "  Worker = function () { return new Own(URL.createObjectURL(new Blob([text]))) }\n"
        "}\n",
        encoding="utf-8",
    )
