// What the keys of the keyboard do, and the list that says so.

import { find, make } from "../core/host.js";
import { byArea, nextQuery, selectSegment, stepThrough } from "../core/result.js";
import { state, TASKS, update } from "../core/state.js";
import { fit, pan, zoomIn, zoomOut } from "./camera.js";
import { showAll, toggleHidden, toggleIsolated } from "./legend.js";

const PAN_PX = 60;

const sideways = (by) => (event) => {
  if (event.shiftKey) return pan(-PAN_PX * by, 0);
  const ids = byArea(state.reading.segments).map(({ id }) => id);
  selectSegment(stepThrough(ids, state.segment, by));
};
const upwards = (by) => (event) => event.shiftKey && pan(0, PAN_PX * by);

function showHead(head) {
  if (head < state.result.model.num_heads) update({ head: head < 0 ? null : head });
}

const show = (what) => () => update({ show: what });
const flip = (key) => () => update({ [key]: !state[key] });
const moveLayer = (by) => () => state.result.layers[state.layer + by] && update({ layer: state.layer + by });

// How the list writes the keys, what they do, and their actions.
const KEYS = [
  ["← →", "previous, next segment", { ArrowLeft: sideways(-1), ArrowRight: sideways(1) }],
  ["Enter", "show only this segment, or all again", { Enter: toggleIsolated }],
  ["H", "hide this segment", { h: () => state.segment !== null && toggleHidden([state.segment]) }],
  ["A", "show all segments", { a: showAll }],
  ["Q  Shift Q", "next, previous query", { q: (event) => nextQuery(event.shiftKey ? -1 : 1) }],
  ["[ ]", "earlier, later layer", { "[": moveLayer(-1), "]": moveLayer(1) }],
  [
    "1 … 8, 0",
    "one head, all heads",
    Object.fromEntries([..."0123456789"].map((digit) => [digit, () => showHead(digit - 1)])),
  ],
  [
    "S M C L D",
    "paint segments, mask, similarity (the choice), attention (of the masked baseline), density",
    { s: show("segments"), m: show("mask"), c: show("similarity"), l: show("weights"), d: show("density") },
  ],
  ["P", "prototypes on or off", { p: flip("points") }],
  ["T", "next task", { t: () => update({ task: stepThrough(TASKS, state.task, 1) }) }],
  ["N O", "names, outlines", { n: flip("names"), o: flip("outlines") }],
  ["W", "before and after", { w: () => find("#wipe").click() }],
  ["B", "both attentions, one on each side", { b: () => find("#compare").click() }],
  ["+ − F", "zoom in, out, fit; Ctrl and the wheel zoom too", { "+": zoomIn, "=": zoomIn, "-": zoomOut, f: fit }],
  ["Shift ← → ↑ ↓", "move the enlarged photo", { ArrowUp: upwards(1), ArrowDown: upwards(-1) }],
  ["Esc", "select nothing", { Escape: () => update({ segment: null, query: null, isolated: null, playing: null }) }],
  ["?", "this list", { "?": () => find("#keys").showModal() }],
];
const ACTIONS = Object.assign({}, ...KEYS.map(([, , actions]) => actions));

// Whether the focused control uses this key itself.
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
  if (!(key in ACTIONS)) return;
  ACTIONS[key](event);
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
