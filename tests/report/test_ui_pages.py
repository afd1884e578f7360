"""The Markdown that Prefect's UI shows: as a parser reads it, a run's content is nothing in it but text."""

from __future__ import annotations

import base64
import math
import re
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from spin_core.analysis.format import escape_markdown, markdown_table, plain
from spin_core.analysis.results import ModelResults, read_model
from spin_core.analysis.summary import model_row
from spin_core.job import Entry
from spin_core.report import ui_pages
from spin_core.report.charts import Chart, draw_all
from spin_core.report.lineage import lineage
from spin_core.report.samples import samples
from tests.places import entry as ledger_entry
from tests.report.made_up import full_run, judged_run, render

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# What GitHub's Markdown, which the UI adds, makes a link of in bare text.
BARE_LINK = re.compile(r"(?i)(https?|ftp|mailto|xmpp):[^\u2060\s]|www\.|[-.\w+]@[-\w]")
OURS = {"paragraph", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item", "strong"}
HOSTILE = [
    "[x](javascript:alert(1))",
    "![x](http://evil.example/p.png)",
    "<img src=x onerror=alert(1)><br><script>1</script>",
    "a | b | c\n| --- | --- |\n",
    '```mermaid\nclick A href "http://evil.example"\n```',
    "http://evil.example www.evil.example me@evil.example <http://evil.example>",
    "[a]: http://evil.example\n\n[a]",
    "# h\n- l\n> q",
    "__init__ *b* ~~s~~ `c` $x$ [^1] {a}",
    "\u202eright to left\u2066 \x00\x1b[31m\x07",
    "&lt;b&gt; &#60;i&#62; &amp; \\[x\\](y) \\\\| \\`",
    "| " * 50,
    "a" * 70 + "http://evil.example/" + "b" * 90,
]
SVG = "{http://www.w3.org/2000/svg}"
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(alphabet=st.sampled_from(list("ab1 \n|`[]()<>!*_~#\\&;:/.@\"'-=+{}$^\u202e\x00wθ😀")), max_size=60),
    st.lists(st.sampled_from(HOSTILE), max_size=3).map(" ".join),
)


def tokens(page: str) -> list[Token]:
    """Every token of a page, those inside of lines too."""
    return [one for token in PARSER.parse(page) for one in (token, *(token.children or []))]


def assert_text_only(page: str) -> None:
    for token in tokens(page):
        kind = token.type.removesuffix("_open").removesuffix("_close")
        allowed = kind in OURS | {"inline", "text", "text_special", "softbreak", "em", "code_inline"}
        assert allowed or (kind == "html_inline" and token.content == "<br>"), (kind, token.content)
    for token in PARSER.parse(page):
        children = token.children or []
        # As the UI reads it: neighbouring texts are one, escapes and entities undone.
        shown = "".join(t.content if t.type in ("text", "text_special") else "\n" for t in children)
        assert not BARE_LINK.search(shown), shown


def cells(page: str) -> list[str]:
    """The text that each cell of a page's tables shows."""
    flat = PARSER.parse(page)
    inside = [flat[i + 1] for i, token in enumerate(flat) if token.type in ("td_open", "th_open")]
    return [
        re.sub(
            "[\u2060\u200b]", "", "".join("\n" if t.type == "html_inline" else t.content for t in one.children or [])
        )
        for one in inside
    ]


def one_line(text: str, limit: int) -> str:
    return " ".join(plain(text, limit).replace("\u2060", "").split())


def sample(prompt: str, real: str, old: str, new: str, tag: str = "gained", label: str = "θ_1") -> dict:
    answers = [{"label": name, "text": text, "mark": "", "nll": ""} for name, text in (("θ_0", old), (label, new))]
    return {"tag": tag, "prompt": prompt, "real": real, "answers": answers}


@given(texts, texts, texts, texts)
def test_answers_are_shown_as_they_are(prompt: str, real: str, old: str, new: str) -> None:
    """Catches a text that becomes a link, an image, HTML or emphasis, that breaks the table, or that is not what the
    model answered."""
    page = ui_pages.answers({"text": "2 rows.", "rows": [sample(prompt, real, old, new)] * 2})
    assert_text_only(page)
    shown = [one_line(text, ui_pages.CELL) or "(empty)" for text in (prompt, real, old, new)]
    assert cells(page) == ["prompt", "real", "θ_0", "θ_1", *shown, *shown]


def test_no_word_is_wider_than_a_column() -> None:
    """Catches a table that lies over the rest of the UI's page, as it did with an answer of one long word."""
    page = ui_pages.answers({"text": "", "rows": [sample("a" * 150, "|" * 150, "b", "c")]})
    words = re.split("[ \u200b]", page.splitlines()[-1].replace("\\", ""))
    assert max(map(len, words)) == 16


def figures(label: str = "θ_1", note: str = "n", sentence: str = "s", **values: object) -> dict:
    row: dict = {
        "label": label, "kind": "iteration", "iteration": 0, "rows": 9, "greedy": None, "sampled": None, "nll": None,
        "margin": None, "accuracy": None, "steps": None, "pairs": None,
        "delta": {"greedy": None, "sampled": None, "nll": None},
    }  # fmt: skip
    return {"name": "run", "sentence": sentence, "notes": [note], "rows": [row | values]}


@given(texts, texts, texts, texts)
def test_labels_and_notes_are_text(label: str, note: str, sentence: str, path: str) -> None:
    """Catches a label, a note, a sentence or a path that is markup on the pages with figures, and in the form."""
    made = figures("x" + label, "x" + note, "x" + sentence, nll=1.5)
    assert_text_only(ui_pages.iterations(made, path, path))
    assert_text_only(ui_pages.pairs(figures("x" + label, quality={"rows": 9.0})["rows"]))
    assert_text_only(ui_pages.decision(made, {"text": note, "rows": [sample(note, label, path, note)]}, 1, 3))


@given(texts, texts, texts)
def test_decision_of_the_gate_is_shown_as_text(outcome: str, best: str, reason: str) -> None:
    """Catches a gate's word that is missing on the page and in the form, or is markup there, and a best model that no
    star marks."""
    made = figures(nll=1.5, best=True) | {"decision": {"outcome": "x" + outcome, "best": "x" + best, "reason": reason}}
    for page in (ui_pages.iterations(made, "r"), ui_pages.decision(made, {"text": "", "rows": []}, 1, 3)):
        assert_text_only(page)
        assert "Gate: **x" in page and "θ\\_1 ★ |" in page
    assert "Gate" not in ui_pages.iterations(figures(), "r") and "★ |" not in ui_pages.iterations(figures(), "r")


def test_other_tables_are_on_the_page(tmp_path) -> None:
    """Catches measures that the report shows and the UI does not, a table wider than the page, and a page too large for
    its server."""
    made = render(tmp_path / "out", *judged_run(tmp_path))[2]
    page = ui_pages.iterations(made, "r", "n")
    for title in ("Against the opponents", "Style of the answers", "Harness"):
        assert f"### {title}" in page
    assert "### Pair quality" not in page and len(page) < 20_000
    tables = re.findall(r"^\| (.*) \|\n\| :--(.*) \|$", page.partition("### ")[2] + ui_pages.pairs(made["rows"]), re.M)
    assert max(rule.count("|") for _, rule in tables) <= 5 < len(tables)
    assert all(title in page for title in ("margin", "same answers", "length", "repetition", "distinct"))
    assert_text_only(page.replace("### ", ""))


def test_figures_that_are_none_or_not_finite_are_dashes() -> None:
    """Catches `nan`, `inf` and `None` before a person's eyes, and a figure that is lost."""
    quality = {"rows": 1200, "pairs": math.inf, "empty": math.nan, "real_characters_mean": "x"}
    row = model_row(ModelResults("θ_1", "iteration", 0, quality={"train": quality}), None)
    assert cells(ui_pages.pairs([row])) == ["model", "answers", "θ_1", "1,200"] and ui_pages.pairs([]) == ""
    assert cells(ui_pages.table(figures(nll=0.5)["rows"])) == ["model", "NLL", "θ_1", "0.500"]


class Made(NamedTuple):
    """A made-up run of two iterations: report.html and report.json, the samples of its last two models, and the charts
    as the pages draw them."""

    page: str
    figures: dict
    shown: dict
    charts: list[Chart]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    root = tmp_path_factory.mktemp("ui")
    inputs, config = full_run(root)
    page, _, figures = render(root / "out", inputs, config)
    models = [
        read_model(row.label, row.kind, row.iteration, inputs["evaluate"][row.evaluate], finetune, None)
        for row, finetune in zip(config.rows, [None, *inputs["finetune"][:2]], strict=False)
    ]
    return Made(page, figures, samples(models[1:]), draw_all(models, figures["rows"]))


def test_curves_are_the_reports_pictures(made) -> None:
    """Catches pictures that no browser draws (no name space, no size, colours that are the report page's alone), one
    that is missing or is not the report's, and a page that is too large for the server."""
    page = ui_pages.curves(made.charts)
    pictures = re.findall(r"!\[[^\]]+\]\(data:image/svg\+xml;base64,([^)]+)\)", page)
    assert len(pictures) == made.page.count("<figure ") == page.count("### ") == 8
    assert all(chart.svg in made.page for chart in made.charts)
    for picture in pictures:
        root = ElementTree.fromstring(base64.b64decode(picture))
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
        for used in re.findall(r"var\(--(\w+)\)", ElementTree.tostring(root, encoding="unicode")):
            assert f"--{used}:#" in str(root.get("style"))
    assert len(page) < ui_pages.PICTURES
    many = ui_pages.curves(made.charts * 3)
    assert ui_pages.PICTURES / 2 < len(many) < ui_pages.PICTURES + 200 and many.endswith("the report has it.")


def test_answers_show_gains_and_losses_by_turns(made) -> None:
    """Catches a page with nothing but rows that became right: the report lists those first."""
    page = ui_pages.answers(made.shown)
    assert [row.count("✓") for row in page.splitlines()[4:]] == [1] * ui_pages.SAMPLES
    after = [row.split("|")[4].strip()[0] for row in page.splitlines()[4:]]
    assert after == ["✓", "✗"] * (ui_pages.SAMPLES // 2)
    assert "Shown" not in page and ui_pages.answers({"text": "", "rows": []}) == ""


def test_form_is_short_and_says_what_to_decide(made) -> None:
    """Catches a form without the verdict, the table or what its two answers do, and one that is too long to read."""
    page = ui_pages.decision(made.figures, made.shown, 2, 3)
    assert (
        "iteration 2" in page and "*go on*" in page and "*stop here*" in page and made.figures["sentence"][:20] in page
    )
    assert len(cells(page)) > 40
    long = dict(made.figures, notes=["x" * 900] * 50, rows=made.figures["rows"] * 30)
    assert len(ui_pages.decision(long, made.shown, 2, 3)) <= ui_pages.DECISION
    assert len(ui_pages.iterations(long, "r", "n")) < 20_000


# --- lineage ----------------------------------------------------------------------------


def ledger(iterations: int, shards: int = 2, of_text: bool = False) -> tuple[list[Entry], dict[str, dict]]:
    """The steps of a run on a dataset and a model from outside, and by key what each read; `of_text`: its pairs are
    tokenized from their texts."""
    steps, reads = [], {}

    def add(stage: str, label: str, inputs: dict, state: str = "ran") -> str:
        entry = ledger_entry(
            stage, label, f"{stage} {label}", state, 1.0, f"{len(steps):064x}", summary={"train_pairs": 40}
        )
        steps.append(entry)
        reads[entry.key] = inputs
        return entry.digest

    rows = add("reformat", "", {"source": "d" * 64}, "Cached")
    tokens = add("tokenize", "", {"rows": rows, "tokenizer": "k" * 64}, "Cached")
    theta = add("sft", "θ_0", {"model": "m" * 64, "tokens": tokens}, "Cached")
    add("sft", "instead of 1 iter", {"model": theta, "tokens": tokens})
    old: list[str] = []
    for t in range(iterations):
        made = [
            add("generate", f"iter {t}, shard {i}/{shards}", {"model": theta, "prompts": "p" * 64})
            for i in range(1, shards + 1)
        ]
        pairs = [*old[-1:], add("gather", f"iter {t}", {"rows": rows, "tokens": tokens, "answers": made})]
        read = pairs
        if of_text:
            reads_of = [{"pairs": p, "tokenizer": "k" * 64} for p in pairs]
            read = [add("tokenize", f"iter {t}, pairs {i}", one) for i, one in enumerate(reads_of)]
        logps = [add("score", f"iter {t}, pairs {i}", {"model": theta, "pairs": p}) for i, p in enumerate(read)]
        theta = add("finetune", f"iter {t}", {"model": theta, "pairs": read, "logps": logps})
        add("evaluate", f"θ_{t + 1}", {"model": theta, "rows": rows, "tokens": tokens})
        old = pairs
    return steps, reads


def drawn(page: str) -> tuple[list[str], set[tuple[str, str]]]:
    """Titles of the nodes, and the edges between titles, of the table below the picture."""
    flat = cells(page)
    rows = [flat[i : i + 3] for i in range(3, len(flat), 3)]
    return [row[0] for row in rows], {(made_of, row[0]) for row in rows for made_of in row[2].split("\n") if made_of}


def svg_of(page: str) -> ElementTree.Element:
    (data,) = re.findall(r"\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", page)
    return ElementTree.fromstring(base64.b64decode(data))


@pytest.mark.parametrize("of_text", [False, True])
def test_lineage_has_the_edges_of_the_records(of_text: bool) -> None:
    """Catches an edge that no step read, a missing one (the pairs of the iteration before; what is read as tokens), and
    nodes for what no model is made of."""
    steps, reads = ledger(2, of_text=of_text)
    page = lineage(steps, lambda step: reads[step.key])
    nodes, edges = drawn(page)
    rows = "– rows, – held out"
    assert edges == {
        ("source", rows), ("model", "θ_0"), (rows, "θ_0"), (rows, "answers of θ_0"), ("θ_0", "answers of θ_0"),
        ("answers of θ_0", "pairs_0, 40"), ("θ_0", "θ_1"), ("pairs_0, 40", "θ_1"), (rows, "answers of θ_1"),
        ("θ_1", "answers of θ_1"), ("answers of θ_1", "pairs_1, 40"), ("θ_1", "θ_2"), ("pairs_0, 40", "θ_2"),
        ("pairs_1, 40", "θ_2"),
    }  # fmt: skip
    assert len(nodes) == 10
    assert "| 2 shards · ran |" in page
    picture = svg_of(page)
    boxes = picture.findall(f"{SVG}rect")
    fills = [box.attrib["fill"] for box in boxes]
    assert (len(fills), fills.count("#e2f4ea"), sum("stroke-dasharray" in box.attrib for box in boxes)) == (10, 2, 2)
    assert len(picture.findall(f"{SVG}path")) == len(edges)
    assert {text.text for text in picture.findall(f"{SVG}text")} >= {*nodes, "2 shards · ran"}


def corners(box: ElementTree.Element) -> tuple[float, float, float, float]:
    x, y, width, height = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def points(path: ElementTree.Element) -> list[tuple[float, float]]:
    """Points of a curve, close to each other."""
    numbers = [float(one) for one in re.findall(r"-?[\d.]+", path.attrib["d"])]
    *_, (x, y) = [(0.0, 0.0), (numbers[0], numbers[1])]
    curve, at = [(x, y)], 2
    for letter in re.findall("[CL]", path.attrib["d"]):
        given = numbers[at : at + (6 if letter == "C" else 2)]
        at += len(given)
        (x1, y1, x2, y2, x3, y3) = given if letter == "C" else (x, y, *given, *given)
        for i in range(1, 21):
            u, v = i / 20, 1 - i / 20
            curve.append(tuple(  # type: ignore[arg-type]
                v**3 * a + 3 * v * v * u * b + 3 * v * u * u * c + u**3 * d
                for a, b, c, d in ((x, x1, x2, x3), (y, y1, y2, y3))
            ))  # fmt: skip
        x, y = x3, y3
    return curve


@pytest.mark.parametrize("iterations", [1, 2, 4, 100])
def test_lineage_can_be_read(iterations: int) -> None:
    """Catches boxes that lie over each other or outside of the picture, a line through a box, and one that goes up."""
    steps, reads = ledger(iterations)
    picture = svg_of(lineage(steps, lambda step: reads[step.key]))
    width, height = (float(picture.attrib[name]) for name in ("width", "height"))
    boxes = [corners(box) for box in picture.findall(f"{SVG}rect")]
    assert all(left >= 0 and top >= 0 and right <= width and low <= height for left, top, right, low in boxes)
    for i, (left, top, right, low) in enumerate(boxes):
        assert not [b for b in boxes[:i] if left < b[2] and b[0] < right and top < b[3] and b[1] < low]
    for path in picture.findall(f"{SVG}path"):
        curve = points(path)
        assert curve[0][1] < curve[-1][1]
        for left, top, right, low in boxes:
            assert not [p for p in curve if left < p[0] < right and top + 0.1 < p[1] < low - 0.1]


def test_lineage_of_a_hundred_iterations_is_one_page() -> None:
    """Catches a diagram of a hundred rows, and a gap that is not drawn."""
    steps, reads = ledger(100, shards=30)
    page = lineage(steps, lambda step: reads[step.key])
    nodes, edges = drawn(page)
    assert len(page) < 40_000 and float(svg_of(page).attrib["height"]) < 2500
    assert len(nodes) == 4 + 5 * 3 + 1 and len(edges) < 60
    assert ("…", "answers of θ_97") in edges and ("pairs_1, 40", "…") in edges and "θ_100" in nodes


@given(texts)
def test_lineage_takes_no_syntax_from_names(text: str) -> None:
    """Catches a name or a figure that ends a node's text, a line or the picture."""
    entry = ledger_entry("reformat", text, "k", text, 1.0, text, summary={"train_rows": text})
    page = lineage([entry], lambda step: {text: text})
    picture = svg_of(page)
    assert {one.tag.removeprefix(SVG) for one in picture.iter()} == {"svg", "defs", "marker", "path", "rect", "text"}
    assert not [name for one in picture.iter() for name in one.attrib if name.startswith("on") or "href" in name]
    assert_text_only(page.partition(")\n")[2])


def test_lineage_of_nothing() -> None:
    """Catches a failure of a run whose ledger has no model yet."""
    assert lineage([], lambda step: {}) == "No model has been made yet."


@given(st.lists(st.text("ab|\\ é", max_size=30), min_size=2, max_size=12), st.integers(1, 4))
def test_wide_tables_are_parts_with_every_cell(cells: list[str], rows: int) -> None:
    """Catches a page of which one UI hides what is on the right (the costs' last column), a part without the first
    column, and a cell with a border of its own that is torn."""
    lines = [[escape_markdown(f"{cell}{i}", 160) for i, cell in enumerate(cells)] for _ in range(rows + 1)]
    text = ui_pages.narrow(f"Above:\n\n{markdown_table(lines)}\n\nBelow | it.")
    above, *parts, below = text.split("\n\n")
    assert (above, below) == ("Above:", "Below | it.")
    shown = [lines[0][0].strip()]
    for part in parts:
        drawn = [re.split(r"(?<!\\)\|", line)[1:-1] for line in part.splitlines()]
        assert len(drawn) == rows + 2 and all(row[0].strip() == lines[0][0].strip() for row in (drawn[0], drawn[2]))
        widths = [max(len(row[i].strip()) + 3 for row in drawn) for i in range(len(drawn[0]))]
        assert sum(widths) <= ui_pages.WIDE or len(widths) == 2
        shown += [cell.strip() for cell in drawn[0][1:]]
    assert shown == [cell.strip() for cell in lines[0]]
