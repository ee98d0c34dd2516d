// Where the picks of all queries fall.

import { colorTable } from "../core/colors.js";
import { boxOf, gridBox } from "../core/geometry.js";
import { make } from "../core/host.js";
import { drainColor, drawInBox, paintCells } from "../core/pictures.js";
import { hasForeground, usesPrototypes } from "../core/result.js";
import { state } from "../core/state.js";

const HEAT = colorTable("#3b0f70 #8c2981 #de4968 #fe9f6d #fcfdbf");
const densities = new Map(); // by result, layer and head

// How many picks of all heads, or of the chosen one, fall on each token. Queries without foreground do not count.
export function densityOf(layer) {
  const key = `${state.result.id} ${layer} ${state.head}`;
  if (!densities.has(key)) {
    if (densities.size > 100) densities.clear();
    const { rows, cols } = state.result.layers[layer];
    const counts = new Uint16Array(rows * cols);
    let queries = 0;
    state.result.prototype_index[layer].forEach((indices, query) => {
      if (!hasForeground(query, layer)) return;
      queries += 1;
      for (const index of state.head === null ? indices : [indices[state.head]]) counts[index] += 1;
    });
    const max = Math.max(...counts);
    // A square root, because a few tokens are picked very often.
    const heat = (count) => [...HEAT[Math.round(255 * Math.sqrt(count / max))], 235];
    const picture = paintCells(make("canvas"), rows, cols, (i) => (counts[i] ? heat(counts[i]) : [0, 0, 0, 90]));
    densities.set(key, { counts, queries, max, picture });
  }
  return densities.get(key);
}

// Returns the colours of its scale and what stands at the two ends.
export function drawDensity(context) {
  const box = boxOf();
  drainColor(context, box);
  const { picture, max } = densityOf(state.layer);
  drawInBox(context, picture, gridBox(state.layer, box), false);
  const what = usesPrototypes() ? "picks" : "largest weights";
  return max > 0 ? [HEAT, "0", `${max} ${what}, square root scale`] : null;
}
