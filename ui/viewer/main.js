// Starts everything, and takes in each new result that the server sends.

import { setUpExport, viewFromLink } from "../export/export.js";
import { setUpGallery } from "../gallery/gallery.js";
import { setUpBar } from "../prototypes/bar.js";
import { setUpChoice } from "../prototypes/choice.js";
import { loadMaskSheets, setUpEvolution } from "../prototypes/evolution.js";
import { setUpPoints } from "../prototypes/points.js";
import { setUpWalk } from "../prototypes/walk.js";
import { setUpCanvas, showPhoto } from "./canvas.js";
import { keepReading, readingFor, settingsOf, setUpControls } from "./controls.js";
import { setUpLegend } from "./legend.js";
import { ask, find, onChange, segmentOfQuery, state, update } from "./state.js";
import { setUpTiming } from "./timing.js";

// The largest segment is selected at first: there is something to see before anything was clicked.
function firstLook(reading) {
  const largest = reading.segments.reduce((a, b) => (a && a.area_fraction >= b.area_fraction ? a : b), null);
  return { segment: largest?.id ?? null, query: largest?.queries[0] ?? null };
}

const received = new Map(); // the latest results, by their ids, to flip between them
const linkToFollow = new URLSearchParams(location.search);

function takeIn() {
  // gr.HTML hands out a proxy whose every access costs; what is read a thousand times had better be plain.
  const value = props.value ? JSON.parse(JSON.stringify(props.value)) : null;
  if (!value || value.id === state.result?.id) return;
  // The view of a link is for the first result that it means, and for no other.
  const means = (name, own) => (linkToFollow.get(name) ?? own) === own;
  const isMeant =
    linkToFollow.has("example") && means("example", value.name) && means("attention", value.model.attention);
  const view = isMeant ? viewFromLink(location.search, value) : {};
  if (isMeant) linkToFollow.delete("example");
  enqueue(value, view);
}

// One after the other: pictures of an older result that were slow to decode must not replace those of a newer one.
let lastShown = Promise.resolve();
function enqueue(value, view) {
  lastShown = lastShown.then(() => showResult(value, view)).catch(console.error);
}

// Shows a result with its first reading, and of the view what is given.
async function showResult(value, view) {
  const { readings, ...result } = value;
  received.set(value.id, value);
  if (received.size > 8) received.delete(received.keys().next().value);
  await Promise.all([showPhoto(result), loadMaskSheets(result)]);
  for (const reading of readings) await keepReading(reading, result);
  const wanted = { ...settingsOf(readings[0]), ...view };
  // A link may want another reading than those that came along: it is asked for as soon as this one is shown.
  const reading = readingFor(result, wanted) ?? readings[0];
  find(".studio").dataset.empty = "false";
  const last = result.layers.length - 1;
  update({
    result,
    reading,
    ...wanted,
    hovered: null,
    isolated: null,
    hidden: new Set(),
    playing: null,
    layer: last,
    step: last + 1,
    head: null,
    show: "segments",
    ...firstLook(reading),
    ...("query" in view ? { segment: segmentOfQuery(view.query, reading)?.id ?? null } : {}),
    ...view,
  });
}

// The same photo by the network with the other attention, in the view of now. The queries of the two have the same
// numbers, but only by their common start do they look for the same things.
async function flipAttention() {
  const { result, task, objectThreshold, overlapThreshold, layer, step, head, show: what } = state;
  find("#attention").setAttribute("aria-busy", "true");
  const value = received.get(result.other_id) ?? (await ask("other", result.id, task));
  find("#attention").removeAttribute("aria-busy");
  if (!value || state.result !== result) return showAttention();
  const query = segmentOfQuery(state.query, value.readings[0]) ? { query: state.query } : {};
  enqueue(value, { task, objectThreshold, overlapThreshold, layer, step, head, show: what, ...query });
}

function showAttention() {
  const { model, other_id: other } = state.result;
  find("#attention").hidden = !other;
  find(`#attention input[value=${model.attention}]`).checked = true;
}

function setUpAttention() {
  find("#attention").addEventListener("change", flipAttention);
  onChange(["result"], showAttention);
}

setUpControls();
setUpAttention();
setUpCanvas();
setUpLegend();
setUpTiming();
setUpPoints();
setUpBar();
setUpChoice();
setUpEvolution();
setUpWalk();
setUpGallery();
setUpExport();
watch("value", takeIn);
takeIn();
