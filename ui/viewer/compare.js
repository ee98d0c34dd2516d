// The same photo by both networks at once: what the other one makes of it is seen left of the wipe.

import { fetchReading, settingsOf } from "./controls.js";
import { find, onChange, percent, state, update } from "./state.js";

let comparisons = 0; // only the answer to the newest question counts

async function readBeside(changes) {
  const number = ++comparisons;
  const { result, reading, leftOfWipe } = state;
  const isCompared = leftOfWipe === "other" && result.other_id;
  if (!isCompared || "result" in changes) update({ beside: null });
  if (!isCompared) return leftOfWipe === "other" && update({ leftOfWipe: null });
  find("#compare").setAttribute("aria-busy", "true");
  // The two have the photo in common, and so its size.
  const beside = await fetchReading({ ...result, id: result.other_id }, settingsOf(reading));
  if (number !== comparisons) return;
  find("#compare").removeAttribute("aria-busy");
  update(beside ? { beside } : { leftOfWipe: null });
}

// The share of the pixels that both readings give the same class, or none.
function agreement(one, other) {
  const classes = ({ segments }) => {
    const byId = [null];
    for (const { id, category_id: category } of segments) byId[id] = category;
    return byId;
  };
  const [mine, theirs] = [classes(one), classes(other)];
  const alike = one.idMap.reduce((sum, id, i) => sum + (mine[id] === theirs[other.idMap[i]]), 0);
  return alike / one.idMap.length;
}

function renderAgreement() {
  const { reading, beside } = state;
  const note = find("#agreement");
  note.hidden = !beside;
  if (beside) note.textContent = `The two agree on the class of ${percent(agreement(reading, beside))} of the pixels.`;
}

export function setUpCompare() {
  onChange(["result", "reading", "leftOfWipe"], readBeside);
  onChange(["beside"], renderAgreement);
}
