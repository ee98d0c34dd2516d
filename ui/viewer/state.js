// What the page shows, in one place. Rooms read `state`, change it with `update`, and hear of changes with `onChange`.
// Nothing else is shared between them. Places are fractions of the photo's width and height, indices start at 0.

export const state = {
  result: null, // what ui/viewer/payload.py sends of a photo
  reading: null, // what it sends of one reading of it, with `idMap` (Uint16Array, width x height of the photo) added
  task: "panoptic", // or "semantic", "instance"
  objectThreshold: 0.5,
  overlapThreshold: 0.5,
  segment: null, // id of the selected segment
  hovered: null, // id of the segment under the pointer, or of the legend row
  isolated: null, // Set of the ids of the only segments that are painted, or null for all
  hidden: new Set(), // ids of segments that are not painted
  query: null, // the selected query
  layer: 0, // the decoder layer whose prototypes are shown
  head: null, // one head, or null for all of them
  step: 0, // the prediction whose mask is shown: 0 before any layer, i after layer i
  show: "segments", // what is painted over the photo: "segments", "mask", "similarity", "weights" or "density"
  points: true, // are the prototypes of the selected query shown
  opacity: 0.55,
  outlines: true,
  names: true,
  leftOfWipe: null, // what is seen there: "photo" (bare), "other" (what the other network makes of it), null for no wipe
  wipe: 0.5, // where it is, as a fraction of the width
  beside: null, // the other network's reading with the same settings, while it is compared
  playing: null, // "layers" or "steps" while one of them runs by itself
};

const listeners = [];
const untold = []; // changes that not everyone has heard of yet

// Calls `listener(changes)` after every update of one of these keys.
export function onChange(keys, listener) {
  listeners.push({ keys, listener });
}

// Sets what differs from now and tells whoever listens, in the order in which they asked to be told. What a listener
// changes in turn is told when all have heard of this change, so nobody hears of the second before the first.
export function update(changes) {
  const changed = Object.entries(changes).filter(([key, value]) => state[key] !== value);
  if (changed.length === 0) return;
  const news = Object.fromEntries(changed);
  Object.assign(state, news);
  untold.push(news);
  if (untold.length > 1) return;
  while (untold.length > 0) {
    for (const { keys, listener } of listeners) {
      if (!keys.some((key) => key in untold[0])) continue;
      try {
        listener(untold[0]);
      } catch (error) {
        console.error(error); // one room that fails must not silence the others
      }
    }
    untold.shift();
  }
}

// The first element inside the viewer that fits, and all of them; `element` is the viewer's own, given by gr.HTML.
export const find = (selector) => element.querySelector(selector);
export const findAll = (selector) => [...element.querySelectorAll(selector)];

// Makes an element: make("button", { className: "chip", onclick }, "text", child). Text is never read as HTML.
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// With a space that does not break.
export const percent = (fraction, digits = 1) => `${(fraction * 100).toFixed(digits)}\u00a0%`;

// Asks the server (a function of gr.HTML's server_functions) and shows what went wrong, if it did. Null then.
export async function ask(name, ...args) {
  try {
    const answer = await server[name](...args);
    if (!answer.error) return answer;
    notify(answer.error);
  } catch {
    notify("The server does not answer; please check the connection and try again.");
  }
  return null;
}

// One sentence at the foot of the viewer, also read out, gone after a while.
export function notify(sentence, ms = 7000) {
  const note = find(".studio-note");
  note.textContent = sentence;
  note.hidden = false;
  clearTimeout(notify.timer);
  notify.timer = setTimeout(hideNote, ms);
}

export function hideNote() {
  find(".studio-note").hidden = true;
}

// The segment that a query drew in a reading, the current one by default, or null.
export function segmentOfQuery(query, reading = state.reading) {
  return reading?.segments.find((segment) => segment.queries.includes(query)) ?? null;
}

export const segmentById = (id) => state.reading?.segments.find((segment) => segment.id === id) ?? null;

export const isPainted = (id) => !state.hidden.has(id) && (state.isolated?.has(id) ?? true);

export const allQueries = () => Array.from({ length: state.result.model.num_queries }, (_, query) => query);

// Selects a query and the segment that it drew, wherever that was asked for.
export function selectQuery(query) {
  update({ query, segment: query === null ? null : (segmentOfQuery(query)?.id ?? null) });
}

// Selects a segment and the query that drew most of it.
export function selectSegment(id) {
  update({ segment: id, query: segmentById(id)?.queries[0] ?? null });
}

export const layerName = (layer) => `layer ${layer + 1}`;

// One colour per decoder layer, early to late; told apart by colour-blind eyes and on any photo with a white rim.
export const LAYER_COLORS = ["#fde725", "#7ad151", "#22a884", "#2a788e", "#8d6cc4", "#e0459b"];
