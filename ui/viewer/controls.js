// The bar above the picture and the keys: task, thresholds, opacity, outlines, wipe. Readings are kept, so that going
// back and forth between tasks takes no time.

import { decodeIds, fit, pan, zoom } from "./canvas.js";
import { showAll, toggleHidden, toggleIsolated } from "./legend.js";
import {
  allQueries,
  ask,
  find,
  findAll,
  make,
  onChange,
  percent,
  segmentById,
  segmentOfQuery,
  selectQuery,
  selectSegment,
  state,
  update,
} from "./state.js";

// What each task asks of a pixel.
const TASKS = {
  panoptic: "Every pixel belongs to one thing, to one surface, or to nothing that was recognised.",
  semantic: "Every pixel gets a class; things of one class are not told apart. It has no thresholds.",
  instance: "Only things are looked for, one by one; they may overlap.",
};
// Such a model has no class for the background.
const SEMANTIC_OF_THINGS = "Every pixel gets a class or, where no object is, nothing. It has no thresholds.";
const SHOWS = { s: "segments", m: "mask", c: "similarity", l: "weights", d: "density" };
const kept = new Map();
let asked = 0; // only the answer to the newest question counts

// Readings that differ only in thresholds that their task does not have are the same.
function keyOf(result, { task, objectThreshold, overlapThreshold }) {
  const thresholds = { panoptic: [objectThreshold, overlapThreshold], instance: [objectThreshold], semantic: [] };
  return [result.id, task, ...thresholds[task].map((value) => value.toFixed(2))].join(" ");
}

export const readingFor = (result, settings) => kept.get(keyOf(result, settings));

// The settings that a reading was made with, in the words of the state.
export const settingsOf = (reading) => ({
  task: reading.task,
  objectThreshold: reading.object_threshold,
  overlapThreshold: reading.overlap_threshold,
});

export async function keepReading(reading, result) {
  reading.idMap = await decodeIds(reading, result);
  kept.set(keyOf(result, settingsOf(reading)), reading);
  if (kept.size > 24) kept.delete(kept.keys().next().value);
  return reading;
}

// The reading with these settings, asked for where it is not kept; null where the server has none.
export async function fetchReading(result, settings) {
  const { task, objectThreshold, overlapThreshold } = settings;
  const kept = readingFor(result, settings);
  if (kept) return kept;
  const answer = await ask("read", result.id, task, objectThreshold, overlapThreshold);
  return answer && keepReading(answer, result);
}

// Shows the reading for the settings as they are now; the one that is shown may be it already.
async function readAgain() {
  if (!state.result) return;
  const { result } = state;
  const number = ++asked;
  const reading = await fetchReading(result, { ...state });
  if (reading === state.reading || number !== asked || result !== state.result) return;
  if (!reading) return update(settingsOf(state.reading)); // what is seen is what the controls say
  // The first segments after none: there was nothing that the visitor could have selected.
  const look = state.reading.segments.length === 0 && state.query === null ? firstLook(reading) : {};
  const segment = segmentOfQuery(state.query, reading)?.id ?? null;
  update({ reading, segment, hovered: null, isolated: null, hidden: new Set(), ...look });
}

// The largest segment is selected at first: there is something to see before anything was clicked.
export function firstLook(reading) {
  const largest = reading.segments.reduce((a, b) => (a && a.area_fraction >= b.area_fraction ? a : b), null);
  return { segment: largest?.id ?? null, query: largest?.queries[0] ?? null };
}

// The tasks that a visitor has not chosen yet are read ahead, so that a flip is instant.
async function readAhead() {
  const { result } = state;
  for (const task of Object.keys(TASKS)) {
    if (state.result !== result) return;
    await fetchReading(result, { ...state, task });
  }
}

function setUpSlider(id, key) {
  const range = find(`#${id} input[type=range]`);
  const number = find(`#${id} input[type=number]`);
  let timer = 0;
  const set = (value) => {
    clearTimeout(timer);
    timer = setTimeout(() => update({ [key]: value }), key === "opacity" ? 0 : 60);
  };
  range.addEventListener("input", () => set(range.valueAsNumber));
  number?.addEventListener("change", () => {
    const typed = number.valueAsNumber;
    if (!Number.isFinite(typed)) return show();
    const value = Math.min(1, Math.max(0, typed));
    number.value = value.toFixed(2);
    set(value);
  });
  const show = () => {
    range.value = state[key];
    if (number) number.value = state[key].toFixed(2);
  };
  onChange([key], show);
  show();
}

function setUpToggle(id, key, on, off) {
  const button = find(`#${id}`);
  button.addEventListener("click", () => update({ [key]: state[key] === on ? off : on }));
  onChange([key], () => button.setAttribute("aria-pressed", state[key] === on));
}

// -------------------------------------------------------------------------------------------------------------- keys

const KEYS = [
  ["← →", "previous, next segment"],
  ["Enter", "show only this segment, or all again"],
  ["H", "hide this segment"],
  ["A", "show all segments"],
  ["Q  Shift Q", "next, previous query"],
  ["[ ]", "earlier, later layer"],
  ["1 … 8, 0", "one head, all heads"],
  ["S M C L D", "paint segments, mask, similarity (the choice), attention (of the twin), density"],
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

function stepThrough(list, current, by) {
  if (list.length === 0) return null;
  const at = list.indexOf(current);
  return at < 0 ? list[by > 0 ? 0 : list.length - 1] : list[(at + by + list.length) % list.length];
}

function segmentsByArea() {
  return state.reading.segments.toSorted((a, b) => b.area_fraction - a.area_fraction).map(({ id }) => id);
}

function onArrow(event, by) {
  if (event.shiftKey) return pan(-60 * by, 0);
  selectSegment(stepThrough(segmentsByArea(), state.segment, by));
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
  f: fit,
  h: () => state.segment !== null && toggleHidden([state.segment]),
  n: () => update({ names: !state.names }),
  o: () => update({ outlines: !state.outlines }),
  p: () => update({ points: !state.points }),
  q: (event) => {
    selectQuery(stepThrough(allQueries(), state.query, event.shiftKey ? -1 : 1));
  },
  t: () => update({ task: stepThrough(Object.keys(TASKS), state.task, 1) }),
  w: () => find("#wipe").click(),
};

// What a focused control does with a key itself.
function isOwnKey({ key, target }) {
  if (target.matches("input[type=radio], input[type=range]")) return key.startsWith("Arrow");
  if (target.matches("input, textarea, select")) return true;
  return key === "Enter" && target.matches("button, a, summary, [role=button]");
}

function onKey(event) {
  const tab = element.closest("[role=tabpanel]");
  const isMeant = event.target === document.body || tab.contains(event.target);
  if (!isMeant || !tab.checkVisibility() || find("#keys").open || !state.reading) return;
  if (event.ctrlKey || event.metaKey || event.altKey || isOwnKey(event)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in SHOWS) update({ show: SHOWS[key] });
  else if (/^[0-9]$/.test(key)) {
    const head = Number(key) - 1;
    if (head < state.result.model.num_heads) update({ head: head < 0 ? null : head });
  } else if (key in ACTIONS) ACTIONS[key](event);
  else return;
  const scrolls = key.startsWith("Arrow") && !event.shiftKey && !key.endsWith("Left") && !key.endsWith("Right");
  if (!scrolls) event.preventDefault();
}

function setUpKeys() {
  const dialog = find("#keys");
  const list = make("dl");
  for (const [keys, what] of KEYS) list.append(make("dt", {}, keys), make("dd", {}, what));
  const close = make("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.append(make("h3", {}, "Keys"), list, close);
  find("#help").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", onKey); // a page just opened has its focus nowhere
}

// For those who hear the page: what is selected now.
function announce() {
  const segment = state.segment === null ? null : segmentById(state.segment);
  find(".studio-status").textContent = segment
    ? `${segment.category}, score ${segment.score.toFixed(2)}, ${percent(segment.area_fraction)} of the photo, query ${state.query}`
    : "";
  find("#canvas").setAttribute(
    "aria-label",
    state.reading ? `Photo with ${state.reading.segments.length} segments` : "Segmented photo",
  );
}

export function setUpControls() {
  for (const radio of findAll("#task input")) {
    radio.addEventListener("change", () => update({ task: radio.value }));
  }
  setUpSlider("score-threshold", "objectThreshold");
  setUpSlider("overlap-threshold", "overlapThreshold");
  setUpSlider("opacity", "opacity");
  setUpToggle("names", "names", true, false);
  setUpToggle("outlines", "outlines", true, false);
  setUpToggle("wipe", "leftOfWipe", "photo", null);
  setUpToggle("compare", "leftOfWipe", "other", null);
  setUpKeys();
  const showTask = () => {
    find(`#task input[value=${state.task}]`).checked = true;
    const leavesOut = state.task === "semantic" && state.result?.model.has_background;
    find("#task-note").textContent = leavesOut ? SEMANTIC_OF_THINGS : TASKS[state.task];
    const disable = (id, disabled) => {
      find(`#${id}`).classList.toggle("disabled", disabled);
      for (const input of findAll(`#${id} input`)) input.disabled = disabled;
    };
    disable("score-threshold", state.task === "semantic");
    disable("overlap-threshold", state.task !== "panoptic");
  };
  onChange(["result", "task"], showTask);
  showTask();
  onChange(["result", "task", "objectThreshold", "overlapThreshold"], readAgain);
  onChange(["result"], () => setTimeout(readAhead, 400));
  onChange(["segment", "reading"], announce);
}
