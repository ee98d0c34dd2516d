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
from playwright.sync_api import Browser, Locator, Page, Route, expect  # noqa: E402

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


def hold_answers(page: Page, function: str) -> list[Route]:
    """Keeps what the viewer asks this function of the server from arriving: the requests, to be let go later."""
    held: list[Route] = []

    def on_request(route: Route) -> None:
        if route.request.post_data_json["fn_name"] == function:
            held.append(route)
        else:
            route.continue_()

    page.route("**/component_server/", on_request)
    return held


def let_go(page: Page, held: list[Route]) -> None:
    for route in held:
        with page.expect_response(route.request.url):
            route.continue_()
    page.wait_for_timeout(500)  # for what must not happen now


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


def test_the_next_photo_is_read_as_the_last_one_was(uploaded: Page) -> None:
    set_number(uploaded, "score-threshold", "0.7")
    expect(uploaded.locator("#legend")).not_to_contain_text("couch")
    uploaded.locator("#examples button:has(img[alt=palace])").click()
    expect(uploaded.locator("#copy-link")).to_be_enabled()  # now the example is shown
    expect(uploaded.locator("#score-threshold input[type=number]")).to_have_value("0.70")
    expect(uploaded.locator("#legend")).not_to_contain_text("couch")
    uploaded.get_by_label("instance").check()
    uploaded.locator("#examples button:has(img[alt=cat])").click()
    expect(uploaded.locator("#examples button:has(img[alt=cat])")).to_have_attribute("aria-current", "true")
    expect(uploaded.get_by_label("instance")).to_be_checked()


def test_instances_of_a_class_have_no_area_together_for_they_may_overlap(uploaded: Page) -> None:
    def two_cats(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        for segment in answer["segments"]:
            segment["category"] = "cat"
        route.fulfill(response=response, json=answer)

    uploaded.route("**/component_server/", two_cats)
    set_number(uploaded, "score-threshold", "0.51")  # a reading that is not known yet
    group = uploaded.locator("#legend li.class")
    expect(group).to_contain_text("100.0 %")
    uploaded.get_by_label("instance").check()
    expect(group).to_contain_text("2 parts")
    expect(group).not_to_contain_text("%")


def test_opacity_isolation_hiding_outlines_and_wipe_change_the_picture(uploaded: Page) -> None:
    uploaded.locator("#points").click()  # the bare picture
    uploaded.keyboard.press("Escape")
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


def test_the_zoom_buttons_lie_on_the_photo_and_stay_where_they_are(uploaded: Page) -> None:
    buttons, canvas = uploaded.locator("#viewer .zoom"), uploaded.locator("#canvas").bounding_box()
    before = buttons.bounding_box()
    left, _, width, _ = photo_box(uploaded)
    assert before and canvas and left > 20
    assert canvas["x"] + left < before["x"] and before["x"] + before["width"] < canvas["x"] + left + width
    uploaded.get_by_title("Fit (F)").click()
    uploaded.get_by_label("Zoom in").click()
    assert buttons.bounding_box() == before


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


def test_an_empty_mask_is_not_said_to_fit_perfectly(uploaded: Page) -> None:
    uploaded.locator("#queries").get_by_label("Query 2", exact=True).first.click()
    expect(uploaded.locator("#evolution .strip > *").nth(6)).to_contain_text("IoU –")
    expect(uploaded.locator("#evolution .iou")).to_have_count(0)


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


@pytest.mark.parametrize("page", [{"viewport": {"width": 1440, "height": 900}}], indirect=True, ids=["1440px"])
def test_on_a_card_nothing_covers_the_area(page: Page) -> None:
    gap = page.locator("#queries tbody tr").first.evaluate("""(card) => {
        const [badge, area] = [card.querySelector(".outcome b"), card.querySelector(".area")];
        badge.textContent = "little evidence"; // the longest there is
        area.textContent = "22.9 %";
        const text = document.createRange();
        text.selectNodeContents(area);
        return text.getBoundingClientRect().left - badge.getBoundingClientRect().right;
    }""")
    assert gap > 3


def test_an_overlay_leaves_out_what_is_hidden_and_the_lines_when_they_are_off(uploaded: Page) -> None:
    uploaded.get_by_label("Hide cat").click()
    uploaded.locator("#outlines").click()
    with uploaded.expect_download() as download:
        uploaded.get_by_role("button", name="Overlay PNG").click()
    overlay = np.asarray(Image.open(download.value.path()))
    assert overlay.shape == (480, 640, 3)
    assert (overlay[:, :320] == 128).all()
    assert not (overlay[:, 320:] == 128).all(2).any() and (overlay[:, 320:] == overlay[0, 320]).all()


def test_this_view_is_saved_as_it_is_seen(uploaded: Page) -> None:
    uploaded.locator("#show label", has_text="density").click()
    places = (prototype_place(5, 0, 0), (0.5, 0.9))
    seen = [pixel(uploaded, *place) for place in places]
    with uploaded.expect_download() as download:
        uploaded.get_by_role("button", name="This view (PNG)").click()
    assert download.value.suggested_filename == "photo_view.png"
    view = Image.open(download.value.path()).convert("RGB")
    canvas = uploaded.locator("#canvas").bounding_box()
    assert canvas and view.size == (canvas["width"], canvas["height"])
    left, top, width, height = photo_box(uploaded)
    saved = [view.getpixel((int(left + x * width), int(top + y * height))) for x, y in places]
    assert saved == seen and seen[0] != seen[1]


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


def test_a_copied_link_has_opacity_outlines_and_that_nothing_is_selected(page: Page) -> None:
    page.locator("#opacity input").fill("0.2")
    page.locator("#outlines").click()
    page.keyboard.press("Escape")
    expect(page.locator("#legend li.selected")).to_have_count(0)
    page.locator("#copy-link").click()
    page.goto(page.locator("#link").input_value())
    expect(page.locator("#opacity input")).to_have_value("0.2")
    expect(page.locator("#outlines")).to_have_attribute("aria-pressed", "false")
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#legend li.selected")).to_have_count(0)


@pytest.mark.parametrize("page", [{"query": "?task=semantic&layer=2"}], indirect=True, ids=["link"])
def test_a_link_without_an_example_is_about_the_first_one(page: Page) -> None:
    expect(page.locator("#examples button:has(img[alt=cat])")).to_have_attribute("aria-current", "true")
    expect(page.get_by_label("semantic")).to_be_checked()
    expect(page.locator("#layer input").nth(1)).to_be_checked()


@pytest.mark.parametrize("page", [{"query": "?example=unicorn&layer=2"}], indirect=True, ids=["link"])
def test_a_link_to_an_unknown_example_says_so_and_shows_the_first_one(page: Page) -> None:
    expect(page.get_by_test_id("toast-body")).to_contain_text("There is no example photo of that name")
    expect(page.locator("#examples button:has(img[alt=cat])")).to_have_attribute("aria-current", "true")
    expect(page.locator("#layer input").nth(5)).to_be_checked()


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


def test_of_two_flips_at_once_the_last_one_counts(uploaded: Page) -> None:
    held = hold_answers(uploaded, "other")
    uploaded.get_by_label("masked", exact=True).check(force=True)
    uploaded.get_by_label("prototypes", exact=True).check(force=True)
    let_go(uploaded, held)
    expect(uploaded.locator("#attention")).not_to_have_attribute("aria-busy", "true")
    expect(uploaded.get_by_label("prototypes", exact=True)).to_be_checked()
    expect(uploaded.locator("#legend li", has_text="cat")).to_contain_text("query 0")


def test_what_is_changed_while_a_flip_runs_stays_changed(uploaded: Page) -> None:
    uploaded.get_by_label("semantic").check()
    held = hold_answers(uploaded, "other")
    uploaded.get_by_label("masked", exact=True).check(force=True)
    uploaded.get_by_label("panoptic").check()
    uploaded.locator("#layer input").nth(1).check(force=True)
    uploaded.locator("#show label", has_text="density").click()
    let_go(uploaded, held)
    expect(uploaded.locator("#walk")).to_be_hidden()  # now the twin is shown
    expect(uploaded.get_by_label("panoptic")).to_be_checked()
    expect(uploaded.locator("#layer input").nth(1)).to_be_checked()
    expect(uploaded.locator("#show").get_by_label("density")).to_be_checked()


def test_a_flip_keeps_a_query_that_drew_nothing(uploaded: Page) -> None:
    uploaded.locator("#queries").get_by_label("Query 2", exact=True).first.click()
    for attention in ("masked", "prototypes"):
        uploaded.get_by_label(attention, exact=True).check(force=True)
        expect(uploaded.locator("#walk")).to_be_visible(visible=attention == "prototypes")
        expect(uploaded.locator("#query")).to_contain_text("Query 2")


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


def test_keys_work_wherever_the_focus_is_but_where_one_types(page: Page) -> None:
    page.keyboard.press("?")  # nothing was clicked yet
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_label("semantic").check()
    for key, layer, head in (("[", 4, 0), ("3", 4, 3)):
        page.keyboard.press(key)
        expect(page.locator("#layer input").nth(layer)).to_be_checked()
        expect(page.locator("#head input").nth(head)).to_be_checked()
    query = page.locator("#query").inner_text()
    page.locator("#opacity input").focus()
    page.keyboard.press("q")
    expect(page.locator("#query")).not_to_have_text(query)
    page.keyboard.press("ArrowRight")  # the slider's own
    expect(page.locator("#opacity input")).to_have_value("0.56")
    page.get_by_label("semantic").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("instance")).to_be_checked()
    set_number(page, "score-threshold", "0.5")
    page.keyboard.press("4")
    expect(page.locator("#head input").nth(3)).to_be_checked()

    page.get_by_role("tab", name="Efficiency").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    expect(page.locator("#keys")).not_to_be_visible()


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


def test_segment_runs_the_shown_example_again_and_it_stays_one(page: Page) -> None:
    def run_again(name: str) -> None:
        page.keyboard.press("Escape")
        expect(page.locator("#legend li.selected")).to_have_count(0)
        page.locator("#run").click()
        expect(page.locator("#legend li.selected")).to_have_count(1)  # as at first: it is another result
        expect(page.locator("#examples [aria-current=true] img")).to_have_attribute("alt", name)
        expect(page.locator("#copy-link")).to_be_enabled()

    run_again("cat")
    page.locator("#examples button:has(img[alt=palace])").click()
    expect(page.locator("#examples [aria-current=true] img")).to_have_attribute("alt", "palace")
    run_again("palace")
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


def test_segment_without_a_photo_asks_for_one(uploaded: Page) -> None:
    uploaded.get_by_label("Clear").or_(uploaded.get_by_label("Remove Image")).first.click()
    uploaded.locator("#run").click()
    expect(uploaded.get_by_test_id("toast-body")).to_contain_text("Please choose a photo first.")


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
    page.route("**/mcp/schema", lambda route: route.fulfill(json=[]))  # Gradio asks for it in vain
    page.locator("#show-api").click()
    expect(page.locator(".api-docs")).to_be_visible()


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}}], indirect=True, ids=["390px"])
def test_on_a_phone_a_panorama_keeps_its_shape_and_clicks_land(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (1200, 500), "teal").save(tmp_path / "wide.png")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "wide.png")
    expect(page.locator("#copy-link")).to_be_disabled()
    box = page.locator("#canvas").bounding_box()
    assert box and box["width"] / box["height"] == pytest.approx(1200 / 500, rel=0.01)
    for x, segment in ((0.9, "couch"), (0.1, "cat")):
        page.locator("#canvas").click(position={"x": x * box["width"], "y": 0.97 * box["height"]})
        expect(page.locator("#legend li.selected")).to_contain_text(segment)


def test_what_is_small_or_pale_can_still_be_read_and_hit(page: Page) -> None:
    contrast = """(element) => {
        const luminance = (rgb) => {
            const linear = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        };
        const channels = (color) => color.match(/[0-9.]+/g).map(Number);
        const { color, backgroundColor } = getComputedStyle(element);
        const own = channels(backgroundColor);
        const behind = own[3] === 0 ? channels(getComputedStyle(document.body).backgroundColor) : own;
        const [low, high] = [luminance(channels(color)), luminance(behind)].toSorted((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }"""
    for text in (page.locator("[role=tab][aria-selected=true]").last, *page.locator("#layer b").all()):
        assert text.evaluate(contrast) >= 4.5
    for button in page.locator("#viewer button:visible").all():
        box = button.bounding_box()
        assert box and min(box["width"], box["height"]) >= 24, button.inner_text()
    names = page.locator("#examples .thumbnail-item").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert names == ["astronaut", "cat", "coffee", "motorcycle", "palace", "rocket"]
    assert page.locator("#examples [aria-current=true]").get_attribute("aria-label") == "cat"


def test_a_result_stays_readable_while_the_next_photo_waits(page: Page) -> None:
    shown = page.locator("#viewer .html-container")
    shown.evaluate("(element) => element.classList.add('pending')")  # as Gradio does
    expect(shown).to_have_css("opacity", "0.6")


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True, ids=["dark"])
def test_dark_mode_follows_the_system(page: Page) -> None:
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")[:3]
    assert max(red, green, blue) < 60
    for place in ("#legend h3", "#query", "#queries h3", "#export h3"):
        text = page.locator(place).first.evaluate("e => getComputedStyle(e).color.match(/[0-9]+/g).map(Number)")[:3]
        assert min(text) > 150, place
