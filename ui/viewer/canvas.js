// The picture: photo, segments and whatever else is painted over it; pointer, touch, zoom and wipe.

import { drawChoice } from "../prototypes/choice.js";
import { drawMask, maskAt } from "../prototypes/evolution.js";
import { drawDensity, drawPoints, drawScale, openPoint, pointAt } from "../prototypes/points.js";
import { camera, channels, clipToPhoto, drawSpanning, loadImage, place, unplace } from "./geometry.js";
import { drawName, drawNames, nameBox, nameWidth } from "./names.js";
import {
  allQueries,
  find,
  findAll,
  isPainted,
  make,
  notify,
  onChange,
  percent,
  selectSegment,
  state,
  update,
} from "./state.js";

const MAX_ZOOM = 16;
const MIN_HEIGHT = 120; // room for the buttons and for zooming, however wide the photo is
const DRAG_PX = 5; // a pointer that moved less was a click
const GRIP_PX = 18; // the line of the wipe is taken from so far

let photo = null;
// The segments' colours and their outlines, in pixels of the shown photo: of the reading, and of the one beside it.
let overlay = null;
let lines = null;
let overlayBeside = null;
let linesBeside = null;
let canvasWidth = 0; // in CSS pixels
let canvasHeight = 0;
let frame = 0;
const pointers = new Map(); // those that are down, by id
let dragged = 0;
let isLineDragged = false;

export async function showPhoto(result) {
  photo = await loadImage(result.photo);
  const sheet = () => make("canvas", { width: result.width, height: result.height });
  [overlay, lines, overlayBeside, linesBeside] = [sheet(), sheet(), sheet(), sheet()];
}

// The ids of a reading, one per pixel of the shown photo.
export async function decodeIds(reading, result) {
  const canvas = make("canvas", { width: result.width, height: result.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(await loadImage(reading.ids), 0, 0);
  const { data } = context.getImageData(0, 0, result.width, result.height);
  return Uint16Array.from({ length: data.length / 4 }, (_, i) => data[4 * i] + 256 * data[4 * i + 1]);
}

function segmentAt({ idMap, segments }, x, y) {
  if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) return null;
  const { width, height } = state.result;
  const id = idMap[Math.floor(y * height) * width + Math.floor(x * width)];
  return segments.find((segment) => segment.id === id) ?? null;
}

const isOnLine = (left) => state.leftOfWipe !== null && Math.abs(left - place(state.wipe, 0)[0]) < GRIP_PX;

// Whether the other network's reading is seen there, and not this one's.
const isBeside = (x) => state.beside !== null && x < state.wipe;

// -------------------------------------------------------------------------------------------------------- painting

// Fills a picture from a colour per id; a colour is 0xAABBGGRR, as the four bytes of a pixel read on any usual machine.
function paintIds(canvas, { idMap, segments }, colorOf) {
  const colors = new Uint32Array(segments.length + 1);
  for (const segment of segments) colors[segment.id] = colorOf(segment);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colors[idMap[i]];
  return { context, image, pixels };
}

function paintAreas(canvas, reading, alphaOf) {
  const { context, image } = paintIds(canvas, reading, ({ id, color }) => {
    const [red, green, blue] = channels(color);
    return ((alphaOf(id) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  context.putImageData(image, 0, 0);
}

function paintEdges(canvas, reading, alphaOf) {
  const { idMap } = reading;
  const { width } = canvas;
  const white = ({ id }) => ((alphaOf(id) << 24) | 0xffffff) >>> 0;
  const { context, image, pixels } = paintIds(canvas, reading, white);
  // A pixel keeps its white only where its upper or left neighbour is another segment.
  for (let i = 0; i < pixels.length; i++) {
    const isEdge = (i >= width && idMap[i] !== idMap[i - width]) || (i % width > 0 && idMap[i] !== idMap[i - 1]);
    if (!isEdge) pixels[i] = 0;
  }
  context.putImageData(image, 0, 0);
}

function paintSegments() {
  if (!state.reading) return;
  const { hovered, segment } = state;
  const others = hovered !== null ? 80 : 190;
  paintAreas(overlay, state.reading, (id) => {
    if (!isPainted(id)) return 0;
    return (hovered ?? segment ?? id) === id ? 255 : others;
  });
}

function paintLines() {
  if (!state.reading) return;
  const alphaOf = (id) => (id === state.segment ? 255 : 170);
  paintEdges(lines, state.reading, (id) => (isPainted(id) ? alphaOf(id) : 0));
}

function paintBeside() {
  if (!state.beside) return;
  paintAreas(overlayBeside, state.beside, () => 190);
  paintEdges(linesBeside, state.beside, () => 170);
}

function draw() {
  frame = 0;
  const canvas = find("#canvas");
  const context = canvas.getContext("2d");
  const density = canvas.width / canvasWidth;
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, canvasWidth, canvasHeight);
  if (!photo || !state.result || !state.reading) return;
  drawSpanning(context, photo, 1, 1, camera.scale < 4);

  const networks = state.beside ? networkNames(context) : [];
  const reserved = networks.map(({ name, left, top }) => nameBox(context, name, left, top));
  if (state.beside) {
    clipToPhoto(context, 0, state.wipe);
    drawSegments(context, overlayBeside, linesBeside);
    if (state.names) drawNames(context, state.beside, () => true, 0, state.wipe, reserved);
    context.restore();
  }
  const from = state.leftOfWipe ? state.wipe : 0;
  clipToPhoto(context, from);
  let scale = null;
  if (state.show === "segments") {
    drawSegments(context, overlay, lines);
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
  context.save();
  if (state.beside) {
    // The points are this network's, and no part of what the other one saw.
    context.beginPath();
    context.rect(place(state.wipe, 0)[0], 0, canvasWidth, canvasHeight);
    context.clip();
  }
  drawPoints(context);
  context.restore();
}

function drawSegments(context, areas, edges) {
  context.globalAlpha = state.opacity;
  drawSpanning(context, areas, 1, 1, false);
  context.globalAlpha = Math.min(1, 1.6 * state.opacity);
  if (state.outlines) drawSpanning(context, edges, 1, 1, true);
  context.globalAlpha = 1;
}

function drawWipe(context) {
  const [left, top] = place(state.wipe, 0);
  const [, bottom] = place(state.wipe, 1);
  context.fillStyle = "#fff";
  context.shadowColor = "#000a";
  context.shadowBlur = 4;
  context.fillRect(left - 1, top, 2, bottom - top);
  context.beginPath();
  context.arc(left, (top + bottom) / 2, 9, 0, 2 * Math.PI);
  context.fill();
  context.shadowBlur = 0;
}

// Where the two networks are named, on their sides of the line and above the slider.
function networkNames(context) {
  const [line, bottom] = [place(state.wipe, 0)[0], place(state.wipe, 1)[1]];
  return attentions().map((name, side) => {
    const away = nameWidth(context, name) / 2 + 6;
    return { name, left: line + (side === 0 ? -away : away), top: Math.min(bottom, canvasHeight) - 48 };
  });
}

// Left and right of the line.
const attentions = () =>
  state.result.model.attention === "masked" ? ["prototypes", "masked"] : ["masked", "prototypes"];

function redraw() {
  if (!frame) frame = requestAnimationFrame(draw);
}

// ------------------------------------------------------------------------------------------------------------ camera

const fitScale = () => Math.min(canvasWidth / state.result.width, canvasHeight / state.result.height);

export function fit() {
  if (!state.result || !canvasWidth) return;
  camera.scale = fitScale();
  camera.left = (canvasWidth - state.result.width * camera.scale) / 2;
  camera.top = (canvasHeight - state.result.height * camera.scale) / 2;
  placeZoom(camera.left);
  moved();
}

// The buttons lie in the gap beside the fitted photo, or else on the photo, and not astride its edge. Zooming does not
// move them: they must not leave the pointer that clicks them.
function placeZoom(gap) {
  const buttons = find(".zoom");
  const inGap = gap > buttons.offsetWidth + 16;
  buttons.style.right = `${inGap ? 8 : gap + 8}px`;
}

// Enlarges around a place of the canvas, its middle by default.
export function zoom(factor, left = canvasWidth / 2, top = canvasHeight / 2) {
  const smallest = fitScale();
  const scale = Math.min(Math.max(camera.scale * factor, smallest), smallest * MAX_ZOOM);
  const grown = scale / camera.scale;
  camera.left = left + (camera.left - left) * grown;
  camera.top = top + (camera.top - top) * grown;
  camera.scale = scale;
  moved();
}

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
  camera.left = keep(camera.left, width, canvasWidth);
  camera.top = keep(camera.top, height, canvasHeight);
  // While the whole photo is seen, a finger scrolls the page.
  find("#canvas").style.touchAction = camera.scale > fitScale() * 1.01 ? "none" : "pan-y";
  placeHandle();
  redraw();
}

// The slider below the photo spans what is seen of its width, so that its knob is below the line.
function placeHandle() {
  const handle = find(".wipe-handle");
  const left = Math.max(0, camera.left);
  const right = Math.min(canvasWidth, camera.left + state.result.width * camera.scale);
  handle.style.left = `${left}px`;
  handle.style.width = `${right - left}px`;
  [handle.min, handle.max] = [left, right].map((edge) => unplace(edge, 0)[0].toFixed(3));
  handle.value = state.wipe;
}

function resize() {
  const canvas = find("#canvas");
  const width = find(".studio-view").clientWidth;
  if (!state.result || width === 0) return;
  const aspect = state.result.height / state.result.width;
  const highest = Math.max(320, window.innerHeight * 0.62);
  const height = Math.round(Math.min(Math.max(width * aspect, MIN_HEIGHT), highest));
  if (width === canvasWidth && height === canvasHeight) return;
  const isZoomed = canvasWidth > 0 && camera.scale > fitScale() * 1.01;
  const middle = unplace(canvasWidth / 2, canvasHeight / 2);
  canvasWidth = width;
  canvasHeight = height;
  canvas.style.height = `${height}px`;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const { scale } = camera;
  fit();
  if (!isZoomed) return;
  // What was in the middle stays there.
  zoom(scale / camera.scale);
  const [left, top] = place(...middle);
  pan(canvasWidth / 2 - left, canvasHeight / 2 - top);
}

// ----------------------------------------------------------------------------------------------------------- pointer

function onCanvas(event) {
  const box = find("#canvas").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function onDown(event) {
  if (event.button !== 0 || !state.reading) return;
  pointers.set(event.pointerId, onCanvas(event));
  dragged = pointers.size > 1 ? Number.POSITIVE_INFINITY : 0;
  isLineDragged = pointers.size === 1 && isOnLine(onCanvas(event)[0]);
  find("#canvas").setPointerCapture(event.pointerId);
}

function onMove(event) {
  if (!state.reading) return;
  const [left, top] = onCanvas(event);
  const before = pointers.get(event.pointerId);
  if (!before) return hover(left, top);
  pointers.set(event.pointerId, [left, top]);
  dragged += Math.hypot(left - before[0], top - before[1]);
  if (pointers.size === 2) {
    const [a, b] = [...pointers.entries()].map(([id, at]) =>
      id === event.pointerId ? { at, before } : { at, before: at },
    );
    const spread = (one, other) => Math.hypot(one[0] - other[0], one[1] - other[1]);
    zoom(spread(a.at, b.at) / spread(a.before, b.before), (a.at[0] + b.at[0]) / 2, (a.at[1] + b.at[1]) / 2);
  } else if (dragged > DRAG_PX && isLineDragged) {
    update({ wipe: Math.min(1, Math.max(0, unplace(left, top)[0])) });
  } else if (dragged > DRAG_PX) {
    hover(null);
    pan(left - before[0], top - before[1]);
  }
}

function onUp(event) {
  if (!pointers.delete(event.pointerId) || dragged > DRAG_PX || event.type === "pointercancel") return;
  click(...onCanvas(event));
}

function click(left, top) {
  const [x, y] = unplace(left, top);
  // What is below the photo tells of this network.
  if (isBeside(x))
    return notify(`That side is the other network's: switch Attention to ${attentions()[0]} to study it.`);
  const point = state.points ? pointAt(left, top) : null;
  if (point) return openPoint(point);
  const segment = segmentAt(state.reading, x, y);
  if (segment && !isPainted(segment.id)) return;
  selectSegment(segment?.id ?? null);
  // Where nobody drew anything, the query is one that was dropped, and the gallery says why.
  const queries = segment?.queries ?? allQueries();
  if (x >= 0 && x < 1 && y >= 0 && y < 1) update({ query: ownerAt(queries, x, y) });
}

// Of these queries the one with the strongest claim on a place, as the readings weigh it.
function ownerAt(queries, x, y) {
  const step = state.result.layers.length;
  const claim = (query) => state.result.steps.score[step][query] * maskAt(query, step, x, y);
  return queries.reduce((owner, query) => (claim(query) > claim(owner) ? query : owner));
}

// Marks what lies under the pointer and names it beside the pointer; without a place, nothing.
function hover(left, top) {
  const label = find(".hover");
  const [x, y] = left === null ? [-1, -1] : unplace(left, top);
  const other = isBeside(x) ? segmentAt(state.beside, x, y) : null;
  const mine = isBeside(x) ? null : segmentAt(state.reading, x, y);
  const segment = other ?? (mine && isPainted(mine.id) ? mine : null);
  const point = left !== null && state.points && !isBeside(x) ? pointAt(left, top) : null;
  find("#canvas").classList.toggle("on-point", point !== null);
  find("#canvas").classList.toggle("on-line", left !== null && isOnLine(left));
  update({ hovered: state.show === "segments" && !other ? (segment?.id ?? null) : null });
  label.hidden = !point && !segment;
  if (label.hidden) return;
  const whose = other ? `${attentions()[0]}: ` : "";
  label.textContent = point
    ? point.label
    : `${whose}${segment.category}  ${segment.score.toFixed(2)} · ${percent(segment.area_fraction)} · ${queriesOf(segment)}`;
  const room = canvasWidth - label.offsetWidth - 8;
  label.style.left = `${Math.max(8, Math.min(left + 14, room))}px`;
  label.style.top = `${top > canvasHeight - 48 ? top - 36 : top + 16}px`;
}

export const queriesOf = ({ queries }) => (queries.length === 1 ? `query ${queries[0]}` : `${queries.length} queries`);

// ------------------------------------------------------------------------------------------------------------- setup

export function setUpCanvas() {
  const canvas = find("#canvas");
  canvas.addEventListener("pointerdown", onDown);
  canvas.addEventListener("pointermove", onMove);
  canvas.addEventListener("pointerup", onUp);
  canvas.addEventListener("pointercancel", onUp);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("dblclick", (event) => zoom(2, ...onCanvas(event)));
  canvas.addEventListener(
    "wheel",
    (event) => {
      // A plain wheel scrolls the page; trackpads report a pinch as a wheel with Ctrl.
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 200), ...onCanvas(event));
    },
    { passive: false },
  );
  const handle = find(".wipe-handle");
  handle.addEventListener("input", () => update({ wipe: handle.valueAsNumber }));
  onChange(["wipe", "leftOfWipe", "result"], () => {
    handle.hidden = state.leftOfWipe === null;
    handle.value = state.wipe;
    const sides = state.leftOfWipe === "other" ? attentions() : ["before", "after"];
    handle.setAttribute("aria-label", `Line between ${sides.join(" on the left and ")} on the right`);
  });
  for (const button of findAll(".zoom button")) {
    const { zoom: how } = button.dataset;
    button.addEventListener("click", () => (how === "fit" ? fit() : zoom(how === "in" ? 1.5 : 1 / 1.5)));
  }
  onChange(["result"], () => {
    canvasWidth = 0; // another photo, another height
    resize();
  });
  onChange(["reading", "hidden", "isolated", "segment"], paintLines);
  onChange(["reading", "hidden", "isolated", "hovered", "segment"], paintSegments);
  onChange(["beside"], paintBeside);
  onChange(Object.keys(state).concat("painted"), redraw);
  new ResizeObserver(resize).observe(find(".studio-view"));
  window.addEventListener("resize", resize);
}
