// What the keys of the keyboard do, and the list that says so.

import { find, make } from "../core/host.js";
import { byArea, nextQuery, selectSegment, stepThrough } from "../core/result.js";
import { state, TASKS, update } from "../core/state.js";
import { fit, pan, zoom } from "./camera.js";
import { showAll, toggleHidden, toggleIsolated } from "./legend.js";

const KEYS = [
  ["← →", "previous, next segment"],
  ["Enter", "show only this segment, or all again"],
  ["H", "hide this segment"],
  ["A", "show all segments"],
  ["Q  Shift Q", "next, previous query"],
  ["[ ]", "earlier, later layer"],
  ["1 … 8, 0", "one head, all heads"],
  ["S M C L D", "paint segments, mask, similarity (the choice), attention (of the masked baseline), density"],
  ["P", "prototypes on or off"],
  ["T", "next task"],
  ["N O", "names, outlines"],
  ["W", "before and after"],
  ["B", "both attentions, one on each side"],
  ["+ − F", "zoom in, out, fit; Ctrl and the wheel zoom too"],
  ["Shift ← → ↑ ↓", "move the enlarged photo"],
  ["Esc", "select nothing"],
  ["?", "this list"],
];

function onArrow(event, by) {
  if (event.shiftKey) return pan(-60 * by, 0);
  const ids = byArea(state.reading.segments).map(({ id }) => id);
  selectSegment(stepThrough(ids, state.segment, by));
}

const ACTIONS = {
  ArrowRight: (event) => onArrow(event, 1),
  ArrowLeft: (event) => onArrow(event, -1),
  ArrowUp: (event) => event.shiftKey && pan(0, 60),
  ArrowDown: (event) => event.shiftKey && pan(0, -60),
  Enter: toggleIsolated,
  Escape: () => update({ segment: null, query: null, isolated: null, playing: null }),
  "[": () => update({ layer: Math.max(0, state.layer - 1) }),
  "]": () => update({ layer: Math.min(state.result.layers.length - 1, state.layer + 1) }),
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  "?": () => find("#keys").showModal(),
  a: showAll,
  b: () => find("#compare").click(),
  c: () => update({ show: "similarity" }),
  d: () => update({ show: "density" }),
  f: fit,
  h: () => state.segment !== null && toggleHidden([state.segment]),
  l: () => update({ show: "weights" }),
  m: () => update({ show: "mask" }),
  n: () => update({ names: !state.names }),
  o: () => update({ outlines: !state.outlines }),
  p: () => update({ points: !state.points }),
  q: (event) => nextQuery(event.shiftKey ? -1 : 1),
  s: () => update({ show: "segments" }),
  t: () => update({ task: stepThrough(TASKS, state.task, 1) }),
  w: () => find("#wipe").click(),
};

// What a focused control does with a key itself.
function isOwnKey({ key, target }) {
  if (target.matches("input[type=radio], input[type=range]")) return key.startsWith("Arrow");
  if (target.matches("input, textarea, select")) return true;
  return key === "Enter" && target.matches("button, a, summary, [role=button]");
}

function onKey(event) {
  const tab = find(".studio").closest("[role=tabpanel]") ?? document.body;
  const isMeant = event.target === document.body || tab.contains(event.target);
  if (!isMeant || !tab.checkVisibility() || find("#keys").open || !state.reading) return;
  if (event.ctrlKey || event.metaKey || event.altKey || isOwnKey(event)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (/^[0-9]$/.test(key)) {
    const head = Number(key) - 1;
    if (head < state.result.model.num_heads) update({ head: head < 0 ? null : head });
  } else if (key in ACTIONS) ACTIONS[key](event);
  else return;
  const scrolls = key.startsWith("Arrow") && !event.shiftKey && !key.endsWith("Left") && !key.endsWith("Right");
  if (!scrolls) event.preventDefault();
}

export function setUpKeys() {
  const dialog = find("#keys");
  const list = make("dl");
  for (const [keys, what] of KEYS) list.append(make("dt", {}, keys), make("dd", {}, what));
  const close = make("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.append(make("h3", {}, "Keys"), list, close);
  find("#help").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", onKey); // a page just opened has its focus nowhere
}
