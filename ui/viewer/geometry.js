// Where the photo lies on the canvas, and what pictures and colours are made of. All lengths are CSS pixels, all places fractions of the photo.

import { state } from "./state.js";

// The photo's left upper corner on the canvas, and how many CSS pixels one pixel of the shown photo takes.
export const camera = { left: 0, top: 0, scale: 1 };

// From a fraction of the photo to the canvas.
export function place(x, y) {
  const { width, height } = state.result;
  return [camera.left + x * width * camera.scale, camera.top + y * height * camera.scale];
}

// From the canvas to a fraction of the photo; outside 0..1 beside it.
export function unplace(left, top) {
  const { width, height } = state.result;
  return [(left - camera.left) / (width * camera.scale), (top - camera.top) / (height * camera.scale)];
}

// Draws a picture or canvas so that it spans the given fractions of the photo, with hard cells or smooth.
export function drawSpanning(context, picture, width, height, smooth) {
  const [left, top] = place(0, 0);
  const [right, bottom] = place(width, height);
  context.imageSmoothingEnabled = smooth;
  context.drawImage(picture, left, top, right - left, bottom - top);
}

// Whatever is drawn until `context.restore()` stays on the photo, or on this part of its width: grids and masks may
// reach into the padding.
export function clipToPhoto(context, from = 0, to = 1) {
  const [left, top] = place(from, 0);
  const [right, bottom] = place(to, 1);
  context.save();
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
}

// The width and height of a picture whose longer side is shrunk or grown to so many pixels.
export function sizeWithin(pixels, { width, height }) {
  const scale = pixels / Math.max(width, height);
  return [width, height].map((side) => Math.max(1, Math.round(scale * side)));
}

export function loadImage(uri) {
  const image = new Image();
  image.src = uri;
  return image.decode().then(() => image);
}

// "#ff6a3c" as its red, green and blue, 0..255.
export const channels = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));

export const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
