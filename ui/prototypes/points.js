// The prototypes of the selected query on the photo. A point is one token of one layer, with the heads that picked it.

import { layerColor } from "../core/colors.js";
import { place, tokenAt } from "../core/geometry.js";
import { stroke } from "../core/pictures.js";
import { hasForeground, scoreName } from "../core/result.js";
import { state } from "../core/state.js";
import { decimal, headsText, layerName } from "../core/words.js";

// The tokens that the heads of a query, or only the chosen head, picked in a layer. None where it had no foreground.
export function pointsOf(query, layer) {
  if (!hasForeground(query, layer)) return [];
  const picks = state.result.prototype_index[layer][query];
  const shown = [...picks.keys()].filter((head) => state.head === null || state.head === head);
  return [...Map.groupBy(shown, (head) => picks[head])].map(([index, heads]) => {
    const scores = heads.map((head) => state.result.similarity[layer][query][head]);
    const point = { ...tokenAt(layer, index), query, heads, scores };
    const where = point.inPadding ? `${layerName(layer)}, in the padding` : layerName(layer);
    point.label = `${where} · ${headsText(heads)} · ${scoreName()} ${decimal(Math.max(...scores))}`;
    return point;
  });
}

// The area grows with the number of heads that agree.
export const radiusOf = (point) => (point.layer === state.layer ? 5.5 : 3.5) * Math.sqrt(point.heads.length);

// On the canvas. A point in the padding is drawn where the photo ends.
export function placeOf(point) {
  const [left, top] = place(Math.min(point.x, 1), Math.min(point.y, 1));
  const inset = radiusOf(point) + 3;
  return [point.x > 1 ? left - inset : left, point.y > 1 ? top - inset : top];
}

// The points of all layers as they are drawn: the current layer last, and few heads on top of many.
function allPoints() {
  const { layers } = state.result;
  const order = [...layers.keys()].filter((layer) => layer !== state.layer).concat(state.layer);
  return order.flatMap((layer) => pointsOf(state.query, layer).toSorted((a, b) => b.heads.length - a.heads.length));
}

const arePointsShown = () => state.result !== null && state.query !== null && state.points && state.show !== "density";

export function drawPoints(context) {
  if (!arePointsShown()) return;
  const points = allPoints();
  if (state.head !== null) drawPath(context, points);
  const circle = (point, more = 0) => {
    context.beginPath();
    context.arc(...placeOf(point), radiusOf(point) + more, 0, 2 * Math.PI);
  };
  for (const point of points) {
    const current = point.layer === state.layer;
    const color = layerColor(point.layer);
    context.globalAlpha = current ? 1 : 0.6;
    circle(point);
    stroke(context, "#000a", current ? 5 : 3);
    if (current) stroke(context, point.inPadding ? color : "#fff", 3);
    if (!point.inPadding) {
      context.fillStyle = color;
      context.fill();
    } else if (!current) stroke(context, color, 1.5);
  }
  context.globalAlpha = 1;
  if (!state.opened) return;
  circle(state.opened, 6);
  stroke(context, "#000a", 4);
  stroke(context, "#fff", 2);
}

// Joins the picks of one head from layer to layer.
function drawPath(context, points) {
  context.beginPath();
  for (const point of points.toSorted((a, b) => a.layer - b.layer)) context.lineTo(...placeOf(point));
  stroke(context, "#0008", 3);
  stroke(context, "#fffc", 1);
}

// The point under a place on the canvas, or null.
export function pointAt(left, top) {
  if (!arePointsShown()) return null;
  const isThere = (point) => {
    const [x, y] = placeOf(point);
    return Math.hypot(x - left, y - top) <= Math.max(radiusOf(point) + 2, 8);
  };
  return allPoints().findLast(isThere) ?? null;
}
