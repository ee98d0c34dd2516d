// Where the photo lies on the canvas. All lengths are CSS pixels, all places are fractions of the photo.

import { state } from "./state.js";

// The size of the canvas, the photo's upper left corner on it, and the length of one pixel of the shown photo.
export const camera = { width: 0, height: 0, left: 0, top: 0, scale: 1 };

// From a place on the photo to the canvas.
export function place(x, y) {
  const { width, height } = state.result;
  return [camera.left + x * width * camera.scale, camera.top + y * height * camera.scale];
}

// From the canvas to a place on the photo; beside the photo it is outside 0..1.
export function unplace(left, top) {
  const { width, height } = state.result;
  return [(left - camera.left) / (width * camera.scale), (top - camera.top) / (height * camera.scale)];
}

// A part of the photo as a box on the canvas.
export function boxOf(fromX = 0, toX = 1) {
  const [left, top] = place(fromX, 0);
  const [right, bottom] = place(toX, 1);
  return { left, top, width: right - left, height: bottom - top };
}

// Where the grid of a layer lies when the photo fills a box. Its last cells may reach into the padding.
export function gridBox(layer, { left, top, width, height }) {
  const { x, y, rows, cols } = state.result.layers[layer];
  const [spanX, spanY] = [(x[cols - 1] / (cols - 0.5)) * cols, (y[rows - 1] / (rows - 0.5)) * rows];
  return { left, top, width: spanX * width, height: spanY * height };
}

// The token with this index in a layer: its cell, and the centre of the cell as a place.
export function tokenAt(layer, index) {
  const { x, y, cols } = state.result.layers[layer];
  const [row, col] = [Math.floor(index / cols), index % cols];
  return { layer, index, row, col, x: x[col], y: y[row], inPadding: x[col] > 1 || y[row] > 1 };
}
