// The bar under the picture: which query, which layer, which head, and what is painted.

import { inkOnLayer, layerColor } from "../core/colors.js";
import { find, make, makeSwatch } from "../core/host.js";
import { colorOfQuery, finalPrediction, hasForeground, nextQuery, usesPrototypes } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { layerName, plural } from "../core/words.js";
import { densityOf } from "./density.js";
import { pointsOf } from "./points.js";

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
    stop.style = `--layer: ${layerColor(layer)}; --ink: ${inkOnLayer(layer)}`;
    stop.title = `Layer ${layer + 1}: one token per ${stride} × ${stride} px`;
    stop.querySelector("input").setAttribute("aria-label", `layer ${layer + 1}, stride ${stride}`);
    // Dragging along the stops scrubs.
    stop.addEventListener("pointerenter", ({ buttons }) => buttons === 1 && update({ layer, playing: null }));
    return stop;
  });
  find("#layer .stops").replaceChildren(...stops);
  const heads = Array.from({ length: model.num_heads }, (_, head) => radio("head", head, head + 1));
  find("#head .segmented").replaceChildren(radio("head", "all", "all"), ...heads);
  find("#walk").style.visibility = usesPrototypes() ? "" : "hidden"; // it keeps its place, so that nothing moves
}

function queryLine() {
  const { query } = state;
  if (query === null) return ["Click the photo to select a query."];
  const { category, score, noObject } = finalPrediction(query);
  const says = noObject > score ? `no object ${noObject.toFixed(2)}` : `${category} · score ${score.toFixed(2)}`;
  const { fate, reason } = state.reading.outcomes[query];
  const dropped = fate === "kept" || fate === "merged" || fate === "no object" ? "" : ` · draws nothing: ${reason}`;
  return [makeSwatch(colorOfQuery(query)), make("b", {}, `Query ${query}`), ` · ${says}${dropped}`];
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
      empty ? `; ${plural(empty, "query", "queries")} without foreground here left out` : ""
    }.`;
  }
  if (query === null) return "";
  if (!hasForeground(query, layer)) return `No foreground in this layer: ${whatThen(query, layer)}`;
  const points = pointsOf(query, layer);
  const took = usesPrototypes() ? "picked" : "looked most at"; // masked attention reads all tokens, these the most
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

// What a query without foreground does. That is a rule of its checkpoint.
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
  const { query, layer, head, show, points } = state;
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
}

// The points of the current layer as a list, for screen readers and scripts; places are fractions of the photo.
function listPoints() {
  const points = state.query === null ? [] : pointsOf(state.query, state.layer);
  const items = points.map(({ label, row, col, x, y }) =>
    make("li", { "data-x": x, "data-y": y }, `${label}, row ${row + 1}, column ${col + 1}`),
  );
  find("#picks").replaceChildren(...items);
}

export function setUpBar() {
  find("#previous-query").addEventListener("click", () => nextQuery(-1));
  find("#next-query").addEventListener("click", () => nextQuery(1));
  find("#points").addEventListener("click", () => update({ points: !state.points }));
  find("#layer").addEventListener("change", ({ target }) => update({ layer: Number(target.value), playing: null }));
  find("#head").addEventListener("change", ({ target }) =>
    update({ head: target.value === "all" ? null : Number(target.value) }),
  );
  find("#show").addEventListener("change", ({ target }) => update({ show: target.value }));
  onChange(["result"], buildBar);
  onChange(["result", "query", "layer", "head"], listPoints);
  onChange(["query", "show"], () => {
    if (state.query === null && OF_A_QUERY.includes(state.show)) update({ show: "segments", playing: null });
  });
  onChange(["result", "reading", "query", "layer", "head", "show", "points"], showBar);
}
