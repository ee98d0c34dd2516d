// Downloads: files that the server makes, and the canvas as it is seen.

import { ask, find, findAll, make } from "../core/host.js";
import { isPainted } from "../core/result.js";
import { state } from "../core/state.js";

async function download(button) {
  if (button.hasAttribute("aria-busy")) return; // not disabled meanwhile: that would take the focus away
  const { result, reading, task, objectThreshold, overlapThreshold, opacity, outlines, names } = state;
  // The ids may differ in the photo's own size. The class and the queries of a segment do not.
  const hidden = reading.segments
    .filter(({ id }) => !isPainted(id))
    .flatMap(({ category_id: category, queries }) => queries.map((query) => [category, query]));
  const thresholds = [objectThreshold, overlapThreshold];
  const { what } = button.dataset;
  button.setAttribute("aria-busy", "true");
  const answer = await ask("export", result.id, task, ...thresholds, opacity, what, outlines, names, hidden);
  button.removeAttribute("aria-busy");
  if (answer) save(answer.url, answer.name);
}

const save = (url, name) => make("a", { href: url, download: name }).click();

function saveCanvas() {
  find("#canvas").toBlob((blob) => {
    const url = URL.createObjectURL(blob);
    save(url, `${state.result.stem}_view.png`);
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
}

export function setUpExport() {
  for (const button of findAll("#export [data-what]")) button.addEventListener("click", () => download(button));
  find("#save-view").addEventListener("click", saveCanvas);
  // Gradio hides its own button on narrow screens, and opens nothing for a link with ?view=api.
  find("#show-api").addEventListener("click", () => document.querySelector("footer .show-api")?.click());
}
