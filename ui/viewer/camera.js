// Moves the photo on the canvas: fit, zoom and pan. It also follows the size of the page.

import { camera, place, unplace } from "../core/geometry.js";
import { find, findAll } from "../core/host.js";
import { onChange, state, update } from "../core/state.js";

const MAX_ZOOM = 16;
const MIN_HEIGHT = 120; // room for the buttons and for zooming, however wide the photo is

const fitScale = () => Math.min(camera.width / state.result.width, camera.height / state.result.height);

const isZoomed = () => camera.scale > fitScale() * 1.01;

export function fit() {
  if (!state.result || !camera.width) return;
  camera.scale = fitScale();
  moved();
  placeButtons(camera.left);
}

// The buttons lie in the gap beside the fitted photo, or, where the gap is too narrow, on the photo. Zooming does not
// move them, so that they stay under the pointer that clicks them.
function placeButtons(gap) {
  const buttons = find(".zoom");
  const inGap = gap > buttons.offsetWidth + 16;
  buttons.style.right = `${inGap ? 8 : gap + 8}px`;
}

// Enlarges around a place of the canvas, its middle by default.
export function zoom(factor, left = camera.width / 2, top = camera.height / 2) {
  const smallest = fitScale();
  const scale = Math.min(Math.max(camera.scale * factor, smallest), smallest * MAX_ZOOM);
  const grown = scale / camera.scale;
  camera.left = left + (camera.left - left) * grown;
  camera.top = top + (camera.top - top) * grown;
  camera.scale = scale;
  moved();
}

export const zoomIn = () => zoom(1.5);
export const zoomOut = () => zoom(1 / 1.5);

export function pan(right, down) {
  camera.left += right;
  camera.top += down;
  moved();
}

// Keeps the photo in sight: no gap on a side where it is larger than the canvas, centred where it is smaller.
function moved() {
  const width = state.result.width * camera.scale;
  const height = state.result.height * camera.scale;
  const keep = (from, size, room) => (size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, from)));
  camera.left = keep(camera.left, width, camera.width);
  camera.top = keep(camera.top, height, camera.height);
  // While the whole photo is seen, a finger scrolls the page.
  find("#canvas").style.touchAction = isZoomed() ? "none" : "pan-y";
  update({ camera: { ...camera } });
}

function resize() {
  const canvas = find("#canvas");
  const width = find(".studio-view").clientWidth;
  if (!state.result || width === 0) return;
  const aspect = state.result.height / state.result.width;
  const highest = Math.max(320, window.innerHeight * 0.62);
  const height = Math.round(Math.min(Math.max(width * aspect, MIN_HEIGHT), highest));
  if (width === camera.width && height === camera.height) return;
  const wasZoomed = camera.width > 0 && isZoomed();
  const middle = unplace(camera.width / 2, camera.height / 2);
  Object.assign(camera, { width, height });
  canvas.style.height = `${height}px`;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const { scale } = camera;
  fit();
  if (!wasZoomed) return;
  // What was in the middle stays there.
  zoom(scale / camera.scale);
  const [left, top] = place(...middle);
  pan(camera.width / 2 - left, camera.height / 2 - top);
}

export function setUpCamera() {
  const actions = { in: zoomIn, out: zoomOut, fit };
  for (const button of findAll(".zoom button")) button.addEventListener("click", actions[button.dataset.zoom]);
  onChange(["result"], () => {
    camera.width = 0; // another photo, another height
    resize();
  });
  new ResizeObserver(resize).observe(find(".studio-view"));
  window.addEventListener("resize", resize);
}
