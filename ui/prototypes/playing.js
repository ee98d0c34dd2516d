// Runs once through the layers, or through the steps of the mask, by itself.

import { find } from "../core/host.js";
import { lastStep } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";

const PLAY_MS = 1000;
const KEYS = { layers: "layer", steps: "step" }; // what of the state each of them changes

const lastOf = (key) => lastStep() - (key === "layer" ? 1 : 0);

// It begins at the start when it is at the end.
function togglePlaying(what) {
  if (state.playing === what) return update({ playing: null });
  const key = KEYS[what];
  const from = state[key] === lastOf(key) ? 0 : state[key];
  update({ playing: what, [key]: from, ...(what === "steps" ? { show: "mask" } : {}) });
}

function advance() {
  const key = KEYS[state.playing];
  if (state[key] < lastOf(key)) update({ [key]: state[key] + 1 });
  else update({ playing: null });
}

export function setUpPlaying() {
  let timer = 0;
  for (const what of Object.keys(KEYS)) find(`#play-${what}`).addEventListener("click", () => togglePlaying(what));
  onChange(["playing"], () => {
    clearInterval(timer);
    if (state.playing) timer = setInterval(advance, PLAY_MS);
    for (const what of Object.keys(KEYS)) {
      const button = find(`#play-${what}`);
      button.textContent = state.playing === what ? "Pause" : "Play";
      button.setAttribute("aria-pressed", state.playing === what);
    }
  });
}
