// How the mask of the selected query grew from prediction to prediction: one picture per step.

import { layerColor } from "../core/colors.js";
import { find, findAll, make } from "../core/host.js";
import { paintPhoto } from "../core/pictures.js";
import { lastStep, predictionOf } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { percent } from "../core/words.js";
import { drawMaskIn } from "./masks.js";

const STRIP_PX = 320;
const STRIP_OPACITY = 0.6;

const stepName = (step) => (step === 0 ? "before any layer" : `after layer ${step}`);

function stepButton(step) {
  const { category, score, noObject, area, iou } = predictionOf(state.query, step);
  const canvas = make("canvas");
  const { context, box } = paintPhoto(canvas, STRIP_PX);
  drawMaskIn(context, box, state.query, step, STRIP_OPACITY);

  const dotColor = step === 0 ? "transparent" : layerColor(step - 1);
  const dot = make("i", { className: "dot", style: `background: ${dotColor}` });
  const bar = make("span", { className: "iou" }, make("i", { style: `width: ${100 * iou}%` }));
  // Two empty masks count as equal, but they agree on nothing.
  const overlap = area === 0 && iou === 1 ? ["IoU –"] : [`IoU ${iou.toFixed(2)}`, bar];
  const isObject = score >= noObject;
  const [name, sure] = isObject ? [category, score] : ["no object", noObject];
  const onclick = () => update({ step, show: "mask", playing: null });
  return make(
    "button",
    { type: "button", onclick, title: `Show the mask ${stepName(step)}` },
    canvas,
    make("span", { className: "step" }, dot, stepName(step)),
    make("span", { className: "class" }, make("b", {}, name), ` ${sure.toFixed(2)}`),
    make("span", { className: "numbers" }, `area ${percent(area)}`),
    make("span", { className: "numbers" }, ...overlap),
  );
}

function showStrip() {
  find("#evolution").hidden = state.query === null;
  if (state.query === null) return;
  const steps = Array.from({ length: lastStep() + 1 }, (_, step) => stepButton(step));
  find("#evolution .strip").replaceChildren(...steps);
  markStep();
}

function markStep() {
  findAll("#evolution .strip button").forEach((button, step) => {
    button.setAttribute("aria-pressed", state.show === "mask" && step === state.step);
  });
}

export function setUpEvolution() {
  onChange(["result", "query", "reading"], showStrip);
  onChange(["step", "show"], markStep);
}
