// The segments of the current reading, the largest class first: name, share, score, query; isolate and hide.

import { find, findAll, make, makeSwatch } from "../core/host.js";
import { byArea, selectSegment } from "../core/result.js";
import { onChange, state, update } from "../core/state.js";
import { percent, plural, queriesText } from "../core/words.js";

// The segments of each class, and their area together.
function groups() {
  const byClass = Map.groupBy(byArea(state.reading.segments), ({ category }) => category);
  const areaOf = (segments) => segments.reduce((sum, segment) => sum + segment.area_fraction, 0);
  const withArea = [...byClass.values()].map((segments) => ({ segments, area: areaOf(segments) }));
  return withArea.toSorted((a, b) => b.area - a.area);
}

const isOnly = (ids) => state.isolated?.size === ids.length && ids.every((id) => state.isolated.has(id));

function isolate(ids) {
  const wasOnly = isOnly(ids);
  if (ids.length === 1) selectSegment(wasOnly ? null : ids[0]);
  update({ isolated: wasOnly ? null : new Set(ids), hidden: new Set() });
}

export function toggleIsolated() {
  if (state.isolated) update({ isolated: null });
  else if (state.segment !== null) isolate([state.segment]);
}

export function toggleHidden(ids) {
  const others = [...state.hidden].filter((id) => !ids.includes(id));
  const areAllHidden = ids.every((id) => state.hidden.has(id));
  update({ hidden: new Set(areAllHidden ? others : [...others, ...ids]) });
}

// One span per cell, with the cell's name as its class.
const spans = (cells) => Object.entries(cells).map(([className, text]) => make("span", { className }, text));

function row(segments, cells, color, className) {
  const ids = segments.map(({ id }) => id);
  const main = make(
    "button",
    { type: "button", className: "main", title: "Show only this", onclick: () => isolate(ids) },
    makeSwatch(color),
    ...spans(cells),
  );
  if (ids.length === 1) {
    main.addEventListener("pointerenter", () => update({ hovered: ids[0] }));
    main.addEventListener("pointerleave", () => update({ hovered: null }));
  }
  const hide = make("button", {
    type: "button",
    className: "eye",
    title: "Hide or show",
    "aria-label": `Hide ${cells.name}`,
    onclick: () => toggleHidden(ids),
  });
  return make("li", { className, ids }, main, hide);
}

function render() {
  const { task, segments, unassigned_fraction: unassigned } = state.reading;
  const list = make("ul", { className: "segments" });
  for (const { area, segments: members } of groups()) {
    const several = members.length > 1;
    const { category, color } = members[0];
    if (several) {
      // Instances may overlap, so their areas have no meaningful sum.
      const sum = task === "instance" ? "" : percent(area);
      const cells = { name: category, area: sum, score: "", query: `${members.length} parts` };
      list.append(row(members, cells, color, "class"));
    }
    for (const [i, segment] of members.entries()) {
      const { area_fraction: share, score, color } = segment;
      const name = several ? `${category} ${i + 1}` : category;
      const cells = { name, area: percent(share), score: score.toFixed(2), query: queriesText(segment) };
      list.append(row([segment], cells, color, several ? "member" : ""));
    }
  }
  if (unassigned > 0) {
    const swatch = make("i", { className: "swatch none" });
    const rest = task === "instance" ? "not part of a thing" : "not recognised";
    list.append(make("li", { className: "rest" }, swatch, ...spans({ name: rest, area: percent(unassigned) })));
  }
  const count = plural(segments.length, "segment");
  const all = make("button", { type: "button", className: "all", onclick: showAll }, "Show all");
  const head = make("div", { className: "columns", "aria-hidden": "true" });
  for (const title of ["class", "area", "score", "drawn by"]) head.append(make("span", {}, title));
  find("#legend").replaceChildren(make("header", {}, make("h3", {}, count), all), head, list);
  if (segments.length === 0) find("#legend").append(nothingFound());
  mark();
}

// Says what came closest, and offers the threshold that lets it in.
function nothingFound() {
  const say = (sentence, ...rest) => make("p", { className: "nothing" }, sentence, ...rest);
  const best = (wanted) =>
    state.reading.outcomes.filter(({ fate }) => fate === wanted).toSorted((a, b) => b.score - a.score);
  const lower = (key, value) =>
    make("button", { type: "button", onclick: () => update({ [key]: value }) }, `Ask for ${value.toFixed(2)} only`);
  const named = ({ category, score }) => `${category} ${score.toFixed(2)}`;
  const names = (outcomes) => outcomes.slice(0, 2).map(named).join(", ");
  const covered = best("small overlap");
  if (covered.length > 0) {
    const { overlap_threshold: usual } = state.result.model;
    const way = state.overlapThreshold > usual ? [lower("overlapThreshold", usual)] : [];
    const sentence = `No query won enough of its mask: overlap above ${state.overlapThreshold.toFixed(2)} is asked for. `;
    return say(`${sentence}Closest: ${names(covered)}. `, ...way);
  }
  const closest = best("low score");
  const stuff = best("not a thing");
  if (closest.length === 0 && stuff.length > 0) {
    return say(`Instances are of things only, and what was found is stuff: ${names(stuff)}.`);
  }
  if (closest.length === 0) return say("No query found anything that it could name.");
  const value = Math.max(0, Math.ceil(100 * closest[0].score) - 1) / 100;
  const who = state.task === "instance" ? "No thing" : "No query";
  const sentence = `${who} scores above ${state.objectThreshold.toFixed(2)}. Closest: ${names(closest)}. `;
  return say(sentence, lower("objectThreshold", value));
}

export function showAll() {
  update({ isolated: null, hidden: new Set() });
}

function mark() {
  for (const item of findAll("#legend li:not(.rest)")) {
    const { ids } = item;
    const hidden = ids.every((id) => state.hidden.has(id));
    item.classList.toggle("selected", ids.length === 1 && ids[0] === state.segment);
    item.classList.toggle("hovered", ids.includes(state.hovered));
    item.classList.toggle("out", hidden || (state.isolated !== null && !ids.some((id) => state.isolated.has(id))));
    item.querySelector(".main").setAttribute("aria-pressed", isOnly(ids));
    item.querySelector(".eye").setAttribute("aria-pressed", hidden);
  }
  find("#legend .all").hidden = state.isolated === null && state.hidden.size === 0;
}

export function setUpLegend() {
  onChange(["reading"], render);
  onChange(["hidden", "isolated", "hovered", "segment"], mark);
}
