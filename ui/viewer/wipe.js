// The line that parts the photo in two: before and after, or one network on each side.

import { boxOf, camera, place, unplace } from "../core/geometry.js";
import { find } from "../core/host.js";
import { onChange, state, update } from "../core/state.js";
import { nameWidth } from "./names.js";

const GRIP_PX = 18; // how near to the line a pointer takes hold of it

export const isOnLine = (left) => state.leftOfWipe !== null && Math.abs(left - place(state.wipe, 0)[0]) < GRIP_PX;

// Whether the other network's reading is seen at this place.
export const isBeside = (x) => state.beside !== null && x < state.wipe;

// What the networks left and right of the line are called.
export const attentions = () =>
  state.result.model.attention === "masked" ? ["prototypes", "masked"] : ["masked", "prototypes"];

export function drawWipe(context) {
  const { left, top, height } = boxOf(state.wipe);
  context.fillStyle = "#fff";
  context.shadowColor = "#000a";
  context.shadowBlur = 4;
  context.fillRect(left - 1, top, 2, height);
  context.beginPath();
  context.arc(left, top + height / 2, 9, 0, 2 * Math.PI);
  context.fill();
  context.shadowBlur = 0;
}

// Where the two networks are named, on their sides of the line and above the slider.
export function networkNames(context) {
  const [line, bottom] = place(state.wipe, 1);
  return attentions().map((name, side) => {
    const away = nameWidth(context, name) / 2 + 6;
    return { name, left: line + (side === 0 ? -away : away), top: Math.min(bottom, camera.height) - 48 };
  });
}

// The slider spans the visible width of the photo, so that its knob is below the line.
function showHandle() {
  if (!state.result) return;
  const handle = find(".wipe-handle");
  handle.hidden = state.leftOfWipe === null;
  const sides = state.leftOfWipe === "other" ? attentions() : ["before", "after"];
  handle.setAttribute("aria-label", `Line between ${sides.join(" on the left and ")} on the right`);
  const box = boxOf();
  const [left, right] = [Math.max(0, box.left), Math.min(camera.width, box.left + box.width)];
  handle.style.left = `${left}px`;
  handle.style.width = `${right - left}px`;
  [handle.min, handle.max] = [left, right].map((edge) => unplace(edge, 0)[0].toFixed(3));
  handle.value = state.wipe;
}

export function setUpWipe() {
  const handle = find(".wipe-handle");
  handle.addEventListener("input", () => update({ wipe: handle.valueAsNumber }));
  onChange(["wipe", "leftOfWipe", "result", "camera"], showHandle);
}
