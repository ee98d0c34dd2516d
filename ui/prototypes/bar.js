// The bar under the picture: which query, which layer, which head, and what is painted; plays through layers or steps.

import { find, LAYER_COLORS, layerName, make, onChange, selectQuery, state, update } from "../viewer/state.js";
import {
  colorOfQuery,
  densityOf,
  hasForeground,
  lastStep,
  plural,
  pointsOf,
  predictionOf,
  usesPrototypes,
} from "./points.js";

const PLAY_MS = 1000;
const OF_A_QUERY = ["mask", "similarity", "weights"]; // what can be painted of a selected query only

function radio(name, value, ...content) {
  const input = make("input", { type: "radio", name, value });
  return make("label", {}, input, make("span", {}, ...content));
}

// One stop per layer and one option per head, as many as the model has.
function buildBar() {
  const { layers, model } = state.result;
  const stops = layers.map(({ stride }, layer) => {
    const stop = radio("layer", layer, make("b", {}, layer + 1), make("small", {}, `${stride} px`));
    stop.style.setProperty("--layer", LAYER_COLORS[layer]);
    stop.title = `Layer ${layer + 1}: one token per ${stride} × ${stride} px`;
    stop.querySelector("input").setAttribute("aria-label", `layer ${layer + 1}, stride ${stride}`);
    // Dragging along the stops scrubs.
    stop.addEventListener("pointerenter", ({ buttons }) => buttons === 1 && update({ layer, playing: null }));
    return stop;
  });
  find("#layer .stops").replaceChildren(...stops);
  const heads = Array.from({ length: model.num_heads }, (_, head) => radio("head", head, head + 1));
  find("#head .segmented").replaceChildren(radio("head", "all", "all"), ...heads);
  find("#walk").style.visibility = usesPrototypes() ? "" : "hidden"; // it keeps its place: nothing moves in a flip
}

function queryLine() {
  const { query } = state;
  if (query === null) return ["Click the photo to select a query."];
  const { category, score, noObject } = predictionOf(query, lastStep());
  const swatch = make("i", { className: "swatch" });
  swatch.style.background = colorOfQuery(query);
  const says = noObject > score ? `no object ${noObject.toFixed(2)}` : `${category} · score ${score.toFixed(2)}`;
  const { fate, reason } = state.reading.outcomes[query];
  const dropped = fate === "kept" || fate === "merged" || fate === "no object" ? "" : ` · draws nothing: ${reason}`;
  return [swatch, make("b", {}, `Query ${query}`), ` · ${says}${dropped}`];
}

// One sentence about the current layer.
function layerLine() {
  const { result, query, layer, head, show } = state;
  const { stride, rows, cols } = result.layers[layer];
  const grid = `Layer ${layer + 1} sees the photo as ${rows} × ${cols} = ${rows * cols} tokens, one per ${stride} × ${stride} px`;
  if (show === "density") {
    const { counts, queries, max } = densityOf(layer);
    const empty = result.model.num_queries - queries;
    const picks = counts.reduce((sum, count) => sum + count, 0);
    const cells = counts.filter((count) => count > 0).length;
    return `${grid}. The ${picks} ${usesPrototypes() ? "picks" : "largest weights"} of all queries fall on ${plural(cells, "token")}, at most ${max} on one${
      empty ? `; ${plural(empty, "query").replace("querys", "queries")} without foreground here left out` : ""
    }.`;
  }
  if (query === null) return "";
  if (!hasForeground(query, layer)) return `No foreground in this layer: ${whatThen(query, layer)}`;
  const points = pointsOf(query, layer);
  const took = usesPrototypes() ? "picked" : "looked most at"; // masked attention reads all tokens, this one most
  const beside = points.filter((point) => point.inPadding).length;
  const padding = beside ? ` ${plural(beside, "hollow point")}: in the padding beside the photo.` : "";
  if (head !== null) {
    const [{ row, col }] = points;
    const path = "The small points are its picks in the other layers, joined in their order.";
    return `${grid}. Head ${head + 1} of query ${query} ${took} row ${row + 1}, column ${col + 1}.${padding} ${path}`;
  }
  const most = Math.max(...points.map((point) => point.heads.length));
  const agree = most > 1 ? `; on one, ${most} heads agree` : ", each its own";
  return `${grid}. The ${result.model.num_heads} heads of query ${query} ${took} ${plural(points.length, "token")}${agree}.${padding}`;
}

// What a query without foreground does, by the rule of its checkpoint.
function whatThen(query, layer) {
  const { prototype_index: index, similarity } = state.result;
  const isFallback =
    usesPrototypes() && index[layer][query].every((at) => at === 0) && similarity[layer][query].every((s) => s === 0);
  const before = `before ${layerName(layer)}, the mask of query ${query} covered no token, so`;
  return isFallback
    ? `${before} as in the published code every head took the first one, top left, which means nothing.`
    : `${before} it was allowed to look everywhere. Such picks are not shown as points.`;
}

function showBar() {
  const { result, query, layer, head, show, points, playing } = state;
  if (!result) return;
  const none = query === null;
  find("#query").replaceChildren(...queryLine());
  find("#layer-note").textContent = layerLine();
  find(`#layer input[value="${layer}"]`).checked = true;
  find(`#head input[value="${head ?? "all"}"]`).checked = true;
  find(`#show input[value=${show}]`).checked = true;
  for (const value of OF_A_QUERY) find(`#show input[value=${value}]`).disabled = none;
  find("#layer").disabled = find("#head").disabled = find("#play-layers").disabled = none && show !== "density";
  find("#points").disabled = none || show === "density";
  find("#points").setAttribute("aria-pressed", points);
  for (const what of ["layers", "steps"]) {
    const button = find(`#play-${what}`);
    button.textContent = playing === what ? "Pause" : "Play";
    button.setAttribute("aria-pressed", playing === what);
  }
}

function nextQuery(by) {
  const count = state.result.model.num_queries;
  selectQuery(state.query === null ? 0 : (state.query + by + count) % count);
}

// Runs through the layers, or through the steps of the mask, once. From the start, if it is at the end.
export function togglePlaying(what) {
  if (state.playing === what) return update({ playing: null });
  const key = what === "layers" ? "layer" : "step";
  const from = state[key] === lastOf(key) ? 0 : state[key];
  update({ playing: what, [key]: from, ...(what === "steps" ? { show: "mask" } : {}) });
}

const lastOf = (key) => lastStep() - (key === "layer" ? 1 : 0);

function advance() {
  const key = state.playing === "layers" ? "layer" : "step";
  if (state[key] < lastOf(key)) update({ [key]: state[key] + 1 });
  else update({ playing: null });
}

export function setUpBar() {
  find("#previous-query").addEventListener("click", () => nextQuery(-1));
  find("#next-query").addEventListener("click", () => nextQuery(1));
  find("#points").addEventListener("click", () => update({ points: !state.points }));
  find("#play-layers").addEventListener("click", () => togglePlaying("layers"));
  find("#layer").addEventListener("change", ({ target }) => update({ layer: Number(target.value), playing: null }));
  find("#head").addEventListener("change", ({ target }) =>
    update({ head: target.value === "all" ? null : Number(target.value) }),
  );
  find("#show").addEventListener("change", ({ target }) => update({ show: target.value }));

  let timer = 0;
  onChange(["playing"], () => {
    clearInterval(timer);
    if (state.playing) timer = setInterval(advance, PLAY_MS);
  });
  onChange(["result"], buildBar);
  onChange(["query", "show"], () => {
    if (state.query === null && OF_A_QUERY.includes(state.show)) update({ show: "segments", playing: null });
  });
  onChange(["result", "reading", "query", "layer", "head", "show", "points", "playing"], showBar);
}
