// The choice, explained: what one head of one query compared in one layer, and which token won.

import { bytes, sizeWithin } from "../viewer/geometry.js";
import { ask, find, layerName, make, onChange, state, update } from "../viewer/state.js";
import {
  bestHead,
  colorTable,
  decimal,
  drainColor,
  gridSpan,
  hasForeground,
  headsText,
  openPoint,
  paintCells,
  photoBox,
  pictures,
  pointsOf,
  scoreName,
  stroke,
  tokenAt,
} from "./points.js";

const MAP_PX = 480;
const MAP_ALPHA = 215; // the photo shines through a little
const WAIT_MS = 60; // while somebody scrubs faster than this, nothing is asked for
// Even steps of lightness from dark to light, also for colour-blind eyes (viridis).
const COLORS = colorTable([
  "#440154",
  "#482878",
  "#3e4989",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
]);
const BANNED = [120, 120, 120, 190];

const choices = new Map(); // promises, by query, layer and head of the current result
let shownChoice = null; // the one for what is selected now, or null while it is on its way
let isPanelVisible = false;

// The head that is explained: the chosen one, or else the one whose pick has the best score.
const explainedHead = (query, layer) => state.head ?? bestHead(query, layer);

// What the server knows of a choice, with its maps decoded and painted. Null where it does not answer.
export function fetchChoice(query, layer, head) {
  const key = `${query} ${layer} ${head}`;
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
  const { rows, cols, twin, empty } = choice;
  const banned = bytes(choice.banned);
  const isBanned = (i) => banned[i] && !empty;
  const map = (values, isGrey, grid = choice) =>
    paintCells(make("canvas"), grid.rows, grid.cols, (i) => (isGrey(i) ? BANNED : [...COLORS[values[i]], MAP_ALPHA]));
  return {
    ...choice,
    bestIsBanned: !empty && bytes(choice.scores).every((score, i) => score < 255 || banned[i]),
    hatch: hatchOf(rows, cols, isBanned),
    banHatch: hatchOf(rows, cols, (i) => banned[i]),
    pictures: {
      scores: map(bytes(choice.scores), isBanned),
      banned: paintCells(make("canvas"), rows, cols, (i) => (banned[i] ? BANNED : [0, 0, 0, 0])),
      // The twin's masks are its own, and so is what they banned.
      weights: twin ? map(bytes(twin.weights), () => false, twin) : map(bytes(choice.weights), isBanned),
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

function drawMap(context, box, choice, which) {
  const { layer, rows, cols, index, empty } = choice;
  const [spanX, spanY] = gridSpan(layer);
  const [width, height] = [spanX * box.width, spanY * box.height];
  if (which !== "banned") drainColor(context, box);
  context.imageSmoothingEnabled = false;
  context.drawImage(choice.pictures[which], box.left, box.top, width, height);
  if (which === "weights" && choice.twin) return; // the rest is about the network's own choice
  const hatch = new Path2D();
  const toBox = new DOMMatrix([width / cols, 0, 0, height / rows, box.left, box.top]);
  hatch.addPath(which === "banned" ? choice.banHatch : choice.hatch, toBox);
  context.strokeStyle = "#0006";
  context.lineWidth = 1;
  context.stroke(hatch);
  if (empty) return; // what a query without foreground picked is not shown as a point
  const { x, y } = tokenAt(layer, index);
  context.beginPath();
  context.arc(box.left + Math.min(x, 1) * box.width, box.top + Math.min(y, 1) * box.height, 10, 0, 2 * Math.PI);
  stroke(context, "#000c", 5);
  stroke(context, "#fff", 2.5);
}

// Over the whole photo: the scores, or the weights by which a softmax would mix all tokens in place of the one (the twin's
// attention, or without a twin that of the same scores). Returns what belongs on its scale.
export function drawChoice(context, which) {
  if (!shownChoice) {
    drainColor(context, photoBox());
    return null;
  }
  const { low, high } = shownChoice;
  drawMap(context, photoBox(), shownChoice, which);
  return [COLORS, ...(which === "scores" ? [decimal(low), decimal(high)] : weightsScale(shownChoice))];
}

const weightsScale = ({ max_weight: own, twin }) => ["0", `${(100 * (twin?.max_weight ?? own)).toPrecision(2)} %`];

// --------------------------------------------------------------------------------------------------------------- panel

function paintFigure(which, title, note) {
  const canvas = find(`#choice canvas.${which}`);
  const { photo } = pictures;
  [canvas.width, canvas.height] = sizeWithin(MAP_PX, photo);
  const context = canvas.getContext("2d");
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  drawMap(context, { left: 0, top: 0, width: canvas.width, height: canvas.height }, shownChoice, which);
  canvas.setAttribute("aria-label", `${title}: ${note.join(" to ")}`);
  const caption = canvas.nextElementSibling;
  caption.querySelector("b").textContent = title;
  const scale = caption.querySelector("span");
  if (scale.className === "scale") scale.replaceChildren(note[0], make("i"), note[1]);
  else scale.textContent = note[0];
}

function weightsTitle({ kind, twin }) {
  if (twin) return `Attention of the masked-attention twin (its query ${twin.query}, mask IoU ${twin.iou.toFixed(2)})`;
  return kind === "logit" ? "Attention: softmax of these logits" : "Softmax of the same similarities";
}

function showChoice() {
  const choice = shownChoice;
  find("#choice").classList.toggle("waiting", !choice);
  if (!choice) return;
  const { layer, query, low, high, allowed, tokens } = choice;
  const name = choice.kind === "logit" ? "Logit of each token" : "Similarity of each token";
  paintFigure("scores", name, [decimal(low), decimal(high)]);
  paintFigure("banned", "What the previous mask banned", [bannedText(choice)]);
  paintFigure("weights", weightsTitle(choice), weightsScale(choice));

  const own = state.head === null ? " (of all heads the best score)" : "";
  find("#choice .choice-lead").textContent = `Query ${query}, ${layerName(layer)}, head ${choice.head + 1}${own}: ${
    hasForeground(query, layer) ? storyOf(choice) : "no foreground in this layer, so no token is marked."
  }`;
  const facts = [
    ["tokens allowed", `${allowed} of ${tokens}`],
    [choice.kind === "logit" ? "logits" : "similarities", `${decimal(low)} to ${decimal(high)}`],
  ];
  if (!choice.empty) facts.push(["half of the softmax weight is on", `${choice.tokens_for_half} of ${allowed} tokens`]);
  if (choice.twin) facts.push(["half of the twin's attention is on", `${choice.twin.tokens_for_half} tokens`]);
  if (hasForeground(query, layer)) {
    const { row, col } = tokenAt(layer, choice.index);
    facts.unshift(
      [choice.kind === "logit" ? "largest weight on" : "picked", `row ${row + 1}, column ${col + 1}`],
      [scoreName(), decimal(choice.similarity)],
      [choice.kind === "logit" ? "the same token is first for" : "the same token was picked by", agreeText(choice)],
    );
  }
  const list = facts.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value)));
  find("#choice .facts").replaceChildren(...list);
  if (hasForeground(query, layer)) find("#choice .facts").append(patchButton(choice));
}

const storyOf = ({ kind, bestIsBanned }) =>
  kind === "logit"
    ? "masked attention mixes all allowed tokens by their softmax weights; the ring marks the largest weight."
    : `of the tokens that the previous mask allowed, it took the most similar one (ring)${
        bestIsBanned ? "; a more similar one was banned" : ""
      }.`;

function bannedText({ empty, tokens, allowed }) {
  if (empty) return "every token: no foreground";
  return allowed === tokens ? "nothing" : `${tokens - allowed} of ${tokens} tokens (grey)`;
}

function agreeText({ layer, query, head, index }) {
  const others = state.result.prototype_index[layer][query].flatMap((at, other) =>
    at === index && other !== head ? [other] : [],
  );
  return others.length ? headsText(others) : "no other head";
}

function patchButton({ layer, query, index }) {
  const show = () => {
    openPoint(pointsOf(query, layer).find((point) => point.index === index));
    find("#patch .close").focus();
  };
  return make("button", { type: "button", onclick: show }, "Show the patch");
}

// ------------------------------------------------------------------------------------------------------------ fetching

let choiceTimer = 0;

function wantChoice() {
  const { result, query, show } = state;
  find("#choice").hidden = query === null;
  clearTimeout(choiceTimer);
  shownChoice = null;
  if (!result || query === null || !(isPanelVisible || show === "similarity" || show === "weights")) return;
  find("#choice").classList.add("waiting");
  choiceTimer = setTimeout(loadChoice, WAIT_MS);
}

async function loadChoice() {
  const { result, query, layer, head } = state;
  const choice = await fetchChoice(query, layer, explainedHead(query, layer));
  const isStale = result !== state.result || query !== state.query || layer !== state.layer || head !== state.head;
  if (isStale || !choice) return;
  shownChoice = choice;
  showChoice();
  update({ painted: Symbol("choice") });
}

export function setUpChoice() {
  const watcher = new IntersectionObserver(([{ isIntersecting }]) => {
    isPanelVisible = isIntersecting;
    if (isIntersecting && !shownChoice) wantChoice();
  });
  watcher.observe(find("#choice"));
  onChange(["result"], () => choices.clear());
  onChange(["result", "query", "layer", "head"], wantChoice);
  onChange(["show"], () => {
    if (!shownChoice) wantChoice();
  });
}
