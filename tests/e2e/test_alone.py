"""The viewer on a plain HTML page, without Gradio and without any server: it shows a recorded result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from studio import rows

from ui import precompute
from ui.viewer import SCRIPTS, START, STYLES, VERSION
from ui.viewer import page as viewer_html

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed.")
from playwright.sync_api import Page, Route, expect  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ADDRESS = "http://viewer.example/with/a/folder/"
RESULT = precompute.load()
HTML = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:">
<style>STYLES</style>
<div id="viewer">VIEWER</div>
<script type="module">
  import { start } from "./scripts/VERSION/viewer/main.js";
  const [element, props, watch, server] = [document.querySelector("#viewer"), { value: RESULT }, () => {}, {}];
  start({ element, props, watch, server });
</script>
"""
PARTS = {
    "STYLES": "".join(path.read_text(encoding="utf-8") for path in STYLES),
    "VIEWER": viewer_html(),
    "VERSION": VERSION,
    "RESULT": json.dumps(RESULT),
}
IMPORT, CALL = (line for line in HTML.splitlines(keepends=True) if "start" in line)
AS_IN_GRADIO = HTML.replace(IMPORT, "").replace(CALL, START)  # Gradio makes a function of that text, and calls it


def fill(html: str) -> str:
    for name, part in PARTS.items():
        html = html.replace(name, part)
    return html


@pytest.fixture
def alone(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page. When the test is over, nothing was asked for but its scripts, and no error was logged."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    foreign, errors = [], []

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(ADDRESS).removeprefix(f"scripts/{VERSION}/")
        if path == "":
            route.fulfill(body=fill(getattr(request, "param", HTML)), content_type="text/html")
        elif path in SCRIPTS:
            route.fulfill(body=SCRIPTS[path], content_type="text/javascript")
        elif not route.request.url.startswith(("data:", "blob:")):
            foreign.append(route.request.url)
            route.abort()

    page.route("**/*", answer)
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(ADDRESS)
    expect(rows(page)).to_have_count(2)
    yield page
    page.close()
    assert (foreign, errors) == ([], [])


def painted(page: Page) -> str:
    """What the canvas shows, once it is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate("() => document.querySelector('#canvas').toDataURL()")


@pytest.mark.parametrize("alone", [HTML, AS_IN_GRADIO], indirect=True, ids=["import", "as in Gradio"])
def test_a_recorded_result_is_shown_without_a_server(alone: Page) -> None:
    cat = RESULT["readings"][0]["segments"][0]
    expect(alone.locator("#legend li.selected")).to_contain_text(f"query {cat['queries'][0]}")
    expect(alone.locator("#query")).to_contain_text(f"Query {cat['queries'][0]} · cat")
    expect(alone.locator("#timing")).to_contain_text("pixel decoder")
    expect(alone.locator("#evolution .strip button")).to_have_count(len(RESULT["layers"]) + 1)
    expect(alone.locator("#queries tbody tr")).to_have_count(RESULT["model"]["num_queries"])


def test_tasks_that_were_recorded_flip_and_others_say_that_nobody_answers(alone: Page) -> None:
    for reading in RESULT["readings"]:
        alone.get_by_label(reading["task"], exact=True).check()
        expect(alone.locator("#legend h3")).to_contain_text(f"{len(reading['segments'])} segment")
    alone.get_by_label("panoptic", exact=True).check()
    threshold = alone.locator("#score-threshold input[type=number]")
    threshold.fill("0.31")
    threshold.press("Enter")
    expect(alone.locator(".studio-note")).to_contain_text("The server does not answer")
    expect(threshold).to_have_value(f"{RESULT['readings'][0]['object_threshold']:.2f}")


def test_everything_is_painted_that_needs_no_server(alone: Page) -> None:
    seen = [painted(alone)]
    for show in ("mask", "density", "segments"):
        alone.locator("#show label", has_text=show).click()
        seen.append(painted(alone))
    assert seen.pop() == seen[0] and len(set(seen)) == 3
    alone.locator("#layer input").nth(0).check(force=True)
    expect(alone.locator("#picks li").first).to_contain_text("layer 1 · ")
    alone.locator("#canvas").focus()
    alone.keyboard.press("w")
    expect(alone.locator(".wipe-handle")).to_be_visible()
    alone.keyboard.press("ArrowRight")
    expect(alone.locator("#legend li.selected")).to_contain_text("wall")
    alone.locator("#queries").get_by_label("table").check()
    alone.locator("#queries tbody tr").nth(2).click()
    expect(alone.locator("#queries tr.selected")).to_have_count(1)
    with alone.expect_download() as download:
        alone.get_by_role("button", name="This view (PNG)").click()
    assert download.value.suggested_filename == "cat_view.png"


@pytest.mark.parametrize("num_layers", [1, 3, 9])
def test_any_number_of_layers_has_its_colours(alone: Page, num_layers: int) -> None:
    found = alone.evaluate(
        """async ([number, version]) => {
            const [{ state }, { layerColor, inkOnLayer }] = await Promise.all(
                ["state", "colors"].map((name) => import(`./scripts/${version}/core/${name}.js`)));
            const { result } = state;
            state.result = { ...result, layers: Array(number).fill(result.layers[0]) };
            const colors = state.result.layers.map((_, layer) => [layerColor(layer), inkOnLayer(layer)]);
            state.result = result;
            return colors;
        }""",
        [num_layers, VERSION],
    )
    colors = [color for color, _ in found]
    assert len(set(colors)) == num_layers and colors[0] == "rgb(253,231,37)"
    assert {ink for _, ink in found} <= {"#000", "#fff"}


def test_scripts_that_do_not_arrive_are_missed_in_words(browser: Browser) -> None:
    def answer(route: Route) -> None:
        if route.request.url == ADDRESS:
            route.fulfill(body=fill(AS_IN_GRADIO), content_type="text/html")
        else:
            route.abort()

    page = browser.new_page()
    page.route("**/*", answer)
    page.goto(ADDRESS)
    expect(page.locator(".studio-empty")).to_have_text("Parts of this page did not arrive; please reload it.")
    page.close()
