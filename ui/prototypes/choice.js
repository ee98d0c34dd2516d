// The choice, explained: what one head of one query compared in one layer, and which token won.

import { colorTable } from "../core/colors.js";
import { boxOf, gridBox, tokenAt } from "../core/geometry.js";
import { ask, find, make } from "../core/host.js";
import { decodeBytes, drainColor, drawInBox, paintCells, paintPhoto, stroke, strokeCells } from "../core/pictures.js";
import { bestHead, hasForeground, scoreName } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { decimal, headsText, layerName } from "../core/words.js";
import { openPoint } from "./patch.js";
import { pointsOf } from "./points.js";

const MAP_PX = 480;
const MAP_ALPHA = 215; // the photo shines through a little
const WAIT_MS = 60; // nothing is asked for while the visitor changes layers or heads faster than this
// Even steps of lightness from dark to light, also for colour-blind eyes (viridis).
const COLORS = colorTable("#440154 #482878 #3e4989 #31688e #26828e #1f9e89 #35b779 #6ece58 #b5de2b #fde725");
const BANNED = [120, 120, 120, 190];

const choices = new Map(); // promises, by result, query, layer and head
let isPanelVisible = false;
let timer = 0;

// What the server knows of a choice, with its maps decoded and painted; null when the server does not answer.
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
      // The baseline has masks of its own, which banned other tokens.
      weights: baseline
        ? map(decodeBytes(baseline.weights), () => false, baseline)
        : map(decodeBytes(choice.weights), isBanned),
    },
  };
}

// A diagonal stroke in each of the cells that are hatched. One cell is 1 x 1.
function hatchOf(rows, cols, isHatched) {
  const path = new Path2D();
  for (let i = 0; i < rows * cols; i++) {
    if (!isHatched(i)) continue;
    path.moveTo(i % cols, Math.floor(i / cols) + 1);
    path.lineTo((i % cols) + 1, Math.floor(i / cols));
  }
  return path;
}

// Draws one of the pictures of a choice over a photo that fills the box, with a ring around the token that won.
function drawMap(context, box, choice, which) {
  const { layer, index, empty } = choice;
  const grid = gridBox(layer, box);
  if (which !== "banned") drainColor(context, box);
  drawInBox(context, choice.pictures[which], grid, false);
  if (which === "weights" && choice.baseline) return; // the rest is about the network's own choice
  strokeCells(context, which === "banned" ? choice.banHatch : choice.hatch, choice, grid, "#0006", 1);
  if (empty) return; // without foreground, the pick means nothing
  const { x, y } = tokenAt(layer, index);
  context.beginPath();
  context.arc(box.left + Math.min(x, 1) * box.width, box.top + Math.min(y, 1) * box.height, 10, 0, 2 * Math.PI);
  stroke(context, "#000c", 5);
  stroke(context, "#fff", 2.5);
}

// What stands at the two ends of the scale of the scores, or of the weights.
function scaleEnds({ low, high, max_weight: own, baseline }, which) {
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

// --------------------------------------------------------------------------------------------------------------- panel

// The note is a sentence, or what stands at the two ends of the scale.
function makeFigure(which, title, note) {
  const canvas = make("canvas", { className: which, role: "img", "aria-label": `${title}: ${note.join(" to ")}` });
  const { context, box } = paintPhoto(canvas, MAP_PX);
  drawMap(context, box, state.choice, which);
  const [low, high] = note;
  const scale = high ? make("span", { className: "scale" }, low, make("i"), high) : make("span", {}, low);
  return make("figure", {}, canvas, make("figcaption", {}, make("b", {}, title), scale));
}

function weightsTitle({ kind, baseline }) {
  if (baseline)
    return `Attention of the masked baseline (its query ${baseline.query}, mask IoU ${baseline.iou.toFixed(2)})`;
  return kind === "logit" ? "Attention: softmax of these logits" : "Softmax of the same similarities";
}

function showChoice() {
  const { choice, query } = state;
  find("#choice").hidden = query === null;
  find("#choice").classList.toggle("waiting", !choice);
  if (!choice) return;
  const { layer, head, kind, low, high, allowed, tokens, baseline } = choice;
  const isLogit = kind === "logit";
  find("#choice .choice-maps").replaceChildren(
    makeFigure("scores", isLogit ? "Logit of each token" : "Similarity of each token", scaleEnds(choice, "scores")),
    makeFigure("banned", "What the previous mask banned", [bannedText(choice)]),
    makeFigure("weights", weightsTitle(choice), scaleEnds(choice, "weights")),
  );

  const sees = hasForeground(query, layer);
  const own = state.head === null ? " (of all heads the best score)" : "";
  const story = sees ? storyOf(choice) : "no foreground in this layer, so no token is marked.";
  find("#choice .choice-lead").textContent = `Query ${query}, ${layerName(layer)}, head ${head + 1}${own}: ${story}`;
  const facts = [
    ["tokens allowed", `${allowed} of ${tokens}`],
    [isLogit ? "logits" : "similarities", `${decimal(low)} to ${decimal(high)}`],
  ];
  if (!choice.empty) facts.push(["half of the softmax weight is on", `${choice.tokens_for_half} of ${allowed} tokens`]);
  if (baseline) facts.push(["half of the masked baseline's attention is on", `${baseline.tokens_for_half} tokens`]);
  if (sees) {
    const { row, col } = tokenAt(layer, choice.index);
    facts.unshift(
      [isLogit ? "largest weight on" : "picked", `row ${row + 1}, column ${col + 1}`],
      [scoreName(), decimal(choice.similarity)],
      [isLogit ? "the same token is first for" : "the same token was picked by", agreeText(choice)],
    );
  }
  const list = facts.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value)));
  find("#choice .facts").replaceChildren(...list, ...(sees ? [patchButton(choice)] : []));
}

function storyOf({ kind, bestIsBanned }) {
  if (kind === "logit")
    return "masked attention mixes all allowed tokens by their softmax weights; the ring marks the largest weight.";
  const other = bestIsBanned ? "; a more similar one was banned" : "";
  return `of the tokens that the previous mask allowed, it took the most similar one (ring)${other}.`;
}

function bannedText({ empty, tokens, allowed }) {
  if (empty) return "every token: no foreground";
  return allowed === tokens ? "nothing" : `${tokens - allowed} of ${tokens} tokens (grey)`;
}

function agreeText({ layer, query, head, index }) {
  const picks = state.result.prototype_index[layer][query];
  const others = [...picks.keys()].filter((other) => picks[other] === index && other !== head);
  return others.length ? headsText(others) : "no other head";
}

function patchButton({ layer, query, index }) {
  const show = () => {
    openPoint(pointsOf(query, layer).find((point) => point.index === index));
    find("#patch .close").focus();
  };
  return make("button", { type: "button", onclick: show }, "Show the patch");
}

// -------------------------------------------------------------------------------------------------------------- asking

function wantChoice() {
  const { query, show } = state;
  clearTimeout(timer);
  update({ choice: null });
  if (query === null || !(isPanelVisible || show === "similarity" || show === "weights")) return;
  timer = setTimeout(loadChoice, WAIT_MS);
}

// Explains the chosen head; without one, the head with the best score.
async function loadChoice() {
  const { result, query, layer, head } = state;
  const choice = await fetchChoice(query, layer, head ?? bestHead(query, layer));
  const isStale = result !== state.result || query !== state.query || layer !== state.layer || head !== state.head;
  if (!isStale) update({ choice });
}

export function setUpChoice() {
  const watcher = new IntersectionObserver(([{ isIntersecting }]) => {
    isPanelVisible = isIntersecting;
    if (isIntersecting && !state.choice) wantChoice();
  });
  watcher.observe(find("#choice"));
  onChange(["result", "query", "layer", "head"], wantChoice);
  onChange(["show"], () => {
    if (!state.choice) wantChoice();
  });
  onChange(["query", "choice"], showChoice);
}
