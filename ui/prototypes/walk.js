// A guided walk: how a prototype is chosen, with the visitor's own query and numbers.

import { tokenAt } from "../core/geometry.js";
import { find } from "../core/host.js";
import {
  bestHead,
  byArea,
  finalPrediction,
  hasForeground,
  lastStep,
  predictionOf,
  selectQuery,
} from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { decimal, layerName, plural } from "../core/words.js";
import { fetchChoice } from "./choice.js";
import { closePatch, openPoint } from "./patch.js";
import { pointsOf } from "./points.js";

let walk = null; // what it is about: query, layer, head, choice and where it has come to

const said = ({ category, score, noObject }) =>
  noObject > score ? `no object (${noObject.toFixed(2)})` : `${category} (${score.toFixed(2)})`;

// Each step sets what is seen and says what it shows.
const WALK = [
  {
    title: () => `${state.result.model.num_queries} queries look at the photo`,
    text: ({ query }) =>
      `A query is a list of numbers that tries to find one region and to name it; this network has ` +
      `${state.result.model.num_queries} of them. Query ${query} ended as ${said(finalPrediction(query))}. ` +
      `How did it get there? Look at ${layerName(walk.layer)} of ${lastStep()}.`,
    see: ({ layer }) => update({ show: "segments", layer, head: null }),
  },
  {
    title: ({ layer }) => `Its mask before ${layerName(layer)}`,
    text: ({ query, layer, choice: { allowed, tokens } }) =>
      `Here the photo is a grid of ${tokens} tokens, one per ${state.result.layers[layer].stride} × ` +
      `${state.result.layers[layer].stride} px. The query may only look where its own mask lay before this layer: ` +
      `at ${allowed} of ${tokens} tokens. That mask overlapped with its final one by ` +
      `${predictionOf(query, layer).iou.toFixed(2)} (IoU).`,
    see: ({ layer }) => update({ show: "mask", step: layer, layer, head: null }),
  },
  {
    title: ({ head }) => `Head ${head + 1} compares`,
    text: ({ head, choice: { channels, low, high } }) =>
      `The query has ${channels} numbers, shared among ${state.result.model.num_heads} heads. Head ${head + 1} compares ` +
      `its ${channels / state.result.model.num_heads} with the same numbers of every token: the similarity is between ` +
      `${decimal(low)} (dark) and ${decimal(high)} (bright). It is one head's part of a cosine, so it is small; grey ` +
      `tokens are banned.`,
    see: ({ layer, head }) => update({ show: "similarity", layer, head }),
  },
  {
    title: () => "The most similar token wins",
    text: ({ head, layer, choice: { index, similarity } }) => {
      const { row, col } = tokenAt(layer, index);
      return (
        `Of the allowed tokens, the one in row ${row + 1}, column ${col + 1} fits best: ${decimal(similarity)}. This is ` +
        `the prototype of head ${head + 1}, and the only token that it takes from the photo in this layer.`
      );
    },
    see: ({ query, layer, head }) => {
      update({ show: "similarity", layer, head, points: true });
      openPoint(pointsOf(query, layer)[0]);
    },
  },
  {
    title: () => "What a softmax would read instead",
    text: ({ choice: { tokens, allowed, channels, tokens_for_half: half, baseline } }) =>
      `Standard cross-attention mixes all allowed tokens. With a softmax of these very similarities, half of the weight ` +
      `would lie on ${plural(half, "token")} of ${allowed}; ` +
      `${baseline ? `the masked baseline, which was trained that way, has half of its attention on ${baseline.tokens_for_half}` : "a network trained that way learns scores of its own"}. ` +
      `Mixing costs ${tokens} × ${channels} = ${(tokens * channels).toLocaleString("en")} multiply-adds for each query; ` +
      `copying one token per head costs none.`,
    see: ({ layer, head }) => update({ show: "weights", layer, head, points: false }),
  },
  {
    title: ({ layer }) => `What the query became in ${layerName(layer)}`,
    text: ({ query, layer }) => {
      const [before, after] = [predictionOf(query, layer), predictionOf(query, layer + 1)];
      return (
        `The prototypes of its ${state.result.model.num_heads} heads change the query, which then talks with the other ` +
        `queries. Its class was ${said(before)} and is ${said(after)}; the IoU of its mask with the final one was ` +
        `${before.iou.toFixed(2)} and is ${after.iou.toFixed(2)}.`
      );
    },
    see: ({ layer }) => update({ show: "mask", step: layer + 1, layer, head: null }),
  },
  {
    title: () => `After all ${lastStep()} layers`,
    text: ({ query }) => {
      const { layers, prototype_index: picks } = state.result;
      const read = layers.reduce((sum, _, layer) => sum + new Set(picks[layer][query]).size, 0);
      const all = layers.reduce((sum, { rows, cols }) => sum + rows * cols, 0);
      const { category, score, area } = finalPrediction(query);
      return (
        `Query ${query} was compared with ${all} tokens, and took ${read} of them. Its best class is ${category} with ` +
        `score ${score.toFixed(2)}, and its mask covers ${(100 * area).toFixed(1)} % of the photo. Choose a layer or a head ` +
        `below the photo to see its other choices.`
      );
    },
    see: () => update({ show: "segments", layer: lastStep() - 1, step: lastStep(), head: null }),
  },
];

// The layer that brought the query's mask closest to its final one; -1 if the query never had foreground.
function mostTellingLayer(query) {
  const gain = (layer) => predictionOf(query, layer + 1).iou - predictionOf(query, layer).iou;
  return [...state.result.layers.keys()]
    .filter((layer) => hasForeground(query, layer))
    .reduce((best, layer) => (best < 0 || gain(layer) > gain(best) ? layer : best), -1);
}

// The first that ever had foreground, of the selected query, those of the largest segments, and of the largest masks.
function queryToWalk() {
  const areas = state.result.steps.area_fraction[lastStep()];
  const byMask = [...areas.keys()].toSorted((a, b) => areas[b] - areas[a]);
  const candidates = [state.query, ...byArea(state.reading.segments).flatMap(({ queries }) => queries), ...byMask];
  return candidates.find((query) => query !== null && mostTellingLayer(query) >= 0) ?? null;
}

async function startWalk() {
  const { result } = state;
  const query = queryToWalk();
  if (query === null) return;
  const layer = mostTellingLayer(query);
  selectQuery(query);
  const head = bestHead(query, layer);
  const choice = await fetchChoice(query, layer, head);
  if (!choice || result !== state.result || query !== state.query) return;
  update({ playing: null });
  walk = { query, layer, head, choice, at: 0, points: state.points };
  find("#walk-card").hidden = false;
  find(".studio-view").scrollIntoView({ block: "start" });
  goTo(0);
  find("#walk-title").focus({ preventScroll: true });
}

function goTo(at) {
  if (at < 0) return;
  if (at === WALK.length) return endWalk();
  walk.at = at;
  closePatch(); // unless this step opens one
  update({ points: walk.points });
  WALK[at].see(walk);
  find("#walk-card .walk-count").textContent = `${at + 1} of ${WALK.length}`;
  find("#walk-title").textContent = WALK[at].title(walk);
  find("#walk-card .walk-text").textContent = WALK[at].text(walk);
  find("#walk-card .walk-back").disabled = at === 0;
  find("#walk-card .walk-next").textContent = at === WALK.length - 1 ? "Done" : "Next";
  find(".studio").style.setProperty("--walk-height", `${find("#walk-card").offsetHeight}px`);
}

function endWalk() {
  if (!walk) return;
  closePatch();
  update({ points: walk.points });
  walk = null;
  find("#walk-card").hidden = true;
  find("#walk").focus({ preventScroll: true });
}

export function setUpWalk() {
  find("#walk").addEventListener("click", startWalk);
  find("#walk-card .close").addEventListener("click", endWalk);
  find("#walk-card .walk-back").addEventListener("click", () => goTo(walk.at - 1));
  find("#walk-card .walk-next").addEventListener("click", () => goTo(walk.at + 1));
  find("#walk-card").addEventListener("keydown", (event) => {
    const actions = {
      Escape: endWalk,
      ArrowRight: () => goTo(walk.at + 1),
      ArrowLeft: () => goTo(walk.at - 1),
    };
    if (!(event.key in actions)) return;
    event.stopPropagation();
    event.preventDefault();
    actions[event.key]();
  });
  // It is about one query of one photo.
  onChange(["result", "query"], endWalk);
}
