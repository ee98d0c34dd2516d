"""The page in a real browser: what a visitor does, sees and never notices.

The model is tests/halves_model.py: query 0 draws a cat on the left half of any photo, query 1 a couch on the right.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from halves_model import SIMILARITY, STRIDES, picked_token
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"There is no {CHROMIUM}: apt-get install chromium.")

# 3:4: the network sees it as 384 x 512 without padding.
PHOTO_SIZE = (640, 480)
NETWORK_SIZE = (512, 384)
CAT_COLOR = (255, 106, 60)  # in pem.categories


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
    options = dict(getattr(request, "param", {}))
    query = options.pop("query", "")
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(20_000)
    foreign, errors = [], []
    page.on("request", lambda r: r.url.startswith((page_url, "data:", "blob:")) or foreign.append(r.url))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_url + query)
    expect(page.locator("#examples button")).to_have_count(6)
    if "score" not in query:
        expect(rows(page)).to_have_count(2)  # the first example
    yield page
    page.close()
    assert foreign == []
    assert errors == []


def rows(page: Page) -> Locator:
    return page.locator("#legend li:not(.rest)")


@pytest.fixture
def uploaded(page: Page, tmp_path: Path) -> Page:
    upload(page, tmp_path)
    return page


def upload(page: Page, tmp_path: Path) -> None:
    grey = np.full((PHOTO_SIZE[1], PHOTO_SIZE[0], 3), 128, np.uint8)
    Image.fromarray(grey).save(tmp_path / "photo.png")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "photo.png")
    # Only a photo of one grey is grey all over: now the new result is drawn.
    page.locator("#opacity input").fill("0")
    page.wait_for_function("""() => {
        const canvas = document.querySelector('#viewer #canvas');
        const at = (x, y) => canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data;
        return [0.2, 0.4, 0.6, 0.8].every((x) => [...at(x, 0.93)].slice(0, 3).every((v) => Math.abs(v - 128) < 4));
    }""")
    page.locator("#opacity input").fill("0.55")


def pixel(page: Page, x: float, y: float) -> tuple[int, ...]:
    """What the canvas shows at a fraction of the photo, RGB, with no segment under the pointer."""
    page.mouse.move(0, 0)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    left, top, width, height = photo_box(page)
    return tuple(
        page.evaluate(
            """([x, y]) => {
                const canvas = document.querySelector('#viewer #canvas');
                const density = canvas.width / canvas.clientWidth;
                return [...canvas.getContext('2d').getImageData(x * density, y * density, 1, 1).data].slice(0, 3);
            }""",
            [left + x * width, top + y * height],
        )
    )


def photo_box(page: Page, size: tuple[int, int] = PHOTO_SIZE) -> tuple[float, float, float, float]:
    """Left, top, width and height of the fitted photo, in CSS pixels of the canvas."""
    box = page.locator("#canvas").bounding_box()
    assert box
    scale = min(box["width"] / size[0], box["height"] / size[1])
    width, height = size[0] * scale, size[1] * scale
    return (box["width"] - width) / 2, (box["height"] - height) / 2, width, height


def on_photo(page: Page, x: float, y: float) -> dict[str, float]:
    left, top, width, height = photo_box(page)
    return {"x": left + x * width, "y": top + y * height}


def prototype_place(layer: int, query: int, head: int) -> tuple[float, float]:
    """Where a prototype lies on the photo, as fractions."""
    stride = STRIDES[layer]
    cols, rows = NETWORK_SIZE[0] // stride, NETWORK_SIZE[1] // stride
    row, col = picked_token(query, head, rows, cols)
    return (col + 0.5) / cols, (row + 0.5) / rows


def set_number(page: Page, elem_id: str, value: str) -> None:
    number = page.locator(f"#{elem_id} input[type=number]")
    number.fill(value)
    number.press("Enter")


# ------------------------------------------------------------------------------------------------------------ reading


def test_an_example_is_there_at_first_and_others_come_with_one_click(page: Page) -> None:
    expect(page.locator("#legend")).to_contain_text("cat")
    expect(page.locator("#header")).to_contain_text("EfficientNet-lite2")
    expect(page.locator("#timing")).to_contain_text("pixel decoder")
    before = page.locator("#canvas").bounding_box()
    page.locator("#examples button:has(img[alt=astronaut])").click()  # square, where the cat is wide
    page.wait_for_function("""() => document.querySelector('#viewer .studio-status').textContent !== ''""")
    expect(rows(page)).to_have_count(2)
    assert before


def test_a_click_on_a_pixel_selects_the_query_that_owns_it(uploaded: Page) -> None:
    canvas = uploaded.locator("#canvas")
    canvas.click(position=on_photo(uploaded, 0.9, 0.8))
    expect(uploaded.locator("#query")).to_contain_text("Query 1 · couch")
    expect(uploaded.locator("#legend li.selected")).to_contain_text("couch")
    canvas.click(position=on_photo(uploaded, 0.45, 0.8))
    expect(uploaded.locator("#query")).to_contain_text("Query 0 · cat")
    expect(uploaded.locator("#legend li.selected")).to_contain_text("query 0")


def test_hovering_names_the_segment(uploaded: Page) -> None:
    uploaded.locator("#canvas").hover(position=on_photo(uploaded, 0.4, 0.85))
    expect(uploaded.locator("#viewer .hover")).to_have_text(re.compile(r"cat\s+0\.90 · 50\.0 % · query 0"))


def test_tasks_flip_and_thresholds_read_again_without_the_network(uploaded: Page) -> None:
    set_number(uploaded, "score-threshold", "0.7")
    expect(uploaded.locator("#legend")).not_to_contain_text("couch")
    expect(uploaded.locator("#legend")).to_contain_text("not recognised")
    expect(uploaded.locator("#queries")).to_contain_text("not above the threshold 0.70")

    uploaded.get_by_label("semantic").check()
    expect(uploaded.locator("#legend")).to_contain_text("couch")
    expect(uploaded.locator("#score-threshold input[type=range]")).to_be_disabled()
    uploaded.get_by_label("instance").check()
    expect(uploaded.locator("#legend")).not_to_contain_text("couch")
    expect(uploaded.locator("#overlap-threshold input[type=range]")).to_be_disabled()
    uploaded.get_by_label("panoptic").check()
    set_number(uploaded, "score-threshold", "0.5")
    expect(uploaded.locator("#legend")).to_contain_text("couch")


def test_opacity_isolation_hiding_outlines_and_wipe_change_the_picture(uploaded: Page) -> None:
    uploaded.keyboard.press("Escape")
    uploaded.locator("#points").click()  # the bare picture
    photo = (128, 128, 128)
    blend = tuple(round(128 + 0.55 * (c - 128)) for c in CAT_COLOR)
    assert pixel(uploaded, 0.3, 0.85) == pytest.approx(blend, abs=4)
    uploaded.locator("#opacity input").fill("0")
    assert pixel(uploaded, 0.3, 0.85) == pytest.approx(photo, abs=3)
    uploaded.locator("#opacity input").fill("1")
    assert pixel(uploaded, 0.3, 0.85) == pytest.approx(CAT_COLOR, abs=4)
    assert min(pixel(uploaded, 0.5, 0.4)) > 150  # the white outline between the halves
    uploaded.locator("#outlines").click()
    assert min(pixel(uploaded, 0.5, 0.4)) < 120  # bare, each half has a channel darker than that

    couch = uploaded.locator("#legend li", has_text="couch")
    couch.locator(".main").click()  # shows only the couch
    assert pixel(uploaded, 0.3, 0.85) == pytest.approx(photo, abs=3)
    uploaded.locator("#legend .all").click()
    uploaded.get_by_label("Hide cat").click()
    assert pixel(uploaded, 0.3, 0.85) == pytest.approx(photo, abs=3)
    uploaded.get_by_label("Hide cat").click()

    uploaded.locator("#wipe").click()
    uploaded.locator(".wipe-handle").fill("0.4")
    assert pixel(uploaded, 0.3, 0.85) == pytest.approx(photo, abs=3)  # before
    uploaded.locator(".wipe-handle").fill("0.2")
    assert pixel(uploaded, 0.3, 0.85) != pytest.approx(photo, abs=3)  # after


def test_zoom_keeps_the_place_under_the_middle_and_a_drag_moves_it(uploaded: Page) -> None:
    uploaded.locator("#points").click()
    canvas = uploaded.locator("#canvas")
    uploaded.get_by_label("Zoom in").click()
    uploaded.get_by_label("Zoom in").click()
    box = canvas.bounding_box()
    assert box
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    uploaded.mouse.move(middle[0] - 20, middle[1])
    expect(uploaded.locator("#viewer .hover")).to_contain_text("cat")
    uploaded.mouse.down()
    uploaded.mouse.move(middle[0] + 180, middle[1], steps=4)
    uploaded.mouse.up()
    uploaded.mouse.move(middle[0] + 100, middle[1])
    expect(uploaded.locator("#viewer .hover")).to_contain_text("cat")  # the border went 200 px to the right
    uploaded.get_by_label("Fit the photo").click()
    uploaded.mouse.move(middle[0] + 100, middle[1])
    expect(uploaded.locator("#viewer .hover")).to_contain_text("couch")


# --------------------------------------------------------------------------------------------------------- prototypes


def test_prototypes_lie_where_the_network_picked_them_in_every_layer(uploaded: Page) -> None:
    canvas, label = uploaded.locator("#canvas"), uploaded.locator("#viewer .hover")
    canvas.click(position=on_photo(uploaded, 0.45, 0.8))
    for layer in range(6):
        uploaded.locator("#layer input").nth(layer).check(force=True)
        for head, heads in ((0, "heads 1, 2, 3, 4, 5, 6"), (7, "heads 7, 8")):
            canvas.hover(position=on_photo(uploaded, *prototype_place(layer, 0, head)))
            expect(label).to_contain_text(f"layer {layer + 1} · {heads} · similarity {SIMILARITY:.3f}")
    uploaded.locator("#head label").nth(8).click()  # head 8 alone
    canvas.hover(position=on_photo(uploaded, *prototype_place(5, 0, 7)))
    expect(label).to_contain_text("layer 6 · head 8")


def test_a_point_opens_the_patch_that_it_stands_for(uploaded: Page) -> None:
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.9, 0.8))
    uploaded.locator("#canvas").click(position=on_photo(uploaded, *prototype_place(5, 1, 0)))
    patch = uploaded.locator("#patch")
    expect(patch).to_be_visible()
    expect(patch).to_contain_text("row 13 of 48, column 48 of 64")  # counted from 1


def test_a_query_without_foreground_says_so_and_shows_no_point(uploaded: Page) -> None:
    uploaded.locator("#queries").get_by_label("Query 2", exact=True).first.click()
    expect(uploaded.locator("#query")).to_contain_text("Query 2")
    expect(uploaded.locator("#layer-note")).to_contain_text("No foreground")
    uploaded.locator("#canvas").hover(position=on_photo(uploaded, 0.5 / 64, 0.5 / 48))  # token 0 of the last layer
    expect(uploaded.locator("#viewer .hover")).not_to_contain_text("head")


def test_the_choice_tells_similarity_banned_tokens_and_the_pick(uploaded: Page) -> None:
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.45, 0.8))
    uploaded.locator("#layer input").nth(0).check(force=True)
    uploaded.locator("#choice").scroll_into_view_if_needed()
    choice = uploaded.locator("#choice")
    expect(choice).to_contain_text("96 of 192")  # tokens allowed: half of 12 x 16
    expect(choice).to_contain_text("0.750")
    expect(choice).to_contain_text("Attention of the masked-attention twin (its query 1, mask IoU 1.00)")


def test_the_mask_grows_from_nothing_to_half_the_photo(uploaded: Page) -> None:
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.45, 0.8))
    uploaded.locator("#points").click()
    steps = uploaded.locator("#evolution .strip > *")
    expect(steps).to_have_count(7)
    expect(steps.nth(0)).to_contain_text("IoU 0.00")
    expect(steps.nth(1)).to_contain_text("cat 0.90")
    expect(steps.nth(1)).to_contain_text("area 50.0 %")
    steps.nth(0).locator("button").or_(steps.nth(0)).first.click()
    nothing = pixel(uploaded, 0.3, 0.85)
    steps.nth(6).locator("button").or_(steps.nth(6)).first.click()
    assert pixel(uploaded, 0.3, 0.85) != pytest.approx(nothing, abs=8)


def test_density_counts_the_picks_of_all_queries(uploaded: Page) -> None:
    uploaded.locator("#points").click()
    uploaded.locator("#show label", has_text="density").click()
    uploaded.locator("#layer input").nth(3).check(force=True)
    picked = pixel(uploaded, *prototype_place(3, 0, 0))
    bare = pixel(uploaded, 0.5, 0.9)
    assert np.abs(np.subtract(picked, bare)).max() > 60


def test_the_walk_uses_the_visitor_s_own_numbers(uploaded: Page) -> None:
    uploaded.locator("#walk").click()
    card = uploaded.locator("#walk-card")
    expect(card).to_be_visible()
    expect(card).to_contain_text("3 queries")
    seen = card.inner_text()
    for step in range(2, 8):
        card.locator(".walk-next").click()
        expect(card).to_contain_text(f"{step} of 7")
        seen += card.inner_text()
    assert f"{SIMILARITY:.3f}" in seen and "cat" in seen
    card.locator(".walk-next").click()
    expect(card).not_to_be_visible()


# ------------------------------------------------------------------------------------------------- gallery and export


def test_the_table_sorts_and_says_what_became_of_every_query(uploaded: Page) -> None:
    queries = uploaded.locator("#queries")
    queries.get_by_label("table").check()
    table = queries.locator("table")
    expect(table.locator("tbody tr")).to_have_count(3)
    heading = table.locator("th[data-column=query]")
    heading.locator("button").click()
    expect(table.locator("tbody tr").first).to_contain_text("cat")
    heading.locator("button").click()
    expect(table.locator("tbody tr").first).to_contain_text("no object")
    expect(heading).to_have_attribute("aria-sort", "descending")
    table.locator("tbody tr", has_text="couch").click()
    expect(uploaded.locator("#query")).to_contain_text("Query 1")
    expect(uploaded.locator("#legend li.selected")).to_contain_text("couch")


def test_exports_come_in_the_photo_s_own_size(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (2560, 1920), "teal").save(tmp_path / "large.jpg")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "large.jpg")
    expect(page.locator("#photo img")).to_be_visible()
    page.wait_for_function("() => document.querySelector('#export button:not([disabled])')")
    expect(page.locator("#copy-link")).to_be_disabled()  # by now the visitor's own photo is shown
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("Everything")).click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = archive.namelist()
        overlay = Image.open(io.BytesIO(archive.read(next(n for n in names if n.endswith("overlay.png")))))
        annotation = json.loads(archive.read(next(n for n in names if n.endswith("segments.json"))))
        ids = np.asarray(Image.open(io.BytesIO(archive.read(annotation["file_name"]))))
    assert overlay.size == (2560, 1920) and ids.shape == (1920, 2560, 3)
    assert [info["area"] for info in annotation["segments_info"]] == [2560 * 1920 // 2] * 2
    assert ids[0, 0, 0] == annotation["segments_info"][0]["id"]


LINK = "?example=palace&task=semantic&query=1&layer=3&head=5&show=mask"


@pytest.mark.parametrize("page", [{"query": LINK}], indirect=True, ids=["link"])
def test_a_link_reproduces_its_view(page: Page) -> None:
    expect(page.get_by_label("semantic")).to_be_checked()
    expect(page.locator("#query")).to_contain_text("Query 1")
    expect(page.locator("#layer input").nth(2)).to_be_checked()
    expect(page.locator("#head input").nth(5)).to_be_checked()
    expect(page.locator("#show").get_by_label("mask")).to_be_checked()


@pytest.mark.parametrize("page", [{"query": "?example=palace&score=0.70"}], indirect=True, ids=["link"])
def test_a_link_with_other_thresholds_reads_again(page: Page) -> None:
    expect(page.locator("#score-threshold input[type=number]")).to_have_value("0.70")
    expect(page.locator("#legend")).not_to_contain_text("couch")
    expect(page.locator("#legend")).to_contain_text("not recognised")


@pytest.mark.parametrize("page", [{"query": "?example=cat&attention=masked&layer=2"}], indirect=True, ids=["link"])
def test_a_link_may_show_the_twin(page: Page) -> None:
    expect(page.get_by_label("masked", exact=True)).to_be_checked()
    expect(page.locator("#layer input").nth(1)).to_be_checked()
    expect(page.locator("#legend")).to_contain_text("query 1")


# ------------------------------------------------------------------------------------------------ the other attention


def test_a_flip_of_the_attention_shows_the_twin_in_the_same_view(uploaded: Page) -> None:
    cat = uploaded.locator("#legend li", has_text="cat")
    expect(cat).to_contain_text("query 0")
    uploaded.get_by_label("semantic").check()
    uploaded.locator("#layer input").nth(2).check(force=True)
    uploaded.get_by_label("masked", exact=True).check(force=True)
    expect(cat).to_contain_text("query 1")  # the twin draws it with another query
    expect(uploaded.get_by_label("semantic")).to_be_checked()
    expect(uploaded.locator("#layer input").nth(2)).to_be_checked()
    expect(uploaded.locator("#walk")).to_be_hidden()  # it tells of prototypes
    uploaded.get_by_label("prototypes", exact=True).check(force=True)
    expect(cat).to_contain_text("query 0")
    expect(uploaded.locator("#walk")).to_be_visible()


# --------------------------------------------------------------------------------------------------- keys, bad input


def test_everything_works_by_keyboard(uploaded: Page) -> None:
    uploaded.locator("#canvas").focus()
    uploaded.keyboard.press("Escape")
    expect(uploaded.locator("#legend li.selected")).to_have_count(0)
    uploaded.keyboard.press("ArrowRight")
    expect(uploaded.locator("#legend li.selected")).to_have_count(1)
    first = uploaded.locator("#legend li.selected").inner_text()
    uploaded.keyboard.press("ArrowRight")
    assert uploaded.locator("#legend li.selected").inner_text() != first
    expect(uploaded.locator(".studio-status")).to_contain_text("of the photo, query")
    uploaded.keyboard.press("[")
    expect(uploaded.locator("#layer input").nth(4)).to_be_checked()
    uploaded.keyboard.press("3")
    expect(uploaded.locator("#head input").nth(3)).to_be_checked()
    uploaded.keyboard.press("m")
    expect(uploaded.locator("#show").get_by_label("mask")).to_be_checked()
    uploaded.keyboard.press("t")
    expect(uploaded.get_by_label("semantic")).to_be_checked()
    uploaded.keyboard.press("?")
    expect(uploaded.locator("#keys")).to_be_visible()
    uploaded.keyboard.press("Escape")
    expect(uploaded.locator("#keys")).not_to_be_visible()


def test_a_bad_file_says_so_and_the_last_result_stays(uploaded: Page, tmp_path: Path) -> None:
    uploaded.get_by_label("Clear").or_(uploaded.get_by_label("Remove Image")).first.click()
    bad = tmp_path / "holiday.jpg"
    bad.write_text("this is no image")
    uploaded.locator("#photo input[type=file]").set_input_files(bad)
    expect(uploaded.get_by_test_id("toast-body")).to_contain_text("The file is not an image that can be read")
    expect(uploaded.locator("#photo img")).to_have_count(0)
    expect(uploaded.locator("#viewer .error")).not_to_be_visible()
    expect(rows(uploaded)).to_have_count(2)
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.9, 0.8))
    expect(uploaded.locator("#query")).to_contain_text("couch")


def test_segment_without_a_photo_asks_for_one(page: Page) -> None:
    page.locator("#run").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Please choose a photo first.")


# ---------------------------------------------------------------------------------------------------------- efficiency


def test_a_measurement_runs_here_tells_what_it_found_and_can_be_cancelled(page: Page) -> None:
    page.get_by_role("tab", name="Efficiency").click()
    expect(page.locator("#chart-paper .js-plotly-plot")).to_be_visible()  # stored results are drawn
    page.get_by_label("256 x 512 px").check()
    page.get_by_label("number input for At most, seconds").fill("10")
    page.locator("#measure-start").click()
    expect(page.locator("#measure-progress")).to_contain_text("measuring")
    page.locator("#measure-cancel").click()
    expect(page.locator("#measure-progress")).to_have_text("Cancelled.")

    page.locator("#measure-start").click()
    expect(page.locator("#measure-progress")).to_contain_text("done", timeout=60_000)
    expect(page.locator("#measure-found")).to_contain_text("Compared with masked attention, prototype attention is")
    expect(page.locator("#measure-found")).to_contain_text("8x16 tokens")
    expect(page.locator("#measure-plot .js-plotly-plot")).to_be_visible()
    page.get_by_role("tab", name="Studio").click()
    expect(rows(page)).to_have_count(2)


# ------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 390, "height": 844}, "has_touch": True}], indirect=True, ids=["390px"]
)
def test_a_phone_scrolls_only_downwards_and_a_tap_selects(page: Page, tmp_path: Path) -> None:
    upload(page, tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    left, top, width, height = photo_box(page)
    page.locator("#canvas").tap(position={"x": left + 0.9 * width, "y": top + 0.8 * height})
    expect(page.locator("#query")).to_contain_text("couch")
    canvas, legend = page.locator("#canvas").bounding_box(), page.locator("#legend").bounding_box()
    assert canvas and legend and canvas["y"] < legend["y"]


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True, ids=["dark"])
def test_dark_mode_follows_the_system(page: Page) -> None:
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")[:3]
    assert max(red, green, blue) < 60
    for place in ("#legend h3", "#query", "#queries h3", "#export h3"):
        text = page.locator(place).first.evaluate("e => getComputedStyle(e).color.match(/[0-9]+/g).map(Number)")[:3]
        assert min(text) > 150, place
