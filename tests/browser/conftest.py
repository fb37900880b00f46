"""A headless Chromium, one a test process, and a report of 1,000 results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from producer.report import Written, write_report
from producer.report.source import Pictures
from tests.browser.runs import catalogue

_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "chromium is not installed: tests/servers/install.sh installs it as root on Debian"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, headless=True, args=_ARGUMENTS)
        yield opened
        opened.close()


class Opened:
    """A page in a browser profile of its own, which notes every request, complaint of the console, and error."""

    def __init__(self, browser: Browser, path: Path, **options: object):
        self.path = path
        self.context: BrowserContext = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("console", lambda message: self.complaints.append(message.text))
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.page: Page = self.open()

    def open(self) -> Page:
        page = self.context.new_page()
        page.goto(self.path.as_uri())
        return page

    @property
    def fetched(self) -> list[str]:
        """Addresses outside the page itself and the pictures inside it."""
        return [url for url in self.requests if not url.startswith("data:") and url != self.path.as_uri()]


@pytest.fixture
def opened(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The report of 1,000 results, in a fresh profile."""
    written: Written = request.getfixturevalue("thousand")
    page = Opened(browser, written.path)
    yield page
    page.context.close()


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("report")
    results = catalogue(folder / "pictures", 1000, side=160)  # small, since encoding them all takes most of the test
    return write_report(folder / "report.html", results, title="A catalogue", pictures=Pictures(lambda: None))
