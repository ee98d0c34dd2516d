// How the mask of the selected query grew from prediction to prediction.

import { channels, loadImage, sizeWithin } from "../viewer/geometry.js";
import { find, findAll, LAYER_COLORS, make, onChange, percent, state, update } from "../viewer/state.js";
import { togglePlaying } from "./bar.js";
import { colorOfQuery, lastStep, paintCells, photoBox, pictures, predictionOf } from "./points.js";

const SURE = 128; // mask values are probabilities times 255: from here on a pixel belongs to the query
const NOISE = 20; // the sheets are compressed, and below this nothing can be told from nothing
const STRIP_PX = 320;
const STRIP_OPACITY = 0.6;

// Decodes the photo and the masks of a result that is about to be shown.
export async function loadMaskSheets(result) {
  const [photo, ...sheets] = await Promise.all([result.photo, ...result.masks.sheets].map(loadImage));
  pictures.photo = photo;
  pictures.sheets = sheets.map(greyOf);
  painted.clear();
}

function greyOf(image) {
  const canvas = make("canvas", { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  return Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
}

// The mask of a query at a step: probabilities times 255, row by row.
function maskOf(query, step) {
  const { rows, cols, per_row: perRow } = state.result.masks;
  const width = perRow * cols;
  const start = Math.floor(query / perRow) * rows * width + (query % perRow) * cols;
  const values = new Uint8Array(rows * cols);
  for (let row = 0; row < rows; row++) {
    const from = start + row * width;
    values.set(pictures.sheets[step].subarray(from, from + cols), row * cols);
  }
  return values;
}

// The probability of a query's mask at a place of the photo, 0..1.
export function maskAt(query, step, x, y) {
  const { rows, cols, extent } = state.result.masks;
  const row = Math.min(rows - 1, Math.floor((y / extent[0]) * rows));
  const col = Math.min(cols - 1, Math.floor((x / extent[1]) * cols));
  return maskOf(query, step)[row * cols + col] / 255;
}

// The mask of a query after a step, painted into a canvas of its own: the surer, the more opaque.
export function paintMask(canvas, query, step, color) {
  const { rows, cols } = state.result.masks;
  const values = maskOf(query, step);
  const [red, green, blue] = channels(color);
  paintCells(canvas, rows, cols, (i) => [red, green, blue, values[i] < NOISE ? 0 : values[i]]);
}

const painted = new Map(); // of the current result: colours and outline of the masks shown last

function shadedMask(query, step, color) {
  const key = `${query} ${step} ${color}`;
  if (!painted.has(key)) {
    if (painted.size > 64) painted.clear();
    const { rows, cols } = state.result.masks;
    const values = maskOf(query, step);
    const rgb = channels(color);
    const picture = paintCells(make("canvas"), rows, cols, (i) =>
      values[i] >= SURE ? [...rgb, 255] : [0, 0, 0, 255 - values[i]],
    );
    painted.set(key, { picture, outline: outlineOf(values, rows, cols) });
  }
  return painted.get(key);
}

// Where the mask crosses a probability of one half (marching squares), in cells.
function outlineOf(values, rows, cols) {
  const path = new Path2D();
  const at = (row, col) => values[row * cols + col] - SURE + 0.5;
  for (let row = 0; row + 1 < rows; row++) {
    for (let col = 0; col + 1 < cols; col++) {
      const [a, b, c, d] = [at(row, col), at(row, col + 1), at(row + 1, col + 1), at(row + 1, col)];
      const [x, y] = [col + 0.5, row + 0.5];
      // Top, right, bottom, left: where the sign changes along a side, the outline passes.
      const crossings = [];
      if (a > 0 !== b > 0) crossings.push([x + a / (a - b), y]);
      if (b > 0 !== c > 0) crossings.push([x + 1, y + b / (b - c)]);
      if (c > 0 !== d > 0) crossings.push([x + d / (d - c), y + 1]);
      if (d > 0 !== a > 0) crossings.push([x, y + a / (a - d)]);
      for (let i = 0; i < crossings.length; i += 2) {
        path.moveTo(...crossings[i]);
        path.lineTo(...crossings[i + 1]);
      }
    }
  }
  return path;
}

// The photo is dimmed where the mask is not.
function drawMaskOn(context, box, query, step, opacity) {
  const { rows, cols, extent } = state.result.masks;
  const { picture, outline } = shadedMask(query, step, colorOfQuery(query));
  const [width, height] = [extent[1] * box.width, extent[0] * box.height];
  context.imageSmoothingEnabled = true;
  context.globalAlpha = opacity;
  context.drawImage(picture, box.left, box.top, width, height);
  context.globalAlpha = 1;
  const placed = new Path2D();
  placed.addPath(outline, new DOMMatrix([width / cols, 0, 0, height / rows, box.left, box.top]));
  context.strokeStyle = "#fff";
  context.lineWidth = 1.5;
  context.lineCap = "round";
  context.stroke(placed);
}

export function drawMask(context) {
  if (state.query !== null) drawMaskOn(context, photoBox(), state.query, state.step, state.opacity);
}

// --------------------------------------------------------------------------------------------------------------- strip

const stepName = (step) => (step === 0 ? "before any layer" : `after layer ${step}`);

function stepButton(step) {
  const { category, score, noObject, area, iou } = predictionOf(state.query, step);
  const [width, height] = sizeWithin(STRIP_PX, state.result);
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(pictures.photo, 0, 0, canvas.width, canvas.height);
  drawMaskOn(
    context,
    { left: 0, top: 0, width: canvas.width, height: canvas.height },
    state.query,
    step,
    STRIP_OPACITY,
  );

  const dot = make("i", { className: "dot" });
  dot.style.background = step === 0 ? "transparent" : LAYER_COLORS[step - 1];
  const bar = make("span", { className: "iou" }, make("i"));
  bar.firstChild.style.width = `${100 * iou}%`;
  // Two empty masks count as equal, but there is nothing that they agree on.
  const overlap = area === 0 && iou === 1 ? ["IoU –"] : [`IoU ${iou.toFixed(2)}`, bar];
  const isObject = score >= noObject;
  return make(
    "button",
    {
      type: "button",
      onclick: () => update({ step, show: "mask", playing: null }),
      title: `Show the mask ${stepName(step)}`,
    },
    canvas,
    make("span", { className: "step" }, dot, stepName(step)),
    make(
      "span",
      { className: "class" },
      make("b", {}, isObject ? category : "no object"),
      ` ${(isObject ? score : noObject).toFixed(2)}`,
    ),
    make("span", { className: "numbers" }, `area ${percent(area)}`),
    make("span", { className: "numbers" }, ...overlap),
  );
}

function showStrip() {
  const none = state.query === null;
  find("#evolution").hidden = none;
  if (none || !state.result) return;
  const steps = Array.from({ length: lastStep() + 1 }, (_, step) => stepButton(step));
  find("#evolution .strip").replaceChildren(...steps);
  markStep();
}

function markStep() {
  findAll("#evolution .strip button").forEach((button, step) => {
    button.setAttribute("aria-pressed", state.show === "mask" && step === state.step);
  });
}

export function setUpEvolution() {
  find("#play-steps").addEventListener("click", () => togglePlaying("steps"));
  onChange(["result", "query", "reading"], showStrip);
  onChange(["step", "show"], markStep);
}
