// The bar above the picture: task, thresholds, opacity, and what is painted.

import { find, findAll } from "../core/host.js";
import { onChange, state, update } from "../core/state.js";

// What each task asks of a pixel.
const NOTES = {
  panoptic: "Every pixel belongs to one thing, to one surface, or to nothing that was recognised.",
  semantic: "Every pixel gets a class; things of one class are not told apart. It has no thresholds.",
  instance: "Only things are looked for, one by one; they may overlap.",
};
// The note for a model that has no class for the background.
const SEMANTIC_OF_THINGS = "Every pixel gets a class or, where no object is, nothing. It has no thresholds.";

function showTask() {
  const { task, result } = state;
  find(`#task input[value=${task}]`).checked = true;
  const isOfThings = task === "semantic" && result?.model.has_background;
  find("#task-note").textContent = isOfThings ? SEMANTIC_OF_THINGS : NOTES[task];
  const disable = (id, disabled) => {
    find(`#${id}`).classList.toggle("disabled", disabled);
    for (const input of findAll(`#${id} input`)) input.disabled = disabled;
  };
  disable("score-threshold", task === "semantic");
  disable("overlap-threshold", task !== "panoptic");
}

function setUpSlider(id, key) {
  const range = find(`#${id} input[type=range]`);
  const number = find(`#${id} input[type=number]`);
  let timer = 0;
  const set = (value) => {
    clearTimeout(timer);
    timer = setTimeout(() => update({ [key]: value }), key === "opacity" ? 0 : 60);
  };
  range.addEventListener("input", () => set(range.valueAsNumber));
  number?.addEventListener("change", () => {
    const typed = number.valueAsNumber;
    if (!Number.isFinite(typed)) return show();
    const value = Math.min(1, Math.max(0, typed));
    number.value = value.toFixed(2);
    set(value);
  });
  const show = () => {
    range.value = state[key];
    if (number) number.value = state[key].toFixed(2);
  };
  onChange([key], show);
  show();
}

function setUpToggle(id, key, on, off) {
  const button = find(`#${id}`);
  button.addEventListener("click", () => update({ [key]: state[key] === on ? off : on }));
  onChange([key], () => button.setAttribute("aria-pressed", state[key] === on));
}

export function setUpControls() {
  for (const radio of findAll("#task input")) radio.addEventListener("change", () => update({ task: radio.value }));
  setUpSlider("score-threshold", "objectThreshold");
  setUpSlider("overlap-threshold", "overlapThreshold");
  setUpSlider("opacity", "opacity");
  setUpToggle("names", "names", true, false);
  setUpToggle("outlines", "outlines", true, false);
  setUpToggle("wipe", "leftOfWipe", "photo", null);
  setUpToggle("compare", "leftOfWipe", "other", null);
  onChange(["result", "task"], showTask);
  showTask();
}
