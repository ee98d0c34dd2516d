// What the shown result and its reading say of segments, queries, layers and heads; and how they are selected.

import { state, update } from "./state.js";

// The segment that a query drew in a reading, the current one by default, or null.
export function segmentOfQuery(query, reading = state.reading) {
  return reading?.segments.find((segment) => segment.queries.includes(query)) ?? null;
}

export const segmentById = (id) => state.reading?.segments.find((segment) => segment.id === id) ?? null;

// The segment of a reading at a place of the photo, or null.
export function segmentAt({ idMap, segments }, x, y) {
  if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) return null;
  const { width, height } = state.result;
  const id = idMap[Math.floor(y * height) * width + Math.floor(x * width)];
  return segments.find((segment) => segment.id === id) ?? null;
}

export const byArea = (segments) => segments.toSorted((a, b) => b.area_fraction - a.area_fraction);

export const isPainted = (id) => !state.hidden.has(id) && (state.isolated?.has(id) ?? true);

export const allQueries = () => Array.from({ length: state.result.model.num_queries }, (_, query) => query);

// Selects a query and the segment that it drew.
export function selectQuery(query) {
  update({ query, segment: query === null ? null : (segmentOfQuery(query)?.id ?? null) });
}

// Selects a segment and the query that drew most of it.
export function selectSegment(id) {
  update({ segment: id, query: segmentById(id)?.queries[0] ?? null });
}

// The item `by` places after the current one in a list; after the last comes the first.
export function stepThrough(list, current, by) {
  if (list.length === 0) return null;
  const at = list.indexOf(current);
  return at < 0 ? list[by > 0 ? 0 : list.length - 1] : list[(at + by + list.length) % list.length];
}

export const nextQuery = (by) => selectQuery(stepThrough(allQueries(), state.query, by));

// What a query predicted at a step: its best class and how sure it was, and its mask.
export function predictionOf(query, step) {
  const { steps, model } = state.result;
  const { name, color } = model.categories[steps.category_id[step][query]];
  return {
    category: name,
    color,
    score: steps.score[step][query],
    noObject: steps.no_object_score[step][query],
    area: steps.area_fraction[step][query],
    iou: steps.final_iou[step][query],
  };
}

export const lastStep = () => state.result.layers.length;
export const finalPrediction = (query) => predictionOf(query, lastStep());
export const colorOfQuery = (query) => segmentOfQuery(query)?.color ?? finalPrediction(query).color;
export const hasForeground = (query, layer) => state.result.allowed_fraction[layer][query] > 0;
export const usesPrototypes = () => state.result.model.attention === "prototype";
// The score that the trace keeps of each head. Masked attention picks no token, so there it is the largest weight.
export const scoreName = () => (usesPrototypes() ? "similarity" : "attention weight");

// The head with the best score of a query in a layer.
export function bestHead(query, layer) {
  const scores = state.result.similarity[layer][query];
  return scores.indexOf(Math.max(...scores));
}
