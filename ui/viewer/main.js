// Starts everything, and takes in each new result that the server sends.

import { setUpExport, viewFromLink } from "../export/export.js";
import { setUpGallery } from "../gallery/gallery.js";
import { setUpBar } from "../prototypes/bar.js";
import { setUpChoice } from "../prototypes/choice.js";
import { loadMaskSheets, setUpEvolution } from "../prototypes/evolution.js";
import { setUpPoints } from "../prototypes/points.js";
import { setUpWalk } from "../prototypes/walk.js";
import { setUpCanvas, showPhoto } from "./canvas.js";
import { setUpCompare } from "./compare.js";
import { fetchReading, firstLook, keepReading, readingFor, settingsOf, setUpControls } from "./controls.js";
import { setUpLegend } from "./legend.js";
import { ask, find, hideNote, notify, onChange, segmentOfQuery, state, update } from "./state.js";
import { setUpTiming } from "./timing.js";

const received = new Map(); // the latest results, by their ids, to flip between them
let linkToFollow = new URLSearchParams(location.search); // null once a result was shown as it says

function takeIn() {
  // gr.HTML hands out a proxy whose every access costs; what is read a thousand times had better be plain.
  const value = props.value ? JSON.parse(JSON.stringify(props.value)) : null;
  if (!value) return;
  inTurn(async () => {
    const before = state.result;
    if (value.id === before?.id) return;
    // The view of a link is for the first result that it means, and for no other.
    const means = (name, own) => (linkToFollow.get(name) ?? own) === own;
    const isMeant = linkToFollow && means("example", value.name) && means("attention", value.model.attention);
    const view = isMeant ? viewFromLink(linkToFollow, value) : {};
    if (isMeant) linkToFollow = null;
    await showResult(value, () => ({ ...(state.result ? settings() : {}), ...view }));
    const isAwaited = !before && linkToFollow && isOnItsWay(linkToFollow, value);
    if (isAwaited) notify("What the link shows is on its way.", 60_000);
    else hideNote();
    if (before && !isMeant) welcome(value, before);
  });
}

// Whether there is what a link asks for.
function isOnItsWay(link, { name, other_id: other }) {
  const isExample = exampleButtons().some(({ photo }) => photo.alt === (link.get("example") ?? name));
  return isExample && (link.get("attention") !== "masked" || Boolean(other));
}

// A photo that the visitor has just chosen: is seen, and by the network that was looked at before.
function welcome(value, before) {
  const { top } = find(".studio-view").getBoundingClientRect();
  if (top > window.innerHeight / 2) find("#task").scrollIntoView({ behavior: "smooth" });
  const isOther = value.model.attention !== before.model.attention;
  if (isOther && value.other_id) flipAttention({ target: find(`#attention input[value=${before.model.attention}]`) });
}

// How photos are read: a choice of the visitor's that outlives the photo.
function settings() {
  const { task, objectThreshold, overlapThreshold } = state;
  return { task, objectThreshold, overlapThreshold };
}

// One after the other: pictures of an older result that were slow to decode must not replace those of a newer one.
let lastShown = Promise.resolve();
function inTurn(show) {
  lastShown = lastShown.then(show).catch(console.error);
}

// Shows a result with its first reading, and of the view what is given. That is asked for when all is decoded: what
// was changed meanwhile stays.
async function showResult(value, viewOfNow) {
  const { readings, ...result } = value;
  received.delete(value.id); // so that it becomes the latest
  received.set(value.id, value);
  if (received.size > 8) received.delete(received.keys().next().value);
  await Promise.all([showPhoto(result), loadMaskSheets(result)]);
  for (const reading of readings) await keepReading(reading, result);
  const view = viewOfNow();
  const wanted = { ...settingsOf(readings[0]), ...view };
  // Another reading than those that came along is asked for as soon as this one is shown; where segments of it are to
  // be hidden, at once.
  const asked = view.hidden ? await fetchReading(result, wanted) : readingFor(result, wanted);
  const reading = asked ?? readings[0];
  find(".studio").dataset.empty = "false";
  const last = result.layers.length - 1;
  update({
    result,
    reading,
    ...wanted,
    hovered: null,
    isolated: null,
    playing: null,
    layer: last,
    step: last + 1,
    head: null,
    show: "segments",
    ...firstLook(reading),
    ...("query" in view ? { segment: segmentOfQuery(view.query, reading)?.id ?? null } : {}),
    ...view,
    hidden: (asked && view.hidden) || new Set(),
  });
}

// The same photo by the network with the other attention, in the view of now. The queries of the two have the same
// numbers, but only by their common start do they look for the same things.
let flips = 0; // only the newest counts
async function flipAttention({ target }) {
  const number = ++flips;
  const { result, task } = state;
  const id = target.value === result.model.attention ? result.id : result.other_id;
  find("#attention").setAttribute("aria-busy", "true");
  const value = received.get(id) ?? (await ask("other", result.id, task));
  inTurn(() => {
    if (number !== flips) return;
    find("#attention").removeAttribute("aria-busy");
    // Another photo may have come meanwhile, or an older flip.
    const isFlip = value && value.other_id === state.result.id;
    return isFlip ? showResult(value, viewToKeep) : showAttention();
  });
}

function viewToKeep() {
  const { query, layer, step, head, show } = state;
  return { ...settings(), query, layer, step, head, show };
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

// Gradio calls them "Thumbnail 1 of 6", and does not know which one is shown.
function markExample() {
  for (const { button, photo } of exampleButtons()) {
    button.setAttribute("aria-label", photo.alt);
    button.setAttribute("aria-current", photo.alt === state.result.name);
  }
}

function exampleButtons() {
  const buttons = [...document.querySelectorAll("#examples .thumbnail-item")];
  return buttons.map((button) => ({ button, photo: button.querySelector("img") }));
}

setUpControls();
setUpAttention();
setUpCompare();
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
onChange(["result"], markExample);
watch("value", takeIn);
takeIn();
