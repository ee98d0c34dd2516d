"""A browser, and the page in it. Without Playwright or Chromium the tests are skipped, saying so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from studio import rows, upload

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
    if CHROMIUM is None:
        pytest.skip("There is no Chromium: apt-get install chromium.")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    playwright.expect.set_options(timeout=20_000)  # a machine that is busy with something else is no fault
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, page_url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page freshly opened. When the test is over, no other host was asked for anything and no error was logged
    but what the test made fail."""
    from playwright.sync_api import expect

    options = dict(getattr(request, "param", {}))
    query, fails = options.pop("query", ""), options.pop("fails", None)
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(20_000)
    foreign, errors = [], []
    page.on("request", lambda r: r.url.startswith((page_url, "data:", "blob:")) or foreign.append(r.url))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    # Gradio asks how far an upload is, and logs an error when the busy server has finished it meanwhile.
    done = {"body": 'data: {"msg": "done"}\n\n', "content_type": "text/event-stream"}
    page.route("**/upload_progress*", lambda route: route.fulfill(**done))
    page.goto(page_url + query)
    expect(page.locator("#examples button")).to_have_count(6)
    if "score" not in query:
        expect(rows(page)).to_have_count(2)  # the first example
    yield page
    logged = [error for error in errors if not fails or fails not in error]  # before it closes
    page.unroute_all(behavior="ignoreErrors")  # one still at work would fail the next test
    page.close()
    assert foreign == []
    assert logged == []


@pytest.fixture
def uploaded(page: Page, tmp_path: Path) -> Page:
    upload(page, tmp_path)
    return page
