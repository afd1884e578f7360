"""The page fetches and runs nothing, and nothing from outside gets into it as markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from spin_core.stages import report
from tests.report.made_up import render, whole_run

HOSTILE = (
    "</pre></title><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} ]]> & \" ' $\\frac{ | `x` "
    + report.STEPS_MARK
)


FETCHING = {"src", "srcset", "action", "data", "poster", "background", "formaction", "ping", "cite", "manifest"}


class Tags(HTMLParser):
    """Every start tag of a page with its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def fetched(html: str) -> list[str]:
    """What a browser would load or run: tags and attributes that fetch, CSS url() and @import, event handlers."""
    found = [f"css {hit}" for hit in re.findall(r"@import[^;]*|url\((?!#)[^)]*\)", html)]
    for tag, attrs in Tags(html).tags:
        if tag in {
            "script",
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "video",
            "audio",
            "foreignobject",
        }:
            found.append(f"<{tag}>")
        found += [f"{tag} {name}" for name in attrs if name in FETCHING or name.startswith("on")]
        found += [
            f"{tag} {value}"
            for name, value in attrs.items()
            if name in ("href", "xlink:href") and not value.startswith("#")
        ]
    return found


def steps() -> list[dict]:
    common = {"key": "ab" * 32, "digest": "cd" * 32}
    return [
        {"stage": "generate", "label": "generate [iteration 0] 1/2", "state": "Cached", "seconds": 3600.0, **common},
        {"stage": "generate", "label": "generate [iteration 0] 2/2", "state": "Cached", "seconds": 1240.4, **common},
        {"stage": "report", "label": "report", "state": "ran", "seconds": 2.5, **common},
    ]


def test_page_whole_run_fetches_and_runs_nothing(tmp_path):
    """Catches a page that loads a font, an image or a script, so that it is empty offline or tells someone that it is
    read."""
    html = render(tmp_path / "out", *whole_run(tmp_path))[0].replace(report.STEPS_MARK, report.steps_table(steps()))
    assert fetched(html) == []
    assert "http://" not in html and "https://" not in html
    assert html.count("<style") == 1  # a chart's own rules would hold for the whole page


def test_fetched_each_way_to_load_is_seen():
    """Catches a `fetched` that sees nothing, with which the test above would always pass."""
    for bad in (
        "<script src=a>",
        "<link href=b>",
        "<img src=c>",
        "<p onclick=d>",
        "<use href='http://e'>",
        "<style>a{b:url(c)}</style>",
    ):
        assert fetched(bad), bad


def test_page_hostile_text_everywhere_is_shown_as_text(tmp_path):
    """Catches a field that reaches the page unescaped: label, name, profile, prompt, real and generated answers,
    steps."""
    inputs, config = whole_run(tmp_path, rates=(3, 4), controls=(), count=6)
    for tree in inputs["evaluate"]:
        rows = [json.loads(line) for line in (tree / "rows.jsonl").read_text().splitlines()]
        rows = [
            {**row, "prompt": HOSTILE, "real": HOSTILE, "greedy": HOSTILE, "id": row["id"] + HOSTILE} for row in rows
        ]
        (tree / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [row.model_copy(update={"label": HOSTILE}) for row in config.rows]
    html, markdown, _ = render(
        tmp_path / "out",
        inputs,
        config.model_copy(update={"name": HOSTILE, "profile": {HOSTILE: HOSTILE}, "rows": rows}),
    )
    assert html.count(report.STEPS_MARK) == 1
    table = report.steps_table(
        [dict.fromkeys(("stage", "label", "key", "state", "digest"), HOSTILE) | {"seconds": None}]
    )
    page = html.replace(report.STEPS_MARK, table)
    assert fetched(page) == []
    assert "49" not in Tags(page).text.split("Sample answers")[0].split("Models")[0]
    assert "<script" not in markdown and all(line.count(" | ") == 10 for line in markdown.split("\n\n")[0].splitlines())


def test_page_long_and_odd_text_is_cut_and_writable(tmp_path):
    """Catches a megabyte answer copied whole into the page, and a lone surrogate or NUL that stops the file from being
    written."""
    inputs, config = whole_run(tmp_path, rates=(3, 4), controls=(), count=6)
    for tree in inputs["evaluate"]:
        rows = [
            {**json.loads(line), "greedy": "\ud800\x00\u202e" + "y" * 1_000_000}
            for line in (tree / "rows.jsonl").read_text().splitlines()
        ]
        (tree / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = render(tmp_path / "out", inputs, config)[0]
    assert len(html) < 200_000 and "998,803 more characters" in html
    assert not set("\x00\u202e") & set(html)


def test_steps_table_totals_count_cached_seconds_as_saved():
    """Catches savings that include what ran now, and key or label columns swapped."""
    text = " ".join(Tags(report.steps_table(steps())).text.split())
    assert "2 of 3 steps were cached, which saved 1 h 21 min; the others took 2.5 s." in text
    assert "generate [iteration 0] 1/2 generate Cached 1 h 0 min abababababab cdcdcdcdcdcd" in text


def test_steps_table_nothing_cached_or_empty_says_so():
    """Catches "saved 0 s" or a division by the number of steps."""
    assert "<p>0 of 1 steps were cached; the others took 2.5 s.</p>" in report.steps_table(steps()[2:])
    assert "<p>0 of 0 steps were cached.</p>" in report.steps_table([])
