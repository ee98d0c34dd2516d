"""The page in a real browser: what a visitor does, sees and never notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"There is no {CHROMIUM}: apt-get install chromium.")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, page_url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page freshly opened. When the test is over, no other host was asked for anything and no error was logged."""
    options = getattr(request, "param", {})
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(20_000)
    foreign, errors = [], []
    page.on("request", lambda r: r.url.startswith((page_url, "data:", "blob:")) or foreign.append(r.url))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_url)
    expect(page.locator("#examples button")).to_have_count(6)
    yield page
    page.close()
    assert foreign == []
    assert errors == []


def pick_example(page: Page, name: str = "cat") -> None:
    page.locator(f"#examples button:has(img[alt={name}])").click()
    expect(page.locator("#viewer img")).to_be_visible()
    expect(page.locator("#legend tbody tr")).to_have_count(2)


def test_one_click_on_an_example_shows_overlay_legend_and_times(page: Page) -> None:
    expect(page.locator("#legend")).to_contain_text("Nothing segmented yet.")
    pick_example(page)
    expect(page.locator("#legend")).to_contain_text("cat")
    expect(page.locator("#legend")).to_contain_text("couch")
    expect(page.locator("#legend caption")).to_contain_text("network")
    expect(page.locator("#header")).to_contain_text("EfficientNet-lite2")
    assert page.locator("#viewer img").evaluate("image => image.naturalWidth") == 451
    swatch = page.locator("#legend tbody i").first.evaluate("swatch => getComputedStyle(swatch).backgroundColor")
    assert swatch == "rgb(255, 106, 60)"  # the cat's colour in pem.categories


def test_an_uploaded_photo_is_segmented_at_once_and_a_large_one_shown_smaller(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500), "teal").save(tmp_path / "large.jpg")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "large.jpg")
    expect(page.locator("#legend tbody tr")).to_have_count(2)
    assert page.locator("#viewer img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [2048, 1024]


def test_task_threshold_and_opacity_change_the_result(page: Page) -> None:
    pick_example(page)
    overlay = page.locator("#viewer img")

    def set_slider(elem_id: str, value: str) -> None:
        number = page.locator(f"#{elem_id} input[type=number]")
        number.fill(value)
        number.press("Enter")

    set_slider("score-threshold", "0.7")
    expect(page.locator("#legend")).not_to_contain_text("couch")
    expect(page.locator("#legend")).to_contain_text("not recognised")

    page.get_by_label("semantic").check()
    expect(page.locator("#legend")).to_contain_text("couch")
    expect(page.locator("#score-threshold input[type=range]")).to_be_disabled()

    before = overlay.get_attribute("src")
    set_slider("opacity", "0.2")
    expect(overlay).not_to_have_attribute("src", before or "")


def test_a_bad_file_says_so_and_the_last_result_stays(page: Page, tmp_path: Path) -> None:
    pick_example(page)
    page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
    bad = tmp_path / "holiday.jpg"
    bad.write_text("this is no image")
    page.locator("#photo input[type=file]").set_input_files(bad)
    expect(page.get_by_test_id("toast-body")).to_contain_text("The file is not an image that can be read")
    expect(page.locator("#viewer .error")).not_to_be_visible()
    expect(page.locator("#viewer img")).to_be_visible()
    expect(page.locator("#legend tbody tr")).to_have_count(2)
    expect(page.locator("#photo img")).to_have_count(0)


def test_segment_without_a_photo_asks_for_one(page: Page) -> None:
    page.locator("#run").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Please choose a photo first.")


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}}], indirect=True, ids=["390px"])
def test_a_phone_scrolls_only_downwards_and_sees_the_result_before_the_settings(page: Page) -> None:
    pick_example(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    viewer, task = page.locator("#viewer").bounding_box(), page.locator("#task").bounding_box()
    assert viewer and task and viewer["y"] < task["y"]


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True, ids=["dark"])
def test_dark_mode_follows_the_system(page: Page) -> None:
    pick_example(page)
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")[:3]
    assert max(red, green, blue) < 60
    text = page.locator("#legend caption").evaluate("e => getComputedStyle(e).color.match(/[0-9]+/g).map(Number)")[:3]
    assert min(text) > 180
