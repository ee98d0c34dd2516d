// The part of the photo that one prototype stands for, on a card beside its point.

import { layerColor } from "../core/colors.js";
import { gridBox } from "../core/geometry.js";
import { find, make, makeSwatch } from "../core/host.js";
import { stroke } from "../core/pictures.js";
import { scoreName } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { decimal, plural } from "../core/words.js";
import { placeOf, radiusOf } from "./points.js";

const PATCH_PX = 144;

export function openPoint(point) {
  update({ layer: point.layer });
  update({ opened: point }); // after that, because another layer closes the card
}

export const closePatch = () => update({ opened: null });

function showPatch() {
  const point = state.opened;
  find("#patch").hidden = point === null;
  if (!point) return;
  const { layers, model } = state.result;
  const { stride, rows, cols } = layers[point.layer];
  const scores = point.heads.map((head, i) =>
    make("li", {}, `head ${head + 1}`, make("b", {}, decimal(point.scores[i]))),
  );
  find("#patch .patch-text").replaceChildren(
    make("h3", {}, makeSwatch(layerColor(point.layer)), `Layer ${point.layer + 1}`),
    make("p", {}, `row ${point.row + 1} of ${rows}, column ${point.col + 1} of ${cols}`),
    make("p", {}, `${stride} × ${stride} px of the network's input`),
    ...(point.inPadding ? [make("p", { className: "padding" }, "It lies in the padding beside the photo.")] : []),
    make("p", {}, `${scoreName()}, of ${plural(point.heads.length, "head")} of ${model.num_heads}:`),
    make("ul", {}, ...scores),
  );
  paintPatch(point);
  placePatch();
}

// The cell, and as much again on each side.
function paintPatch({ layer, x, y }) {
  const canvas = find("#patch canvas");
  const density = window.devicePixelRatio || 1;
  canvas.width = canvas.height = PATCH_PX * density;
  const context = canvas.getContext("2d");
  const { photo } = state.result.pictures;
  const { rows, cols } = state.result.layers[layer];
  const grid = gridBox(layer, { width: 1, height: 1 }); // in photos
  const third = canvas.width / 3;
  const [width, height] = [(third * cols) / grid.width, (third * rows) / grid.height]; // of the photo at this scale
  context.drawImage(photo, 1.5 * third - x * width, 1.5 * third - y * height, width, height);
  context.fillStyle = "#0005";
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.width);
  context.rect(third, third, third, third);
  context.fill("evenodd");
  context.beginPath();
  context.rect(third, third, third, third);
  stroke(context, "#000a", 4 * density);
  stroke(context, layerColor(layer), 2 * density);
}

// The card stays beside its point while the photo is moved. On a narrow page the style sheet has its own place for it.
function placePatch() {
  if (!state.opened) return;
  const card = find("#patch");
  const view = find(".studio-view");
  const [left, top] = placeOf(state.opened);
  const gap = radiusOf(state.opened) + 12;
  const right = left + gap + card.offsetWidth <= view.clientWidth;
  card.style.setProperty("--left", `${right ? left + gap : Math.max(0, left - gap - card.offsetWidth)}px`);
  card.style.setProperty("--top", `${Math.max(0, Math.min(top - 40, view.clientHeight - card.offsetHeight))}px`);
}

export function setUpPatch() {
  find(".studio-view").append(find("#patch"));
  find("#patch .close").addEventListener("click", closePatch);
  find("#patch").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    closePatch();
    find("#canvas").focus();
  });
  onChange(["result", "query", "layer", "head", "points"], closePatch);
  onChange(["opened"], showPatch);
  onChange(["camera"], placePatch);
}
