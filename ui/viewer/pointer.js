// Mouse, pen and fingers on the canvas: hover, click, drag, pinch.

import { camera, unplace } from "../core/geometry.js";
import { find, notify } from "../core/host.js";
import { allQueries, isPainted, segmentAt, selectSegment } from "../core/result.js";
import { state, update } from "../core/state.js";
import { percent, queriesText } from "../core/words.js";
import { maskAt } from "../prototypes/masks.js";
import { openPoint } from "../prototypes/patch.js";
import { pointAt } from "../prototypes/points.js";
import { pan, zoom } from "./camera.js";
import { attentions, isBeside, isOnLine } from "./wipe.js";

const DRAG_PX = 5; // a pointer that moved less was a click

const pointers = new Map(); // those that are down, by id
let dragged = 0;
let isLineDragged = false;

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
    const [still] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const spread = (at) => Math.hypot(at[0] - still[0], at[1] - still[1]);
    zoom(spread([left, top]) / spread(before), (left + still[0]) / 2, (top + still[1]) / 2);
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
  // Everything below the photo is about this network.
  if (isBeside(x))
    return notify(`That side is the other network's: switch Attention to ${attentions()[0]} to study it.`);
  const point = pointAt(left, top);
  if (point) return openPoint(point);
  const segment = segmentAt(state.reading, x, y);
  if (segment && !isPainted(segment.id)) return;
  selectSegment(segment?.id ?? null);
  // Where no segment is, the query is one that was dropped, and the gallery says why.
  const queries = segment?.queries ?? allQueries();
  if (x >= 0 && x < 1 && y >= 0 && y < 1) update({ query: ownerAt(queries, x, y) });
}

// The query with the strongest claim on a place among these, as the readings weigh it.
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
  const point = left !== null && !isBeside(x) ? pointAt(left, top) : null;
  find("#canvas").classList.toggle("on-point", point !== null);
  find("#canvas").classList.toggle("on-line", left !== null && isOnLine(left));
  update({ hovered: state.show === "segments" && !other ? (segment?.id ?? null) : null });
  label.hidden = !point && !segment;
  if (label.hidden) return;
  const whose = other ? `${attentions()[0]}: ` : "";
  label.textContent = point
    ? point.label
    : `${whose}${segment.category}  ${segment.score.toFixed(2)} · ${percent(segment.area_fraction)} · ${queriesText(segment)}`;
  const room = camera.width - label.offsetWidth - 8;
  label.style.left = `${Math.max(8, Math.min(left + 14, room))}px`;
  label.style.top = `${top > camera.height - 48 ? top - 36 : top + 16}px`;
}

export function setUpPointer() {
  const canvas = find("#canvas");
  canvas.addEventListener("pointerdown", onDown);
  canvas.addEventListener("pointermove", onMove);
  canvas.addEventListener("pointerup", onUp);
  canvas.addEventListener("pointercancel", onUp);
  canvas.addEventListener("pointerleave", () => state.reading && hover(null));
  canvas.addEventListener("dblclick", (event) => zoom(2, ...onCanvas(event)));
  const onWheel = (event) => {
    // A plain wheel scrolls the page; trackpads report a pinch as a wheel with Ctrl.
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 200), ...onCanvas(event));
  };
  canvas.addEventListener("wheel", onWheel, { passive: false });
}
