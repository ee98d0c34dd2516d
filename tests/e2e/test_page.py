"""The page in a real browser: what a visitor sees of a photo, its queries and their prototypes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from halves_model import SIMILARITY
from studio import CAT_COLOR, on_photo, photo_box, pixel, prototype_place, rows, set_number

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
from playwright.sync_api import Page, Route, expect  # noqa: E402

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
    expect(uploaded.locator("#viewer .hover")).to_have_text(re.compile(r"cat\s+0\.90 · 50\.0\s% · query 0"))


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
    uploaded.get_by_label("masked", exact=True).check(force=True)
    expect(uploaded.locator("#attention")).not_to_have_attribute("aria-busy", "true")
    uploaded.locator("#examples button:has(img[alt=palace])").click()
    expect(uploaded.locator("#examples button:has(img[alt=palace])")).to_have_attribute("aria-current", "true")
    expect(uploaded.get_by_label("masked", exact=True)).to_be_checked()
    expect(uploaded.locator("#walk")).to_be_hidden()  # the result is indeed the masked baseline's


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


def test_names_stand_where_their_segment_has_most_room(uploaded: Page) -> None:
    uploaded.locator("#points").click()
    uploaded.keyboard.press("Escape")

    def has_name(x: float) -> bool:
        """Letters and their dark ground, which is nowhere else on a grey photo."""
        return any(max(pixel(uploaded, x + dx, 0.5)) < 100 for dx in (-0.02, -0.01, 0, 0.01, 0.02))

    assert has_name(0.25) and has_name(0.75)
    uploaded.get_by_label("Hide cat").click()
    assert not has_name(0.25) and has_name(0.75)
    uploaded.locator("#names").click()
    assert not has_name(0.75)


def test_a_class_may_be_called_anything(uploaded: Page) -> None:
    name = "<b>\u82f9\u679c</b> " + "with a long name " * 12

    def renamed(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        for segment in answer["segments"]:
            segment["category"] = name
        route.fulfill(response=response, json=answer)

    uploaded.route("**/component_server/", renamed)
    set_number(uploaded, "score-threshold", "0.51")  # a reading that is not known yet
    expect(uploaded.locator("#legend")).to_contain_text("<b>\u82f9\u679c</b> with a long name")
    expect(uploaded.locator("#legend b", has_text="\u82f9")).to_have_count(0)  # text, and no markup
    assert uploaded.evaluate("document.documentElement.scrollWidth") == 1280
    left, _, width, _ = photo_box(uploaded)
    assert left > 20  # grey stays grey beside and in the photo: a name that is wider is not written
    assert min(pixel(uploaded, x / 20, 0.5)[1] for x in range(1, 20)) > 60


def test_a_photo_without_segments_tells_what_came_closest(uploaded: Page) -> None:
    set_number(uploaded, "score-threshold", "0.95")
    expect(uploaded.locator("#legend")).to_contain_text("No query scores above 0.95. Closest: cat 0.90, couch 0.60.")
    # A click finds the query that would have drawn here, and why it did not.
    uploaded.locator("#canvas").click(position=on_photo(uploaded, 0.7, 0.85))
    expect(uploaded.locator("#query")).to_contain_text(
        "Query 1 · couch · score 0.60 · draws nothing: score 0.60 is not"
    )
    uploaded.keyboard.press("Escape")
    uploaded.get_by_label("instance").check()
    expect(uploaded.locator("#legend")).to_contain_text("No thing scores above 0.95. Closest: cat")
    uploaded.get_by_label("panoptic").check()
    uploaded.get_by_role("button", name="Ask for 0.89 only").click()
    expect(rows(uploaded)).to_have_count(1)
    expect(uploaded.locator("#query")).to_contain_text("Query 0 · cat")


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
    uploaded.set_viewport_size({"width": 1280, "height": 840})
    box = canvas.bounding_box()
    assert box
    uploaded.mouse.move(box["x"] + box["width"] / 2 + 100, box["y"] + box["height"] / 2)
    expect(uploaded.locator("#viewer .hover")).to_contain_text("cat")  # it still does
    uploaded.set_viewport_size({"width": 1280, "height": 900})
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
    expect(choice).to_contain_text("Attention of the masked baseline (its query 1, mask IoU 1.00)")


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
    layer = uploaded.locator("#layer input:checked").get_attribute("value")
    for step in range(2, 8):
        if step == 3:
            uploaded.locator("#layer input").nth(4).check(force=True)  # it goes on with its own
        card.locator(".walk-next").click()
        if step == 3:
            expect(uploaded.locator(f"#layer input[value='{layer}']")).to_be_checked()
        expect(card).to_contain_text(f"{step} of 7")
        seen += card.inner_text()
    assert f"{SIMILARITY:.3f}" in seen and "cat" in seen
    card.locator(".walk-next").click()
    expect(card).not_to_be_visible()
    expect(uploaded.locator("#patch")).to_be_hidden()  # it was opened on the way


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
