// Links to a view of an example photo. They count layers and heads as the page does, from 1.

import { find, notify } from "../core/host.js";
import { isPainted } from "../core/result.js";
import { onChange, SHOWS, state, TASKS } from "../core/state.js";

// The link to what is shown now.
function linkToView() {
  const { result, reading, task, objectThreshold, overlapThreshold, query, layer, head, show, step } = state;
  const { opacity, names, outlines, points, leftOfWipe, wipe } = state;
  const hidden = reading.segments.map(({ id }) => id).filter((id) => !isPainted(id));
  const parameters = {
    example: result.name,
    attention: result.other_id && result.model.attention === "masked" ? "masked" : null,
    task,
    score: objectThreshold.toFixed(2),
    overlap: overlapThreshold.toFixed(2),
    query: query ?? "none",
    layer: layer + 1,
    head: head === null ? null : head + 1,
    show,
    step,
    opacity: opacity.toFixed(2),
    names: names ? "on" : "off",
    outlines: outlines ? "on" : "off",
    points: points ? "on" : "off",
    left: leftOfWipe,
    wipe: leftOfWipe && wipe.toFixed(3),
    // An example is read in the same way each time, so that its segments have the same ids.
    hide: hidden.join(" ") || null,
  };
  const given = Object.entries(parameters).filter(([, value]) => value !== null);
  return `${location.origin}${location.pathname}?${new URLSearchParams(given)}`;
}

// The changes of state that a link asks for, without those that this result cannot show.
export function viewFromLink(parameters, result) {
  const number = (name) => Number(parameters.get(name) || Number.NaN);
  const oneOf = (name, values) => values.find((value) => value === parameters.get(name));
  const fraction = (name) => (number(name) >= 0 && number(name) <= 1 ? number(name) : undefined);
  const index = (name, count, first = 0) => {
    const value = number(name) - first;
    return Number.isInteger(value) && value >= 0 && value < count ? value : undefined;
  };
  const view = {
    task: oneOf("task", TASKS),
    objectThreshold: fraction("score"),
    overlapThreshold: fraction("overlap"),
    query: parameters.get("query") === "none" ? null : index("query", result.model.num_queries),
    layer: index("layer", result.layers.length, 1),
    head: index("head", result.model.num_heads, 1),
    show: oneOf("show", SHOWS),
    step: index("step", result.layers.length + 1),
    opacity: fraction("opacity"),
    names: { on: true, off: false }[parameters.get("names")],
    outlines: { on: true, off: false }[parameters.get("outlines")],
    points: { on: true, off: false }[parameters.get("points")],
    leftOfWipe: oneOf("left", result.other_id ? ["photo", "other"] : ["photo"]),
    wipe: fraction("wipe"),
    hidden: parameters.has("hide") ? new Set(parameters.get("hide").split(" ").map(Number)) : undefined,
  };
  return Object.fromEntries(Object.entries(view).filter(([, value]) => value !== undefined));
}

async function copyLink() {
  const field = find("#link");
  field.value = linkToView();
  try {
    await navigator.clipboard.writeText(field.value);
    field.hidden = true;
    notify("The link is copied.");
  } catch {
    // No clipboard here, or not allowed: the visitor can copy by hand.
    field.hidden = false;
    field.focus();
    field.select();
  }
}

function renderLink() {
  const isExample = Boolean(state.result?.name);
  find("#copy-link").disabled = !isExample;
  find("#link").hidden = true;
  find("#link-note").textContent = isExample
    ? ""
    : "A link can reproduce the example photos only: your own photo is not kept.";
}

export function setUpLink() {
  find("#copy-link").addEventListener("click", copyLink);
  onChange(["result"], renderLink);
}
