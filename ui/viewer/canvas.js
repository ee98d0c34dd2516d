// Draws the picture: the photo, and over it the segments or whatever else is chosen, the line, and the points.

import { boxOf, camera, place } from "../core/geometry.js";
import { find } from "../core/host.js";
import { clipTo, drawInBox } from "../core/pictures.js";
import { isPainted, segmentById } from "../core/result.js";
import { onChange, state } from "../core/state.js";
import { percent } from "../core/words.js";
import { drawChoice } from "../prototypes/choice.js";
import { drawDensity } from "../prototypes/density.js";
import { drawMask } from "../prototypes/masks.js";
import { drawPoints } from "../prototypes/points.js";
import { drawName, drawNames, nameBox } from "./names.js";
import { drawOtherSegments, drawOwnSegments } from "./segments.js";
import { drawWipe, networkNames } from "./wipe.js";

let frame = 0;

function draw() {
  frame = 0;
  const canvas = find("#canvas");
  const context = canvas.getContext("2d");
  const density = canvas.width / camera.width;
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, camera.width, camera.height);
  if (!state.reading) return;
  drawInBox(context, state.result.pictures.photo, boxOf(), camera.scale < 4);

  const networks = state.beside ? networkNames(context) : [];
  const reserved = networks.map(({ name, left, top }) => nameBox(context, name, left, top));
  if (state.beside) {
    clipTo(context, boxOf(0, state.wipe));
    drawOtherSegments(context);
    if (state.names) drawNames(context, state.beside, () => true, 0, state.wipe, reserved);
    context.restore();
  }
  const from = state.leftOfWipe ? state.wipe : 0;
  clipTo(context, boxOf(from)); // grids and masks may reach into the padding
  let scale = null;
  if (state.show === "segments") {
    drawOwnSegments(context);
    if (state.names) drawNames(context, state.reading, isPainted, from, 1, reserved);
  } else if (state.show === "mask") drawMask(context);
  else if (state.show === "similarity") scale = drawChoice(context, "scores");
  else if (state.show === "weights") scale = drawChoice(context, "weights");
  else scale = drawDensity(context);
  context.restore();

  if (state.leftOfWipe) drawWipe(context);
  for (const { name, left, top } of networks) drawName(context, name, left, top);
  if (scale) drawScale(context, ...scale);
  if (!state.points) return;
  // The points belong to this network, so they are not drawn on the other one's side.
  const left = state.beside ? place(state.wipe, 0)[0] : 0;
  clipTo(context, { left, top: 0, width: camera.width - left, height: camera.height });
  drawPoints(context);
  context.restore();
}

// The scale of a map's colours, in the lower left corner of its visible part.
function drawScale(context, colors, low, high) {
  const box = boxOf(state.leftOfWipe ? state.wipe : 0);
  context.save();
  context.font = "13px system-ui, sans-serif";
  const [before, after] = [low, high].map((text) => context.measureText(text).width);
  const width = before + after + 132;
  const left = Math.min(Math.max(0, box.left) + 8, Math.min(box.left + box.width, camera.width) - width - 8);
  // Above the slider of the wipe, and above the names of two networks.
  const room = state.beside ? 96 : state.leftOfWipe ? 68 : 34;
  const top = Math.min(box.top + box.height, camera.height) - room;
  context.fillStyle = "#000b";
  context.fillRect(left, top, width, 26);
  const gradient = context.createLinearGradient(left + before + 16, 0, left + before + 116, 0);
  for (const [i, color] of colors.entries()) gradient.addColorStop(i / 255, `rgb(${color})`);
  context.fillStyle = gradient;
  context.fillRect(left + before + 16, top + 8, 100, 10);
  context.fillStyle = "#fff";
  context.fillText(low, left + 8, top + 18);
  context.fillText(high, left + before + 124, top + 18);
  context.restore();
}

// For screen readers: what is seen, and what is selected.
function announce() {
  const { segment, query, reading } = state;
  const { category, score, area_fraction: area } = segmentById(segment) ?? {};
  find(".studio-status").textContent = category
    ? `${category}, score ${score.toFixed(2)}, ${percent(area)} of the photo, query ${query}`
    : "";
  find("#canvas").setAttribute("aria-label", `Photo with ${reading.segments.length} segments`);
}

export function setUpCanvas() {
  onChange(["segment", "reading"], announce);
  onChange(Object.keys(state), () => {
    if (!frame) frame = requestAnimationFrame(draw);
  });
}
