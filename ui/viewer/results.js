// Shows a result, and flips between the two networks' results of one photo.

import { ask, find } from "../core/host.js";
import { decodePictures } from "../core/pictures.js";
import { segmentOfQuery } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { fetchReading, firstLook, keepReading, readingFor, settingsOf } from "./readings.js";

const MAX_RECEIVED = 8;
const received = new Map(); // the latest results by their ids, so that a flip back takes no time

// Results are shown one after the other: an older one that decodes slowly must not replace a newer one.
let lastShown = Promise.resolve();
export function inTurn(show) {
  lastShown = lastShown.then(show).catch(console.error);
}

// Shows a result with the task and thresholds of now, and with the view that `viewOfNow` returns. That is called when
// all is decoded, so that what the visitor changed meanwhile stays.
export async function showResult(result, viewOfNow) {
  const { id, readings, layers } = result;
  received.delete(id); // so that it becomes the latest
  received.set(id, result);
  if (received.size > MAX_RECEIVED) received.delete(received.keys().next().value);
  await decodePictures(result);
  for (const reading of readings) await keepReading(reading, result);
  const view = viewOfNow();
  const { task, objectThreshold, overlapThreshold } = state;
  const before = state.result ? { task, objectThreshold, overlapThreshold } : settingsOf(readings[0]);
  const wanted = { ...before, ...view };
  // A reading that did not come along is asked for after one that did is shown. A view that hides segments cannot wait:
  // it needs its own reading.
  const asked = view.hidden ? await fetchReading(result, wanted) : readingFor(result, wanted);
  const reading = asked ?? readings[0];
  find(".studio").dataset.empty = "false";
  update({
    result,
    reading,
    ...wanted,
    hovered: null,
    isolated: null,
    playing: null,
    layer: layers.length - 1,
    step: layers.length,
    head: null,
    show: "segments",
    ...firstLook(reading),
    ...("query" in view ? { segment: segmentOfQuery(view.query, reading)?.id ?? null } : {}),
    ...view,
    hidden: (asked && view.hidden) || new Set(),
  });
}

// Shows the same photo by the network with the other attention, in the same view. Queries of the same number often look
// for the same thing in both networks, because their training started alike.
let flips = 0; // only the newest counts
export async function flipAttention(attention) {
  const number = ++flips;
  const { result, task } = state;
  const id = attention === result.model.attention ? result.id : result.other_id;
  find("#attention").setAttribute("aria-busy", "true");
  const value = received.get(id) ?? (await ask("other", result.id, task));
  inTurn(() => {
    if (number !== flips) return;
    find("#attention").removeAttribute("aria-busy");
    // Another photo may have come meanwhile, or an older flip.
    const isFlip = value && value.other_id === state.result.id;
    const viewOfNow = () => (({ query, layer, step, head, show }) => ({ query, layer, step, head, show }))(state);
    return isFlip ? showResult(value, viewOfNow) : showAttention();
  });
}

function showAttention() {
  const { model, other_id: other } = state.result;
  find("#attention").hidden = !other;
  find(`#attention input[value=${model.attention}]`).checked = true;
}

export function setUpResults() {
  find("#attention").addEventListener("change", ({ target }) => flipAttention(target.value));
  onChange(["result"], showAttention);
}
