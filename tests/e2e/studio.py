"""Where things are on the page, and how a visitor gets at them.

The model is tests/halves_model.py: query 0 draws a cat on the left half of any photo, query 1 a couch on the right.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from halves_model import STRIDES, picked_token
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

# 3:4: the network sees it as 384 x 512 without padding.
PHOTO_SIZE = (640, 480)
NETWORK_SIZE = (512, 384)
CAT_COLOR = (255, 106, 60)  # in pem.categories


def rows(page: Page) -> Locator:
    return page.locator("#legend li:not(.rest)")


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
