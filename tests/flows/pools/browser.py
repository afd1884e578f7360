"""The Prefect UI in headless Chromium: the pages that people use, and what their consoles show."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 60_000


class Ui:
    """One tab on the server's UI."""

    def __init__(self, page: Page, address: str, pictures: Path):
        """`address`: of the server's pages, without a path; `pictures`: the folder of the screenshots."""
        self.page, self.address, self.pictures = page, address, pictures
        self.errors: list[str] = []
        page.set_default_timeout(WAIT_MS)
        # Prefect's page calls a host of its maker's (Amplitude); a test calls nobody.
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda route: route.abort())
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, path: str) -> None:
        """Show a page of the UI; the address without /v2 is that of its first version."""
        self.page.goto(f"{self.address}/v2/{path}")

    def custom_run(self, deployment: str) -> None:
        """From a deployment's page to the form of its custom run."""
        self.open(f"deployments/deployment/{deployment}")
        self.press("Run")
        self.page.get_by_role("menuitem", name="Custom run").click()
        self._label("settings").wait_for()

    def quick_run(self, deployment: str) -> None:
        """Run a deployment as it is."""
        self.open(f"deployments/deployment/{deployment}")
        self.press("Run")
        self.page.get_by_role("menuitem", name="Quick run").click()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).last.click()

    def submit(self) -> None:
        """Press Submit until the form is gone: under load the server may answer 503, and the form stays."""
        from playwright.sync_api import TimeoutError

        for _ in range(3):
            self.press("Submit")
            with suppress(TimeoutError):
                self.page.wait_for_url(re.compile("tab=Runs"), timeout=WAIT_MS / 3)
                return
        raise AssertionError(f"the form is still there after three presses of Submit: {self.page.url}")

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
        """Choose from a field's list."""
        self.box(field).click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def picture(self, name: str) -> Path:
        """A screenshot of all of the page; the page scrolls inside the window, so the window is made as high."""
        height = self.page.evaluate("Math.max(...[...document.querySelectorAll('*')].map(e => e.scrollHeight))")
        size = self.page.viewport_size or {"width": 1280, "height": 900}
        self.page.set_viewport_size({"width": size["width"], "height": min(int(height) + 40, 12_000)})
        self.page.wait_for_timeout(500)  # what draws itself to the new size
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        self.page.set_viewport_size(size)
        self.page.wait_for_timeout(500)  # a button that is still on its way is missed by a click
        return path

    def _on_console(self, message: ConsoleMessage) -> None:
        """Keep an error of the page's console, but for what did not load: Prefect has no /favicon.ico, its SQLite
        answers 503 under load, its page of a run requests a list of tasks that its server refuses (422)."""
        refused = "Failed to load resource", "Unknown error while creating flow run."  # the latter is `submit`'s to see
        if message.type == "error" and not message.text.startswith(refused):
            self.errors.append(message.text)


@contextmanager
def chromium(address: str, pictures: Path) -> Iterator[Ui]:
    """A browser of its own, with one tab."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        ui = Ui(browser.new_page(viewport={"width": 1280, "height": 900}), address, pictures)
        yield ui
        ui.picture("last")  # what a test that failed saw
        browser.close()
