// Prototypes on the photo: the points of the selected query, what one point stands for, and where the picks of all
// queries fall. A point is one token of one layer, with the heads that picked it.

import { camera, channels, place } from "../viewer/geometry.js";
import { find, LAYER_COLORS, layerName, make, onChange, segmentOfQuery, state, update } from "../viewer/state.js";

const PATCH_PX = 144;

// What this room has decoded of the current result: its photo, and all masks of each step as one grey picture.
export const pictures = { photo: null, sheets: [] };

// ------------------------------------------------------------------------------------------------------ what was said

// What a query said at a step: its best class and how sure it was, and its mask.
export function predictionOf(query, step) {
  const { steps, model } = state.result;
  const { name, color } = model.categories[steps.category_id[step][query]];
  return {
    category: name,
    color,
    score: steps.score[step][query],
    noObject: steps.no_object_score[step][query],
    area: steps.area_fraction[step][query],
    iou: steps.final_iou[step][query],
  };
}

export const lastStep = () => state.result.layers.length;
export const colorOfQuery = (query) => segmentOfQuery(query)?.color ?? predictionOf(query, lastStep()).color;
export const hasForeground = (query, layer) => state.result.allowed_fraction[layer][query] > 0;
export const decimal = (value, digits = 3) => value.toFixed(digits).replace("-", "\u2212");
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
export const usesPrototypes = () => state.result.model.attention === "prototype";
// What the trace keeps of a head's pick; masked attention has no pick, so there it is the token with the largest weight.
export const scoreName = () => (usesPrototypes() ? "similarity" : "attention weight");

// The head with the best score of a query in a layer.
export function bestHead(query, layer) {
  const scores = state.result.similarity[layer][query];
  return scores.indexOf(Math.max(...scores));
}

// ------------------------------------------------------------------------------------------------------------ geometry

export function tokenAt(layer, index) {
  const { x, y, cols } = state.result.layers[layer];
  const [row, col] = [Math.floor(index / cols), index % cols];
  return { layer, index, row, col, x: x[col], y: y[row], inPadding: x[col] > 1 || y[row] > 1 };
}

// How much of the photo's width and height the grid of a layer spans: its last cells may reach into the padding.
export function gridSpan(layer) {
  const { x, y, rows, cols } = state.result.layers[layer];
  return [(x[cols - 1] / (cols - 0.5)) * cols, (y[rows - 1] / (rows - 0.5)) * rows];
}

// Where the photo lies on the canvas, in CSS pixels.
export function photoBox() {
  const [left, top] = place(0, 0);
  return { left, top, width: state.result.width * camera.scale, height: state.result.height * camera.scale };
}

// Takes the colours out of what is already drawn, so that those of a map can be read.
export function drainColor(context, { left, top, width, height }) {
  context.save();
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#808080";
  context.fillRect(left, top, width, height);
  context.restore();
}

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

// 256 colours between the given ones.
export function colorTable(hexColors) {
  const anchors = hexColors.map(channels);
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(at), anchors.length - 2);
    return anchors[low].map((value, channel) => value + (anchors[low + 1][channel] - value) * (at - low));
  });
}

// What the colours of a map mean, in the lower left corner of what is seen of it.
export function drawScale(context, colors, low, high) {
  const box = photoBox();
  const { clientWidth, clientHeight } = find("#canvas");
  context.save();
  context.font = "13px system-ui, sans-serif";
  const [before, after] = [low, high].map((text) => context.measureText(text).width);
  const width = before + after + 132;
  const from = state.leftOfWipe ? place(state.wipe, 0)[0] : box.left;
  const left = Math.min(Math.max(0, from) + 8, Math.min(box.left + box.width, clientWidth) - width - 8);
  // Above the slider of the wipe, and above the names of two networks.
  const room = state.beside ? 96 : state.leftOfWipe ? 68 : 34;
  const top = Math.min(box.top + box.height, clientHeight) - room;
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

// -------------------------------------------------------------------------------------------------------------- points

// The tokens that the heads of a query picked in a layer, or only the chosen head. None where it had no foreground.
export function pointsOf(query, layer) {
  if (!hasForeground(query, layer)) return [];
  const byIndex = new Map();
  state.result.prototype_index[layer][query].forEach((index, head) => {
    if (state.head === null || state.head === head) byIndex.set(index, [...(byIndex.get(index) ?? []), head]);
  });
  return [...byIndex].map(([index, heads]) => {
    const point = { ...tokenAt(layer, index), query, heads };
    const where = point.inPadding ? `${layerName(layer)}, in the padding` : layerName(layer);
    point.label = `${where} · ${headsText(heads)} · ${scoreName()} ${decimal(bestScore(point))}`;
    return point;
  });
}

export function headsText(heads) {
  const numbers = heads.map((head) => head + 1).join(", ");
  return heads.length === 1 ? `head ${numbers}` : `heads ${numbers}`;
}

const scoreOf = ({ layer, query }, head) => state.result.similarity[layer][query][head];
const bestScore = (point) => Math.max(...point.heads.map((head) => scoreOf(point, head)));
// The area grows with the number of heads that agree.
const radiusOf = (point) => (point.layer === state.layer ? 5.5 : 3.5) * Math.sqrt(point.heads.length);

// A point in the padding is drawn where the photo ends.
function placeOf(point) {
  const [left, top] = place(Math.min(point.x, 1), Math.min(point.y, 1));
  const inset = radiusOf(point) + 3;
  return [point.x > 1 ? left - inset : left, point.y > 1 ? top - inset : top];
}

// Those of all layers, in the order in which they are drawn: the current layer's last, and few heads on top of many.
function allPoints() {
  const { layers } = state.result;
  const order = [...layers.keys()].filter((layer) => layer !== state.layer).concat(state.layer);
  return order.flatMap((layer) => pointsOf(state.query, layer).toSorted((a, b) => b.heads.length - a.heads.length));
}

const arePointsShown = () => state.result !== null && state.query !== null && state.points && state.show !== "density";

export function drawPoints(context) {
  placePatch();
  if (!arePointsShown()) return;
  const points = allPoints();
  if (state.head !== null) drawPath(context, points);
  for (const point of points) {
    const current = point.layer === state.layer;
    const color = LAYER_COLORS[point.layer];
    context.globalAlpha = current ? 1 : 0.6;
    context.beginPath();
    context.arc(...placeOf(point), radiusOf(point), 0, 2 * Math.PI);
    stroke(context, "#000a", current ? 5 : 3);
    if (current) stroke(context, point.inPadding ? color : "#fff", 3);
    if (!point.inPadding) {
      context.fillStyle = color;
      context.fill();
    } else if (!current) stroke(context, color, 1.5);
  }
  if (openedPoint) {
    context.globalAlpha = 1;
    context.beginPath();
    context.arc(...placeOf(openedPoint), radiusOf(openedPoint) + 6, 0, 2 * Math.PI);
    stroke(context, "#000a", 4);
    stroke(context, "#fff", 2);
  }
  context.globalAlpha = 1;
}

export function stroke(context, color, width) {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke();
}

// The way of one head from layer to layer.
function drawPath(context, points) {
  context.beginPath();
  for (const point of points.toSorted((a, b) => a.layer - b.layer)) context.lineTo(...placeOf(point));
  stroke(context, "#0008", 3);
  stroke(context, "#fffc", 1);
}

// The point under a place on the canvas, or null.
export function pointAt(left, top) {
  if (!arePointsShown()) return null;
  return (
    allPoints().findLast((point) => {
      const [x, y] = placeOf(point);
      return Math.hypot(x - left, y - top) <= Math.max(radiusOf(point) + 2, 8);
    }) ?? null
  );
}

// --------------------------------------------------------------------------------------------------------------- patch

let openedPoint = null;

// Shows the part of the photo that a point stands for, beside the point.
export function openPoint(point) {
  update({ layer: point.layer });
  openedPoint = point;
  const { layers, model } = state.result;
  const { stride, rows, cols } = layers[point.layer];
  const scores = point.heads.map((head) =>
    make("li", {}, `head ${head + 1}`, make("b", {}, decimal(scoreOf(point, head)))),
  );
  const swatch = make("i", { className: "swatch" });
  swatch.style.background = LAYER_COLORS[point.layer];
  find("#patch .patch-text").replaceChildren(
    make("h3", {}, swatch, `Layer ${point.layer + 1}`),
    make("p", {}, `row ${point.row + 1} of ${rows}, column ${point.col + 1} of ${cols}`),
    make("p", {}, `${stride} × ${stride} px of the network's input`),
    ...(point.inPadding ? [make("p", { className: "padding" }, "It lies in the padding beside the photo.")] : []),
    make("p", {}, `${scoreName()}, of ${plural(point.heads.length, "head")} of ${model.num_heads}:`),
    make("ul", {}, ...scores),
  );
  paintPatch(point);
  find("#patch").hidden = false;
  placePatch();
  update({ painted: Symbol("patch") });
}

export function closePatch() {
  if (!openedPoint) return;
  openedPoint = null;
  find("#patch").hidden = true;
  update({ painted: Symbol("patch") });
}

// The cell and as much again on each side.
function paintPatch({ layer, x, y }) {
  const canvas = find("#patch canvas");
  const density = window.devicePixelRatio || 1;
  canvas.width = canvas.height = PATCH_PX * density;
  const context = canvas.getContext("2d");
  const { photo } = pictures;
  const [spanX, spanY] = gridSpan(layer);
  const { rows, cols } = state.result.layers[layer];
  const [width, height] = [(spanX / cols) * photo.width, (spanY / rows) * photo.height];
  const third = canvas.width / 3;
  context.scale(third / width, third / height);
  context.drawImage(photo, 1.5 * width - x * photo.width, 1.5 * height - y * photo.height);
  context.resetTransform();
  context.fillStyle = "#0005";
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.width);
  context.rect(third, third, third, third);
  context.fill("evenodd");
  context.beginPath();
  context.rect(third, third, third, third);
  stroke(context, "#000a", 4 * density);
  stroke(context, LAYER_COLORS[layer], 2 * density);
}

// The card stays beside its point while the photo is moved; on a narrow page the style sheet has its own place for it.
function placePatch() {
  if (!openedPoint) return;
  const card = find("#patch");
  const view = find(".studio-view");
  const [left, top] = placeOf(openedPoint);
  const gap = radiusOf(openedPoint) + 12;
  const right = left + gap + card.offsetWidth <= view.clientWidth;
  card.style.setProperty("--left", `${right ? left + gap : Math.max(0, left - gap - card.offsetWidth)}px`);
  card.style.setProperty("--top", `${Math.max(0, Math.min(top - 40, view.clientHeight - card.offsetHeight))}px`);
}

// ------------------------------------------------------------------------------------------------------------- density

const HEAT = colorTable(["#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf"]);
const densities = new Map(); // of the current result, by layer and head

// How many picks of all queries with foreground fall on each token of a layer, of all heads or the chosen one.
export function densityOf(layer) {
  const key = `${layer} ${state.head}`;
  if (!densities.has(key)) {
    const { rows, cols } = state.result.layers[layer];
    const counts = new Uint16Array(rows * cols);
    let queries = 0;
    state.result.prototype_index[layer].forEach((indices, query) => {
      if (!hasForeground(query, layer)) return;
      queries += 1;
      for (const index of state.head === null ? indices : [indices[state.head]]) counts[index] += 1;
    });
    const max = Math.max(...counts);
    // A square root, for a few tokens are picked very often.
    const heat = (count) => [...HEAT[Math.round(255 * Math.sqrt(count / max))], 235];
    const picture = paintCells(make("canvas"), rows, cols, (i) => (counts[i] ? heat(counts[i]) : [0, 0, 0, 90]));
    densities.set(key, { counts, queries, max, picture });
  }
  return densities.get(key);
}

// Returns what belongs on its scale.
export function drawDensity(context) {
  const box = photoBox();
  const [spanX, spanY] = gridSpan(state.layer);
  drainColor(context, box);
  context.imageSmoothingEnabled = false;
  const { picture, max } = densityOf(state.layer);
  context.drawImage(picture, box.left, box.top, spanX * box.width, spanY * box.height);
  const what = usesPrototypes() ? "picks" : "largest weights";
  return max > 0 ? [HEAT, "0", `${max} ${what}, square root scale`] : null;
}

// --------------------------------------------------------------------------------------------------------------- setup

// The points of the current layer as a list, for screen readers and scripts; places are fractions of the photo.
function listPoints() {
  const points = state.query === null || !state.result ? [] : pointsOf(state.query, state.layer);
  const items = points.map(({ label, row, col, x, y }) => {
    const item = make("li", {}, `${label}, row ${row + 1}, column ${col + 1}`);
    Object.assign(item.dataset, { x, y });
    return item;
  });
  find("#picks").replaceChildren(...items);
}

export function setUpPoints() {
  find(".studio-view").append(find("#patch"));
  find("#patch .close").addEventListener("click", closePatch);
  find("#patch").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    closePatch();
    find("#canvas").focus();
  });
  onChange(["result"], () => densities.clear());
  onChange(["result", "query", "layer", "head", "points"], closePatch);
  onChange(["result", "query", "layer", "head"], listPoints);
}
