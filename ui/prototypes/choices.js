// What one head of one query compared in one layer, and which token won: asked of the server, and painted as maps.

import { colorTable } from "../core/colors.js";
import { boxOf, gridBox, tokenAt } from "../core/geometry.js";
import { ask, find, make } from "../core/host.js";
import { decodeBytes, drainColor, drawInBox, paintCells, stroke, strokeCells } from "../core/pictures.js";
import { bestHead } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { decimal } from "../core/words.js";

const MAP_ALPHA = 215; // the photo shines through a little
const WAIT_MS = 60; // while somebody scrubs faster than this, nothing is asked for
// Even steps of lightness from dark to light, also for colour-blind eyes (viridis).
const COLORS = colorTable("#440154 #482878 #3e4989 #31688e #26828e #1f9e89 #35b779 #6ece58 #b5de2b #fde725");
const BANNED = [120, 120, 120, 190];

const choices = new Map(); // promises, by result, query, layer and head
let isPanelVisible = false;
let timer = 0;

// What the server knows of a choice, with its maps decoded and painted. Null where it does not answer.
export function fetchChoice(query, layer, head) {
  const key = `${state.result.id} ${query} ${layer} ${head}`;
  if (!choices.has(key)) {
    if (choices.size >= 200) choices.clear();
    const answer = ask("choice", state.result.id, query, layer, head).then((choice) => {
      if (!choice) choices.delete(key); // it may be asked again
      return choice && decodeChoice(choice);
    });
    choices.set(key, answer);
  }
  return choices.get(key);
}

function decodeChoice(choice) {
  const { rows, cols, baseline, empty } = choice;
  const [scores, banned] = [decodeBytes(choice.scores), decodeBytes(choice.banned)];
  const isBanned = (i) => banned[i] && !empty;
  const map = (values, isGrey, grid = choice) =>
    paintCells(make("canvas"), grid.rows, grid.cols, (i) => (isGrey(i) ? BANNED : [...COLORS[values[i]], MAP_ALPHA]));
  return {
    ...choice,
    bestIsBanned: !empty && scores.every((score, i) => score < 255 || banned[i]),
    hatch: hatchOf(rows, cols, isBanned),
    banHatch: hatchOf(rows, cols, (i) => banned[i]),
    pictures: {
      scores: map(scores, isBanned),
      banned: paintCells(make("canvas"), rows, cols, (i) => (banned[i] ? BANNED : [0, 0, 0, 0])),
      // The baseline's masks are its own, and so is what they banned.
      weights: baseline
        ? map(decodeBytes(baseline.weights), () => false, baseline)
        : map(decodeBytes(choice.weights), isBanned),
    },
  };
}

// One stroke from corner to corner in each of some cells; in cells.
function hatchOf(rows, cols, isHatched) {
  const path = new Path2D();
  for (let i = 0; i < rows * cols; i++) {
    if (!isHatched(i)) continue;
    const [row, col] = [Math.floor(i / cols), i % cols];
    path.moveTo(col, row + 1);
    path.lineTo(col + 1, row);
  }
  return path;
}

// Draws one of the pictures of a choice over a photo that fills the box, with a ring around the token that won.
export function drawMap(context, box, choice, which) {
  const { layer, index, empty } = choice;
  const grid = gridBox(layer, box);
  if (which !== "banned") drainColor(context, box);
  drawInBox(context, choice.pictures[which], grid, false);
  if (which === "weights" && choice.baseline) return; // the rest is about the network's own choice
  strokeCells(context, which === "banned" ? choice.banHatch : choice.hatch, choice, grid, "#0006", 1);
  if (empty) return; // what a query without foreground picked is not shown as a point
  const { x, y } = tokenAt(layer, index);
  context.beginPath();
  context.arc(box.left + Math.min(x, 1) * box.width, box.top + Math.min(y, 1) * box.height, 10, 0, 2 * Math.PI);
  stroke(context, "#000c", 5);
  stroke(context, "#fff", 2.5);
}

// What stands at the two ends of the scale of the scores, or of the weights.
export function scaleEnds({ low, high, max_weight: own, baseline }, which) {
  if (which === "scores") return [decimal(low), decimal(high)];
  return ["0", `${(100 * (baseline?.max_weight ?? own)).toPrecision(2)} %`];
}

// Over the photo on the canvas: the scores, or the weights of a softmax over all tokens. These are the attention of the
// masked baseline, or without one a softmax of the same scores. Returns the colours of its scale and its two ends.
export function drawChoice(context, which) {
  if (!state.choice) {
    drainColor(context, boxOf());
    return null;
  }
  drawMap(context, boxOf(), state.choice, which);
  return [COLORS, ...scaleEnds(state.choice, which)];
}

function wantChoice() {
  const { result, query, show } = state;
  clearTimeout(timer);
  update({ choice: null });
  if (!result || query === null || !(isPanelVisible || show === "similarity" || show === "weights")) return;
  timer = setTimeout(loadChoice, WAIT_MS);
}

// The chosen head is explained, or else the one whose pick has the best score.
async function loadChoice() {
  const { result, query, layer, head } = state;
  const choice = await fetchChoice(query, layer, head ?? bestHead(query, layer));
  const isStale = result !== state.result || query !== state.query || layer !== state.layer || head !== state.head;
  if (!isStale) update({ choice });
}

export function setUpChoices() {
  const watcher = new IntersectionObserver(([{ isIntersecting }]) => {
    isPanelVisible = isIntersecting;
    if (isIntersecting && !state.choice) wantChoice();
  });
  watcher.observe(find("#choice"));
  onChange(["result", "query", "layer", "head"], wantChoice);
  onChange(["show"], () => {
    if (!state.choice) wantChoice();
  });
}
