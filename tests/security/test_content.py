"""Hostile content (S12) where it is shown, in report, comparison, UI pages, lineage, messages: stays text, and is
cut."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest

from spin_core.analysis.format import BIDI
from spin_core.analysis.results import read_model
from spin_core.analysis.run_comparison import compare
from spin_core.errors import BadInput, StageFailed
from spin_core.report import ui_pages
from spin_core.report.compare_page import page as comparison
from spin_core.report.compare_page import text as comparison_text
from spin_core.report.lineage import lineage
from spin_core.report.samples import samples
from spin_core.stages import report
from tests.faults.fault import Fault
from tests.places import entry as ledger_entry
from tests.report.made_up import gate_tree, judged_run, render
from tests.report.test_compare import model, rows, side
from tests.report.test_page import Tags, fetched
from tests.report.test_ui_pages import HOSTILE as MARKDOWN
from tests.report.test_ui_pages import assert_text_only
from tests.report.test_ui_pages import figures as made_up

S12 = Fault("S12", "prompts and answers of Markdown, HTML, JS, ANSI, bidi, NUL, 5 MB: report.html, report.md, UI pages")
S12_LABELS = Fault("S12", "the same as labels, run names, settings, notes, reasons of a gate: comparison, UI, lineage")
S12_MESSAGE = Fault("S12", "the same in the message of an error: nothing in it that a terminal obeys")

TEXTS = {
    **{f"Markdown {i}": text for i, text in enumerate(MARKDOWN)},
    "script": "</pre></details></title><script>alert(1)</script>",
    "handlers": '"><svg onload=alert(1)><a href="javascript:alert(1)">x</a><iframe src="//evil.example">',
    "attribute": "\" autofocus onfocus=alert(1) x=' onmouseover='alert(1)",
    "style": "<style>*{display:none}</style><link rel=stylesheet href=//evil.example>",
    "comment": "<!-- --><![CDATA[ ]]><?php ?><plaintext>",
    "template": "{{ 7*7 }}{% for x in ().__class__.__mro__ %}{% endfor %}{# #}",
    "entities": "&lt;script&gt; &#60;script&#62; &#x3c;script&#x3e; &lt",
    "colours": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\ \x9b2J",
    "screen": "\x1b[2J\x1b[H\x1bc\r\x08\x08\x7f\x1b[?1049h\x1bP+q\x1b\\",
    "directions": "\u202eevil\u202c \u2066a\u2069 \u200fb\u061c \u2067c",
    "nothing to see": "\u200b\u200d\ufeff\u2060\x00\x0b\x0c\x1c\x85\u2028\u2029",
    "half a surrogate": "a\ud800b",
    "5 MB": "<b>" * 1_700_000,
    "5 MB in lines": "| x |\n" * 900_000,
}

HEADING = re.compile(r"^### .*$", re.MULTILINE)
NOTHING = {"text": "", "rows": []}


def obeyed(text: str) -> list[str]:
    """The characters that move a cursor, colour a screen or turn a line around."""
    return sorted({hex(ord(c)) for c in text if (unicodedata.category(c) in ("Cc", "Cs") and c != "\n") or c in BIDI})


def assert_page_is_safe(html: str, size: int) -> None:
    assert not fetched(html) and not obeyed(html.replace("\t", "")) and len(html) < size
    assert not {tag for tag, _ in Tags(html).tags} & {"plaintext", "marquee", "blink"}
    assert html.rstrip().endswith("</html>")


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> tuple[dict, report.Config, str, set[str]]:
    """A report's inputs, of more rows than there are texts, its config, its page, and the headings of the UI's."""
    place = tmp_path_factory.mktemp("calm")
    inputs, config = judged_run(place, count=len(TEXTS) + 5, rates=(5, 7), controls=())
    html, _, figures = render(place / "out", inputs, config)
    return inputs, config, html, set(HEADING.findall(ui_pages.iterations(figures, "r")))


def test_hostile_answers_are_text_in_report_and_ui(calm, tmp_path):
    """Catches a template without escapes, a cell that is not cut, and a control character that reaches report.md, which
    is printed on a terminal."""
    inputs, config, calm_html, _ = calm
    for tree in inputs["evaluate"]:
        file = tree / "rows.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line, text in zip(lines, TEXTS.values(), strict=False):
            line |= dict.fromkeys(("prompt", "real", "greedy", "sampled"), text)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html, markdown, figures = render(tmp_path / "out", inputs, config)
    assert_page_is_safe(html, 2_000_000)
    assert Counter(tag for tag, _ in Tags(html).tags) == Counter(tag for tag, _ in Tags(calm_html).tags), "markup"
    assert not obeyed(markdown) and "<b><b>" not in markdown
    model = read_model("θ_0", "start", -1, inputs["evaluate"][0], None, None)

    def trial(name: str) -> None:
        held = {key: row for key, row in model.answers.items() if row["prompt"] == TEXTS[name]}
        assert held, "the report had no such row"
        shown = samples([replace(model, answers=held)])
        for page in (ui_pages.answers(shown), ui_pages.decision(figures, shown, 0, 2)):
            assert_text_only(page)
            assert not obeyed(page) and len(page) < 20_000

    S12.each(TEXTS, trial)


def test_hostile_names_are_text_everywhere(calm, tmp_path):
    """Catches a label, a setting or a reason that is markup, or that a terminal obeys when `spinloop compare` or
    `spinloop report` prints it."""
    inputs, config, _, headings = calm
    settings = {f"k{i} {text[:40]}": text[:20_000] for i, text in enumerate(TEXTS.values())}
    every = " ".join(text[:99] for text in TEXTS.values())
    labelled = config.rows[-1].model_copy(update={"label": every[:1000]})
    update = {"name": every, "profile": settings, "rows": [*config.rows[:-1], labelled]}
    gates = [gate_tree(tmp_path / f"gate{i}", every, 1, every, [every]) for i in range(2)]
    html, markdown, figures = render(tmp_path / "out", {**inputs, "gate": gates}, config.model_copy(update=update))
    assert_page_is_safe(html, 2_000_000)
    assert not obeyed(markdown)
    for page in (ui_pages.iterations(figures, every, every), ui_pages.decision(figures, NOTHING, 0, 2)):
        assert set(HEADING.findall(page)) <= headings
        assert_text_only(HEADING.sub("", page))
        assert not obeyed(page) and len(page) < 30_000

    def trial(name: str) -> None:
        text = TEXTS[name]
        one = model("x" + text[:2000], rows(60), prompt=text, real=text, greedy=text)
        made = compare(side("a" + text[:2000], one), side("b", one, seed=text, **{f"k{text[:50]}": text}))
        assert_page_is_safe(comparison(made), 200_000)
        assert not obeyed(comparison_text(made)) and len(comparison_text(made)) < 50_000
        page = ui_pages.iterations(made_up("x" + text, "x" + text, "x" + text, nll=1.5), text, text)
        assert_text_only(page)
        assert not obeyed(page) and len(page) < 30_000
        entry = ledger_entry("reformat", text, "k", text, 1.0, text, summary={"train_rows": text})
        drawn = lineage([entry], lambda step: {text: text})
        assert not obeyed(drawn) and "<script" not in drawn and len(drawn) < 5_000

    S12_LABELS.each(TEXTS, trial)


def test_hostile_messages_are_printed_escaped():
    """Catches an error that sends a colour, a title or a turned line to the terminal."""

    def trial(name: str) -> None:
        assert str(BadInput(TEXTS[name][:1000])).isprintable()
        assert not obeyed(str(StageFailed(TEXTS[name][:1000])).replace("\t", ""))

    S12_MESSAGE.each(TEXTS, trial)


def test_what_is_obeyed_is_seen():
    """Catches checks of this file that see nothing."""
    assert obeyed("a\x1b[31m\u202e\ud800\x9b") and not obeyed("a\nb é 😀")
    with pytest.raises(AssertionError):
        assert_page_is_safe("<script>1</script></html>", 100)
