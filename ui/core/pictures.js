// Decodes pictures, and paints on canvases.

import { make } from "./host.js";
import { state } from "./state.js";

function loadImage(uri) {
  const image = new Image();
  image.src = uri;
  return image.decode().then(() => image);
}

// Red, green, blue, alpha of each pixel, row by row.
async function pixelsOf(uri) {
  const image = await loadImage(uri);
  const { width, height } = image;
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

// Adds to a result, once, its decoded `pictures`: the photo, and per step one grey sheet with the masks of all queries
// (Uint8Array, row by row).
export async function decodePictures(result) {
  if (result.pictures) return;
  const greyOf = (data) => Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
  const sheets = result.masks.sheets.map(async (uri) => greyOf(await pixelsOf(uri)));
  result.pictures = { photo: await loadImage(result.photo), sheets: await Promise.all(sheets) };
}

// Adds to a reading, once, its `idMap`: the id of each pixel of the shown photo.
export async function decodeIds(reading) {
  if (reading.idMap) return;
  const data = await pixelsOf(reading.ids);
  reading.idMap = Uint16Array.from({ length: data.length / 4 }, (_, i) => data[4 * i] + 256 * data[4 * i + 1]);
}

export const decodeBytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// Makes the canvas rows x cols pixels and gives each the colour [red, green, blue, alpha], 0..255, of its index.
export function paintCells(canvas, rows, cols, colorOf) {
  canvas.width = cols;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(cols, rows);
  for (let i = 0; i < rows * cols; i++) image.data.set(colorOf(i), 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}

// Paints the photo on a canvas, its longer side scaled to so many pixels. Returns the context and the box of the photo.
export function paintPhoto(canvas, pixels) {
  const { photo } = state.result.pictures;
  const scale = pixels / Math.max(photo.width, photo.height);
  canvas.width = Math.max(1, Math.round(scale * photo.width));
  canvas.height = Math.max(1, Math.round(scale * photo.height));
  const context = canvas.getContext("2d");
  const box = { left: 0, top: 0, width: canvas.width, height: canvas.height };
  drawInBox(context, photo, box, true);
  return { context, box };
}

// Draws a picture or a canvas into a box, with hard cells or smooth.
export function drawInBox(context, picture, { left, top, width, height }, smooth) {
  context.imageSmoothingEnabled = smooth;
  context.drawImage(picture, left, top, width, height);
}

// Makes grey what is already drawn in a box, so that the colours of a map can be read.
export function drainColor(context, { left, top, width, height }) {
  context.save();
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#808080";
  context.fillRect(left, top, width, height);
  context.restore();
}

// Keeps inside the box whatever is drawn until `context.restore()`.
export function clipTo(context, { left, top, width, height }) {
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
}

// Strokes the current path of the context, or another one.
export function stroke(context, color, width, ...path) {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke(...path);
}

// Strokes a path that is given in the cells of a grid; the grid fills the box.
export function strokeCells(context, path, { rows, cols }, { left, top, width, height }, color, lineWidth) {
  const placed = new Path2D();
  placed.addPath(path, new DOMMatrix([width / cols, 0, 0, height / rows, left, top]));
  stroke(context, color, lineWidth, placed);
}
