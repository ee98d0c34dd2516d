"""What leads away from the page and back to it: exports, links, and the flip to the other attention."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studio import hold_answers, let_go, on_photo, photo_box, pixel, prototype_place, rows, set_number

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
from playwright.sync_api import Page, expect  # noqa: E402


def test_an_overlay_leaves_out_what_is_hidden_and_what_is_off(uploaded: Page) -> None:
    uploaded.get_by_label("Hide cat").click()
    uploaded.locator("#outlines").click()
    uploaded.locator("#names").click()
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
        content = json.loads(archive.read("large_segments.json"))
        [annotation] = content["annotations"]
        ids = np.asarray(Image.open(io.BytesIO(archive.read(annotation["file_name"]))))
    assert content["images"] == [{"id": 1, "file_name": "large.jpg", "width": 2560, "height": 1920}]
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
def test_a_link_may_show_the_masked_baseline(page: Page) -> None:
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


@pytest.mark.parametrize("threshold", ["0.50", "0.10"], ids=["the first reading", "another reading"])
def test_a_copied_link_hides_what_is_hidden(page: Page, threshold: str) -> None:
    set_number(page, "score-threshold", threshold)
    page.wait_for_timeout(500)  # for the reading, which shows all
    page.get_by_label("Hide couch").click()
    page.locator("#copy-link").click()
    page.goto(page.locator("#link").input_value())
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_label("Hide couch")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Hide cat")).to_have_attribute("aria-pressed", "false")
    page.wait_for_timeout(500)  # for what must not happen now
    expect(page.get_by_label("Hide couch")).to_have_attribute("aria-pressed", "true")


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
    expect(page.locator(".studio-note")).to_be_hidden()  # nothing else is on its way


# ------------------------------------------------------------------------------------------------ the other attention


def test_a_flip_of_the_attention_shows_the_masked_baseline_in_the_same_view(uploaded: Page) -> None:
    cat = uploaded.locator("#legend li", has_text="cat")
    expect(cat).to_contain_text("query 0")
    uploaded.get_by_label("semantic").check()
    uploaded.locator("#layer input").nth(2).check(force=True)
    uploaded.get_by_label("masked", exact=True).check(force=True)
    expect(cat).to_contain_text("query 1")  # the masked baseline draws it with another query
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
    expect(uploaded.locator("#walk")).to_be_hidden()  # now the masked baseline is shown
    expect(uploaded.get_by_label("panoptic")).to_be_checked()
    expect(uploaded.locator("#layer input").nth(1)).to_be_checked()
    expect(uploaded.locator("#show").get_by_label("density")).to_be_checked()


def test_a_flip_keeps_a_query_that_drew_nothing(uploaded: Page) -> None:
    uploaded.locator("#queries").get_by_label("Query 2", exact=True).first.click()
    for attention in ("masked", "prototypes"):
        uploaded.get_by_label(attention, exact=True).check(force=True)
        expect(uploaded.locator("#walk")).to_be_visible(visible=attention == "prototypes")
        expect(uploaded.locator("#query")).to_contain_text("Query 2")


def test_both_attentions_lie_on_one_side_of_a_line_each(uploaded: Page) -> None:
    name, agreement = uploaded.locator("#viewer .hover"), uploaded.locator("#agreement")

    def named_at(x: float, y: float) -> str:
        uploaded.locator("#canvas").hover(position=on_photo(uploaded, x, y))
        return name.inner_text() if name.is_visible() else ""

    assert "query 0" in named_at(0.3, 0.85)
    held = hold_answers(uploaded, "read")
    uploaded.keyboard.press("b")
    expect(uploaded.locator("#compare")).to_have_attribute("aria-busy", "true")
    let_go(uploaded, held)
    uploaded.unroute("**/component_server/")
    expect(agreement).to_have_text("Of what either of the two names, they agree on 100.0 %.")
    handle = uploaded.locator(".wipe-handle")
    expect(handle).to_have_attribute("aria-label", "Line between masked on the left and prototypes on the right")
    handle.fill("0.4")
    assert re.match("masked: cat.*query 1", named_at(0.3, 0.85))  # the masked baseline draws the cat with another query
    assert re.match("cat.*query 0", named_at(0.45, 0.85))
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.7, 0.85))
    expect(uploaded.locator("#query")).to_contain_text("Query 1")
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.3, 0.85))  # the texts below are not about it
    expect(uploaded.locator(".studio-note")).to_contain_text("the other network's: switch Attention to masked")
    expect(uploaded.locator("#query")).to_contain_text("Query 1")
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.45, 0.85))
    place = prototype_place(5, 0, 0)
    assert "cat" in named_at(*place)  # its prototypes are not those of the masked baseline
    handle.fill("0.1")
    assert "layer 6" in named_at(*place)

    set_number(uploaded, "score-threshold", "0.8")  # for both: nobody draws the couch
    expect(rows(uploaded)).to_have_count(1)
    expect(agreement).to_contain_text("100.0 %")
    handle.fill("0.9")
    assert named_at(0.7, 0.85) == ""
    set_number(uploaded, "score-threshold", "1")
    expect(agreement).to_have_text("Neither of the two names anything.")
    set_number(uploaded, "score-threshold", "0.5")
    expect(rows(uploaded)).to_have_count(2)  # what comes with them may move what is clicked next

    uploaded.get_by_label("masked", exact=True).check(force=True)
    expect(uploaded.locator("#walk")).to_be_hidden()
    expect(agreement).to_contain_text("100.0 %")
    assert re.match("prototypes: cat.*query 0", named_at(0.3, 0.85))  # now the masked baseline is on the right
    uploaded.keyboard.press("w")  # before and after, of one network again
    expect(agreement).to_be_empty()
    expect(uploaded.locator("#wipe")).to_have_attribute("aria-pressed", "true")
    assert re.match("cat.*query 1", named_at(0.3, 0.85))


def test_a_comparison_that_is_called_off_while_it_loads_leaves_nothing(uploaded: Page) -> None:
    held = hold_answers(uploaded, "read")
    uploaded.locator("#compare").click()
    uploaded.locator("#compare").click()
    let_go(uploaded, held)
    expect(uploaded.locator("#compare")).to_have_attribute("aria-pressed", "false")
    expect(uploaded.locator("#compare")).not_to_have_attribute("aria-busy", "true")
    expect(uploaded.locator("#agreement")).to_be_empty()
    expect(uploaded.locator(".wipe-handle")).to_be_hidden()


def test_the_line_follows_the_pointer_that_takes_it(uploaded: Page) -> None:
    uploaded.locator("#wipe").click()
    handle = uploaded.locator(".wipe-handle")
    box = uploaded.locator("#canvas").bounding_box()
    assert box
    left, top, width, height = photo_box(uploaded)
    x, y = box["x"] + left, box["y"] + top + height / 2
    uploaded.mouse.move(x + width / 2, y)
    uploaded.mouse.down()
    for fraction in (0.45, 0.4, 0.3):
        uploaded.mouse.move(x + fraction * width, y)
    uploaded.mouse.up()
    assert float(handle.input_value()) == pytest.approx(0.3, abs=0.01)
    slider = handle.bounding_box()
    assert slider and (slider["x"], slider["width"]) == pytest.approx((x, width), abs=2)


@pytest.mark.parametrize("page", [{"query": "?example=cat&left=other&wipe=0.3"}], indirect=True, ids=["link"])
def test_a_link_leads_to_a_comparison(page: Page) -> None:
    expect(page.locator("#compare")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#agreement")).to_contain_text("100.0 %")
    assert float(page.locator(".wipe-handle").input_value()) == pytest.approx(0.3, abs=0.01)
