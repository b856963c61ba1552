"""A headless Chromium that tests drive; nothing of it is downloaded, and it calls nobody."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.missing import NotThere
from tests.support.waiting import eventually

#: Where screenshots go; without it none are taken.
SCREENSHOTS_VARIABLE = "CELERY_IDEMPOTENT_SCREENSHOTS"

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1180,860",
)


class Chromium:
    """A window of its own, without a history.

    Args:
        directory: what it remembers goes there.

    Raises:
        NotThere: it can't be had here.
    """

    def __init__(self, directory: Path) -> None:
        browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
        driver = shutil.which("chromedriver")
        if browser is None or driver is None:
            raise NotThere(
                "no Chromium that can be driven (on Debian: apt install chromium chromium-driver)"
            )
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*_FLAGS, f"--user-data-dir={directory}"):
            options.add_argument(flag)
        self._driver = webdriver.Chrome(options=options, service=Service(driver))

    def open(self, url: str) -> None:
        """Go to an address."""
        self._driver.get(url)

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self._driver.current_url)

    @property
    def title(self) -> str:
        """What its window is called."""
        return str(self._driver.title)

    @property
    def text(self) -> str:
        """All that can be read on the page."""
        return self._driver.find_element(By.TAG_NAME, "body").text

    def find(self, css: str) -> WebElement:
        """Give the one element that is there, or comes."""
        found: list[WebElement] = eventually(
            lambda: self._driver.find_elements(By.CSS_SELECTOR, css), f"{css} on the page"
        )
        assert len(found) == 1, f"{css} is there {len(found)} times"
        return found[0]

    def follow(self, text: str) -> None:
        """Click on a link, as it reads, and wait for another page."""
        self.leave_by(self._driver.find_element(By.LINK_TEXT, text))

    def leave_by(self, element: WebElement) -> None:
        """Click on what leads to another page, and wait for it."""
        before = self._page()
        # At once: a page may scroll smoothly, and the click would come before it is there.
        into_view = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
        self._driver.execute_script(into_view, element)
        element.click()

        def another() -> bool:
            ready = self._driver.execute_script("return document.readyState") == "complete"
            return ready and self._page() not in {before, None}

        eventually(another, "another page")

    def _page(self) -> str | None:
        """Which page is there; none, while one goes and the next has not come."""
        roots = self._driver.find_elements(By.TAG_NAME, "html")
        return roots[0].id if roots else None

    def show_as(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Show pages from now on in a window of this size, light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def evaluate(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page, and return what it returns, once that is known."""
        return self._driver.execute_async_script(
            f"const done = arguments[arguments.length - 1];"
            f"Promise.resolve((function () {{ {script} }}).apply(null, arguments))"
            ".then(done, (error) => done('failed: ' + error));",
            *arguments,
        )

    def errors(self) -> list[str]:
        """What went wrong in the page's scripts and what it could not load."""
        return [
            entry["message"]
            for entry in self._driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]

    def screenshot(self, name: str) -> None:
        """Keep what is to be seen, where somebody wants that."""
        folder = os.environ.get(SCREENSHOTS_VARIABLE)
        if folder:
            self._driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def close(self) -> None:
        """Close the window."""
        self._driver.quit()
