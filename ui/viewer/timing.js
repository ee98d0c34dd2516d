// How long each stage of this run took, as one bar.

import { find, make, makeSwatch } from "../core/host.js";
import { onChange, state } from "../core/state.js";

// Colour-blind eyes can tell them apart, on light and on dark.
const STAGE_COLORS = {
  preprocess: "#8a8f98",
  backbone: "#0072b2",
  "pixel decoder": "#56b4e9",
  "decoder + trace": "#e69f00", // what the studio shows of its inside is recorded, and takes its time
  "network + trace": "#0072b2", // a runtime does not say more
  reading: "#009e73",
  drawing: "#cc79a7",
};

const milliseconds = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`);

// [stage, ms] in the order in which they ran. The network ran once; the reading is the one that is shown.
function stages() {
  const { drawing: before = 0, ...once } = state.result.stage_ms;
  const { reading_ms: reading, drawing_ms: drawing } = state.reading;
  return Object.entries({ ...once, reading, drawing: before + drawing });
}

function renderTiming() {
  const times = stages();
  const total = times.reduce((sum, [, ms]) => sum + ms, 0);
  const bar = make("div", { className: "bar", "aria-hidden": "true" });
  const list = make("ul", { "aria-label": "Time of each stage of this run" });
  for (const [stage, ms] of times) {
    const title = `${stage}: ${milliseconds(ms)}, ${Math.round((ms / total) * 100)} % of all`;
    bar.append(make("i", { title, style: `flex: ${ms} 0 0; background: ${STAGE_COLORS[stage]}` }));
    list.append(make("li", {}, makeSwatch(STAGE_COLORS[stage]), `${stage} `, make("b", {}, milliseconds(ms))));
  }
  list.append(make("li", {}, "total ", make("b", {}, milliseconds(total))));
  const { measured_on: device } = state.result;
  if (device) list.append(make("li", {}, `network measured on ${device}`));
  const note = "One run, its inside recorded. The tab Efficiency compares prototype and masked attention fairly.";
  find("#timing").replaceChildren(bar, list, make("p", {}, note));
}

export const setUpTiming = () => onChange(["result", "reading"], renderTiming);
