// Both networks on one photo: the reading of the other one is seen left of the line.

import { find } from "../core/host.js";
import { onChange, state, update } from "../core/state.js";
import { percent } from "../core/words.js";
import { fetchReading, settingsOf } from "./readings.js";

let comparisons = 0; // only the answer to the newest question counts

async function readBeside(changes) {
  const number = ++comparisons;
  const { result, reading, leftOfWipe } = state;
  const isCompared = leftOfWipe === "other" && result.other_id;
  find("#compare").removeAttribute("aria-busy");
  find("#agreement").textContent = "";
  if (!isCompared || "result" in changes) update({ beside: null });
  if (!isCompared) return leftOfWipe === "other" && update({ leftOfWipe: null });
  find("#compare").setAttribute("aria-busy", "true");
  // Both results have the same photo, so its size is the same.
  const beside = await fetchReading({ ...result, id: result.other_id }, settingsOf(reading));
  if (number !== comparisons) return;
  find("#compare").removeAttribute("aria-busy");
  update(beside ? { beside } : { leftOfWipe: null });
  if (beside) find("#agreement").textContent = agreement(reading, beside);
}

// The share of pixels with the same class in both readings, among those with a class in either.
function agreement(one, other) {
  const classes = ({ segments }) => Object.fromEntries(segments.map(({ id, category_id: category }) => [id, category]));
  const [mine, theirs] = [classes(one), classes(other)];
  let named = 0;
  let alike = 0;
  for (let i = 0; i < one.idMap.length; i++) {
    const [id, otherId] = [one.idMap[i], other.idMap[i]];
    if (!id && !otherId) continue;
    named += 1;
    if (mine[id] === theirs[otherId]) alike += 1;
  }
  if (named === 0) return "Neither of the two names anything.";
  return `Of what either of the two names, they agree on ${percent(alike / named)}.`;
}

export const setUpCompare = () => onChange(["result", "reading", "leftOfWipe"], readBeside);
