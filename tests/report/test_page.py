"""The page fetches nothing and runs nothing but its own search, and nothing from outside gets into it as markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from spin_core.job import Entry
from spin_core.report.page import SCRIPT
from spin_core.report.run import sections
from spin_core.report.samples import SAMPLES
from spin_core.stages import report
from tests.places import entry as ledger_entry
from tests.report.made_up import full_run, judged_run, render

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
    """What a browser would load or run: tags and attributes that fetch, CSS url() and @import, event handlers. The
    report's own script, once, is none of it."""
    html = html.replace(f"<script>{SCRIPT}</script>", "", 1)
    loads = [f"css {hit}" for hit in re.findall(r"@import[^;]*|url\((?!#)[^)]*\)", html)]
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
            loads.append(f"<{tag}>")
        loads += [f"{tag} {name}" for name in attrs if name in FETCHING or name.startswith("on")]
        loads += [
            f"{tag} {value}"
            for name, value in attrs.items()
            if name in ("href", "xlink:href") and not value.startswith("#")
        ]
    return loads


def steps(text: str = "") -> list[Entry]:
    """A ledger; with `text` every text in it is that."""
    made = [
        ("generate", "iter 0, shard 1/2", "Cached", 3600.0),
        ("generate", "iter 0, shard 2/2", "Cached", 1240.4),
        ("report", "", "ran", 2.5),
    ]
    if text:
        made = [("reformat", text, text, 1.0), ("generate", text, text, 1.0)]
    return [
        ledger_entry(stage, label, text or "ab" * 32, state, took, text or "cd" * 32)
        for stage, label, state, took in made
    ]


def run_part(text: str = "") -> str:
    """The sections that a run adds to its page."""
    return sections(steps(text), lambda step: None, [{"kind": text, "hub": text, "commit": text, "digest": text}])


def test_page_full_run_fetches_and_runs_nothing_but_its_search(tmp_path):
    """Catches a page that loads a font, an image or a script, so that it is empty offline or lets someone know
    that it is read."""
    html = render(tmp_path / "out", *judged_run(tmp_path))[0].replace(report.STEPS_MARK, run_part())
    assert fetched(html) == []
    assert "http://" not in html and "https://" not in html
    assert html.count("<style") == 1  # a chart's own rules would hold for all of the page
    assert html.count("<script") == 1


def test_page_policy_allows_its_own_script_alone(tmp_path):
    """Catches a hash that is not the script's (the search is dead), and a policy that lets other scripts run."""
    html = render(tmp_path / "out", *full_run(tmp_path))[0]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == f"'sha256-{digest}'"
    assert rules["base-uri"] == rules["form-action"] == "'none'"


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
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
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
    page = html.replace(report.STEPS_MARK, run_part(HOSTILE))
    assert fetched(page) == []
    assert "49" not in Tags(page).text.split("Sample answers")[0].split("Models")[0]
    assert "<script" not in markdown and all(line.count(" | ") == 10 for line in markdown.split("\n\n")[0].splitlines())


def test_page_hostile_decisions_and_tasks_are_text(tmp_path):
    """Catches a gate's reason, an alarm, or a harness task's name that is markup on the page or in its Markdown."""
    inputs, config = judged_run(tmp_path, rates=(3, 4), controls=(), count=6)
    decision = json.loads((inputs["gate"][0] / "decision.json").read_text())
    decision |= {"outcome": HOSTILE, "reason": HOSTILE, "alarms": [HOSTILE], "metric": HOSTILE}
    (inputs["gate"][0] / "decision.json").write_text(json.dumps(decision))
    results = json.loads((inputs["harness"][0] / "results.json").read_text())
    task = results["tasks"]["winogrande"] | {"metric": HOSTILE, "dataset": {"revision": HOSTILE}}
    results |= {"tasks": {HOSTILE: task}, "lm_eval": HOSTILE, "preset": HOSTILE, "backend": HOSTILE}
    for tree in inputs["harness"]:
        (tree / "results.json").write_text(json.dumps(results))
    profile = {HOSTILE: {}, "overrides": {HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}, "1": {"finetune": {"lr": 1}}}}
    html, markdown, _ = render(tmp_path / "out", inputs, config.model_copy(update={"profile": profile}))
    assert fetched(html) == [] and html.count(report.STEPS_MARK) == 1
    assert "<script" not in markdown and "<img" not in markdown


def test_page_of_a_long_run_stays_small(tmp_path):
    """Catches a page that grows with the held-out set: 2,000 rows of long answers full of what is escaped."""
    inputs, config = judged_run(tmp_path, rates=(900, 1000, 1100), controls=(), count=2000)
    for tree in inputs["evaluate"]:
        rows = [json.loads(line) for line in (tree / "rows.jsonl").read_text().splitlines()]
        rows = [{**row, "greedy": row["greedy"] + '"<&' * 500, "prompt": '"' * 2000} for row in rows]
        (tree / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = render(tmp_path / "out", inputs, config)[0]
    count = html.count('<details class="sample"')
    assert len(html.encode()) < 2_000_000 and 12 < count <= SAMPLES
    assert f"Shown: {count}." in html and f"{count - 12} more samples" in html


def test_page_long_and_odd_text_is_cut_and_writable(tmp_path):
    """Catches a megabyte answer copied uncut into the page, and a lone surrogate or NUL that stops the file from being
    written."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    for tree in inputs["evaluate"]:
        rows = [
            {**json.loads(line), "greedy": "\ud800\x00\u202e" + "y" * 1_000_000}
            for line in (tree / "rows.jsonl").read_text().splitlines()
        ]
        (tree / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = render(tmp_path / "out", inputs, config)[0]
    assert len(html) < 300_000 and "998,803 more characters" in html
    assert not set("\x00\u202e") & set(html)
