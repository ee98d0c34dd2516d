// What the page shows, in one place. The parts of the page read `state`, change it with `update`, and hear of changes
// with `onChange`. Places are fractions of the photo's width and height; indices start at 0.

export const TASKS = ["panoptic", "semantic", "instance"];
export const SHOWS = ["segments", "mask", "similarity", "weights", "density"];

export const state = {
  result: null, // what ui/viewer/payload.py sends of a photo, with `pictures` added (see pictures.js)
  reading: null, // what it sends of one reading of it, with `idMap` (Uint16Array, width x height of the photo) added
  task: "panoptic", // one of TASKS
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
  show: "segments", // what is painted over the photo, one of SHOWS
  points: true, // whether the prototypes of the selected query are shown
  opened: null, // the point whose patch of the photo is shown
  choice: null, // why the selected head took its prototype, or null while that is not known
  opacity: 0.55,
  outlines: true,
  names: true,
  leftOfWipe: null, // "photo" (bare) or "other" (the other network's reading) left of a line, or null for no line
  wipe: 0.5, // where the line is, as a fraction of the width
  beside: null, // the other network's reading with the same settings, while the two are compared
  playing: null, // "layers" or "steps" while one of them runs by itself
  camera: null, // a new value after every move of the camera (see geometry.js)
};

const listeners = [];
const untold = []; // changes that not everyone has heard of yet

// Calls `listener(changes)` after every update of one of these keys.
export function onChange(keys, listener) {
  listeners.push({ keys, listener });
}

// Sets what differs from now. Then it calls the listeners in the order of their `onChange`. When a listener makes
// another change, all listeners hear of the first change before any hears of the second.
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
        console.error(error); // one part that fails must not silence the others
      }
    }
    untold.shift();
  }
}
