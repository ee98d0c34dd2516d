// The mask of a query after each step, as colours and as an outline.

import { channels } from "../core/colors.js";
import { boxOf } from "../core/geometry.js";
import { make } from "../core/host.js";
import { drawInBox, paintCells, strokeCells } from "../core/pictures.js";
import { colorOfQuery } from "../core/result.js";
import { state } from "../core/state.js";

const SURE = 128; // mask values are probabilities times 255: from here on a pixel belongs to the query
const NOISE = 20; // the sheets are compressed, so smaller values mean nothing

const shaded = new Map(); // the masks painted last, with their outlines, by result, query, step and color

// One row of the mask of a query at a step: probabilities times 255. The sheet has `perRow` masks side by side.
function maskRow(query, step, row) {
  const { rows, cols, per_row: perRow } = state.result.masks;
  const sheetRow = Math.floor(query / perRow) * rows + row;
  const from = (sheetRow * perRow + (query % perRow)) * cols;
  return state.result.pictures.sheets[step].subarray(from, from + cols);
}

// The whole mask, row by row.
function maskOf(query, step) {
  const { rows, cols } = state.result.masks;
  const values = new Uint8Array(rows * cols);
  for (let row = 0; row < rows; row++) values.set(maskRow(query, step, row), row * cols);
  return values;
}

// The probability of a query's mask at a place of the photo, 0..1.
export function maskAt(query, step, x, y) {
  const { rows, cols, extent } = state.result.masks;
  const row = Math.min(rows - 1, Math.floor((y / extent[0]) * rows));
  const col = Math.min(cols - 1, Math.floor((x / extent[1]) * cols));
  return maskRow(query, step, row)[col] / 255;
}

// Paints a mask into a canvas of its own: the surer, the more opaque.
export function paintMask(canvas, query, step, color) {
  const { rows, cols } = state.result.masks;
  const values = maskOf(query, step);
  const rgb = channels(color);
  paintCells(canvas, rows, cols, (i) => [...rgb, values[i] < NOISE ? 0 : values[i]]);
}

function shadedMask(query, step, color) {
  const key = `${state.result.id} ${query} ${step} ${color}`;
  if (!shaded.has(key)) {
    if (shaded.size > 64) shaded.clear();
    const { rows, cols } = state.result.masks;
    const values = maskOf(query, step);
    const rgb = channels(color);
    const picture = paintCells(make("canvas"), rows, cols, (i) =>
      values[i] >= SURE ? [...rgb, 255] : [0, 0, 0, 255 - values[i]],
    );
    shaded.set(key, { picture, outline: outlineOf(values, rows, cols) });
  }
  return shaded.get(key);
}

// Where the mask crosses a probability of one half (marching squares), in cells.
function outlineOf(values, rows, cols) {
  const path = new Path2D();
  const at = (row, col) => values[row * cols + col] - SURE + 0.5;
  for (let row = 0; row + 1 < rows; row++) {
    for (let col = 0; col + 1 < cols; col++) {
      const [a, b, c, d] = [at(row, col), at(row, col + 1), at(row + 1, col + 1), at(row + 1, col)];
      const [x, y] = [col + 0.5, row + 0.5];
      // The outline passes through the sides (top, right, bottom, left) along which the sign changes.
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

// Draws the mask over a photo that fills the box, and dims the photo elsewhere.
export function drawMaskIn(context, box, query, step, opacity) {
  const { rows, cols, extent } = state.result.masks;
  const { picture, outline } = shadedMask(query, step, colorOfQuery(query));
  const span = { ...box, width: extent[1] * box.width, height: extent[0] * box.height };
  context.globalAlpha = opacity;
  drawInBox(context, picture, span, true);
  context.globalAlpha = 1;
  context.lineCap = "round";
  strokeCells(context, outline, { rows, cols }, span, "#fff", 1.5);
}

// The mask of the selected query over the photo on the canvas.
export function drawMask(context) {
  if (state.query !== null) drawMaskIn(context, boxOf(), state.query, state.step, state.opacity);
}
