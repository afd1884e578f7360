"""The report in headless Chromium: readable on a phone, its search finds, nothing is requested from the network. `make
test-server` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_core.stages import report
from tests.flows.pools.browser import ARGS, CHROMIUM
from tests.flows.pools.conftest import in_full
from tests.report.made_up import judged_run, render
from tests.report.test_page import run_part

pytestmark = in_full
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Where a full report of a made-up run lies."""
    root: Path = tmp_path_factory.mktemp("browser")
    html = render(root / "out", *judged_run(root))[0].replace(report.STEPS_MARK, run_part())
    (root / "page.html").write_text(html, encoding="utf-8")
    return (root / "page.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield made
        made.close()


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_page_is_as_wide_as_its_window(browser, address, size) -> None:
    """Catches a table, a digest or a chart that makes the page scroll sideways, also with everything unfolded,
    and an error or a request of the page."""
    page = browser.new_page(viewport=size)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url != address else None)
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert complaints == []
    page.close()


def test_search_finds_by_text_and_tag(browser, address) -> None:
    """Catches a script that its own policy stops, and a search that shows other samples than those it names."""
    page = browser.new_page(viewport=PHONE)
    page.goto(address)
    shown = page.locator("details.sample:visible")
    assert page.locator("#find").is_visible() and shown.count() == 12
    page.get_by_role("button", name="became wrong").click()
    assert shown.count() > 12
    assert set(shown.evaluate_all("rows => rows.map(row => row.dataset.tag)")) == {"lost"}
    row, head = (shown.first.locator(part).text_content() for part in ("h3 code", "bdi"))
    page.get_by_role("button", name="all", exact=True).click()
    page.get_by_role("searchbox").fill(f"{head.upper()} {row}")
    assert shown.count() == 1 and shown.first.locator("bdi").text_content() == head
    assert page.locator("#find output").inner_text() == "1 of 200 samples"
    page.get_by_role("searchbox").fill("no such words anywhere")
    assert shown.count() == 0
    page.close()


def test_page_without_scripts_has_every_sample(browser, address) -> None:
    """Catches samples that only the script shows, and a search box that does nothing."""
    context = browser.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto(address)
    assert not page.locator("#find").is_visible()
    page.locator("#more > summary").click()
    assert page.locator("details.sample:visible").count() == page.locator("details.sample").count() > 12
    context.close()
