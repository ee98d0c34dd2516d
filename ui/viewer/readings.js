// Readings of the photo: asked for when task or thresholds change, and kept, so that going back takes no time.

import { ask } from "../core/host.js";
import { decodeIds } from "../core/pictures.js";
import { byArea, segmentOfQuery } from "../core/result.js";
import { onChange, state, TASKS, update } from "../core/state.js";

const kept = new Map();
let asked = 0; // only the answer to the newest question counts

// Thresholds that a task does not have make no difference.
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
  await decodeIds(reading);
  kept.set(keyOf(result, settingsOf(reading)), reading);
  if (kept.size > 24) kept.delete(kept.keys().next().value);
  return reading;
}

// The reading with these settings: the kept one, or else the answer of the server; null if it has none.
export async function fetchReading(result, settings) {
  const { task, objectThreshold, overlapThreshold } = settings;
  const known = readingFor(result, settings);
  if (known) return known;
  const answer = await ask("read", result.id, task, objectThreshold, overlapThreshold);
  return answer && keepReading(answer, result);
}

// Shows the reading for the settings as they are now; it may be shown already.
async function readAgain() {
  if (!state.result) return;
  const { result } = state;
  const number = ++asked;
  const reading = await fetchReading(result, { ...state });
  if (reading === state.reading || number !== asked || result !== state.result) return;
  if (!reading) return update(settingsOf(state.reading)); // the controls say what is seen
  // After a reading without segments nothing can be selected, so this is like the first look.
  const look = state.reading.segments.length === 0 && state.query === null ? firstLook(reading) : {};
  const segment = segmentOfQuery(state.query, reading)?.id ?? null;
  update({ reading, segment, hovered: null, isolated: null, hidden: new Set(), ...look });
}

// At first the largest segment is selected, so that there is something to see before anything was clicked.
export function firstLook(reading) {
  const [largest] = byArea(reading.segments);
  return { segment: largest?.id ?? null, query: largest?.queries[0] ?? null };
}

// Reads the tasks that the visitor has not chosen yet, so that a flip is instant.
async function readAhead() {
  const { result } = state;
  for (const task of TASKS) {
    if (state.result !== result) return;
    await fetchReading(result, { ...state, task });
  }
}

export function setUpReadings() {
  onChange(["result", "task", "objectThreshold", "overlapThreshold"], readAgain);
  onChange(["result"], () => setTimeout(readAhead, 400));
}
