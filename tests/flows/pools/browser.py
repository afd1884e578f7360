"""Both Prefect UIs in headless Chromium: the pages that people use, and what their consoles show."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page, ViewportSize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 60_000
VIEW: ViewportSize = {"width": 1280, "height": 900}
CREATE = re.compile("create_flow_run$")
"""What the form requests of the server."""
with_browser = pytest.mark.skipif(
    not CHROMIUM or importlib.util.find_spec("playwright") is None,
    reason="no Chromium (the system's package `chromium`), or no playwright (spinloop[dev]), to show the UI with",
)


class Ui:
    """One tab on the server's UI, its second version: the one that Prefect opens first."""

    name, path = "v2", "/v2"

    def __init__(self, page: Page, address: str, pictures: Path | None):
        """`address`: of the server's pages, without a path; `pictures`: the folder of the screenshots, which take
        seconds each; None: there are none."""
        self.page, self.address, self.pictures = page, address, pictures
        self.errors: list[str] = []
        page.set_default_timeout(WAIT_MS)
        # Prefect's page calls a host of its maker's (Amplitude); a test calls nobody.
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda route: route.abort())
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, path: str) -> None:
        """Show a page of the UI; the address without /v2 is that of its first version."""
        self.page.goto(f"{self.address}{self.path}/{path}")

    def custom_run(self, deployment: str) -> None:
        """From a deployment's page to the form of its custom run."""
        self.open(f"deployments/deployment/{deployment}")
        self.press("Run")
        self.page.get_by_role("menuitem", name="Custom run").or_(self.page.get_by_text("Custom run")).first.click()
        self._label("settings").wait_for()

    def quick_run(self, deployment: str) -> None:
        """Run a deployment as it is."""
        self.open(f"deployments/deployment/{deployment}")
        self.press("Run")
        self.page.get_by_role("menuitem", name="Quick run").click()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).last.click()

    def submit(self) -> None:
        """Press Submit until the form is gone. Under load the server may answer 503, and the form stays; while it
        checks what was typed last, the page takes no press. Each press waits longer than the one before it: 3 s
        six times were too short once."""
        from playwright.sync_api import TimeoutError

        for wait in (3_000, 6_000, 12_000, 24_000, 48_000, 96_000):
            with suppress(TimeoutError):
                with self.page.expect_request(CREATE, timeout=wait):
                    self.press("Submit")
                self.page.wait_for_url(re.compile("tab=Runs"), timeout=WAIT_MS / 3)
                return
        raise AssertionError(f"the form is still there after six presses of Submit: {self.page.url}")

    def box(self, field: str) -> Locator:
        """A field's box in the form, by the field's path. A list has another name for screen readers than its label,
        so it is located by what the label is for."""
        return self.page.locator(f"[id='{self._label(field).get_attribute('for')}']")

    def _label(self, field: str) -> Locator:
        return self.page.locator("label").get_by_text(f"{field} (Optional)", exact=True)

    def switch(self, section: str, to: str) -> None:
        """Show the boxes of a section (`change`), or take it out (`leave out`)."""
        group = self._label(section).locator("xpath=ancestor::div[contains(@class, 'group')][1]")
        group.get_by_text(to, exact=True).first.click()

    def fill(self, field: str, value: object) -> None:
        """Type into a field's box."""
        self.box(field).fill(str(value))

    def choose(self, field: str, value: str) -> None:
        """Choose from a field's list. Where the page is slow a list may shut while it opens: it is opened again."""
        from playwright.sync_api import TimeoutError

        option = self.page.get_by_role("option", name=value, exact=True)
        for _ in range(6):
            with suppress(TimeoutError):
                if not option.is_visible():
                    self.open_list(field)
                option.click(timeout=WAIT_MS / 6)
                return
        raise AssertionError(f"{field}: six tries did not choose {value}")

    def open_list(self, field: str) -> None:
        """Show the choices of a field."""
        self.box(field).click()

    def refuses(self, field: str, why: str) -> None:
        """Wait until the form says why it does not take what stands in a field's box."""
        del field  # it is said beside the box
        self.page.get_by_text(why, exact=True).wait_for()

    def picture(self, name: str) -> None:
        """A screenshot of all of the page; the page scrolls inside the window, so the window is made as high."""
        if self.pictures is None:
            return
        height = self.page.evaluate("Math.max(...[...document.querySelectorAll('*')].map(e => e.scrollHeight))")
        size = self.page.viewport_size or VIEW
        self.page.set_viewport_size({"width": size["width"], "height": min(int(height) + 40, 12_000)})
        self.page.wait_for_timeout(500)  # what draws itself to the new size
        self.page.screenshot(path=self.pictures / f"{self.name}-{name}.png")
        self.page.set_viewport_size(size)
        self.page.wait_for_timeout(500)  # a button that is still on its way is missed by a click

    def _on_console(self, message: ConsoleMessage) -> None:
        """Keep an error of the page's console, but for what did not load: Prefect has no /favicon.ico, its SQLite
        answers 503 under load, its page of a run requests a list of tasks that its server refuses (422)."""
        refused = "Failed to load resource", "Unknown error while creating flow run."  # the latter is `submit`'s to see
        if message.type == "error" and not message.text.startswith(refused):
            self.errors.append(message.text)


class FirstUi(Ui):
    """The UI's first version: the one that addresses without /v2 show, such as those that Prefect prints."""

    name, path = "v1", ""

    def box(self, field: str) -> Locator:
        return self._property(field).locator("input, textarea, button.p-select-button__control").first

    def _label(self, field: str) -> Locator:
        return self.page.locator(".schema-form-property__label").get_by_text(f"{field} (Optional)", exact=True)

    def _property(self, field: str) -> Locator:
        return self.page.locator(".schema-form-property").filter(has=self._label(field)).last

    def switch(self, section: str, to: str) -> None:
        self._property(section).get_by_text(to, exact=True).first.click()

    def open_list(self, field: str) -> None:
        self.box(field).press("ArrowDown")  # a click gives the focus twice, and the list may shut by it

    def refuses(self, field: str, why: str) -> None:
        self.page.get_by_text(f"Validation failed for field '{field}'. Failure reason: {why}").first.wait_for()


@contextmanager
def chromium(address: str, pictures: Path | None, ui_of: type[Ui] = Ui) -> Iterator[Ui]:
    """A browser of its own, with one tab."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        ui = ui_of(browser.new_page(viewport=VIEW), address, pictures)
        yield ui
        ui.picture("last")  # what a test that failed saw
        browser.close()
