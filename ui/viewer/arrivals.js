// Takes in each result that the server sends. The first may follow a link; later ones are seen as the one before was.

import { find, hideNote, notify } from "../core/host.js";
import { onChange, state } from "../core/state.js";
import { viewFromLink } from "../export/link.js";
import { flipAttention, inTurn, showResult } from "./results.js";

let linkToFollow = null; // until a result was shown as the link says

function takeIn(result) {
  inTurn(async () => {
    const before = state.result;
    if (result.id === before?.id) return;
    // A link is followed once: by the first result that it means.
    const means = (name, own) => (linkToFollow.get(name) ?? own) === own;
    const isMeant = linkToFollow && means("example", result.name) && means("attention", result.model.attention);
    const view = isMeant ? viewFromLink(linkToFollow, result) : {};
    if (isMeant) linkToFollow = null;
    await showResult(result, () => view);
    if (!before && linkToFollow && isOnItsWay(linkToFollow, result)) {
      notify("What the link shows is on its way.", 60_000);
    } else hideNote();
    if (before && !isMeant) welcome(result, before);
  });
}

// Whether what a link asks for exists.
function isOnItsWay(link, { name, other_id: other }) {
  const isExample = examples().some((photo) => photo.alt === (link.get("example") ?? name));
  return isExample && (link.get("attention") !== "masked" || Boolean(other));
}

// Brings the photo that the visitor has just chosen into sight, and shows it by the network that was shown before.
function welcome(result, before) {
  const { top } = find(".studio-view").getBoundingClientRect();
  if (top > window.innerHeight / 2) find("#task").scrollIntoView({ behavior: "smooth" });
  if (result.model.attention !== before.model.attention && result.other_id) flipAttention(before.model.attention);
}

// Gradio calls them "Thumbnail 1 of 6", and does not know which one is shown.
function markExample() {
  for (const photo of examples()) {
    const button = photo.closest(".thumbnail-item");
    button.setAttribute("aria-label", photo.alt);
    button.setAttribute("aria-current", photo.alt === state.result.name);
  }
}

// The gallery of examples lies beside the viewer, if there is one.
const examples = () => [...document.querySelectorAll("#examples .thumbnail-item img")];

// `props.value` is the latest result, or null; `watch` calls back when there is another one.
export function setUpArrivals(props, watch) {
  linkToFollow = new URLSearchParams(location.search);
  onChange(["result"], markExample);
  // gr.HTML hands out a slow proxy, so a plain copy is taken in.
  const take = () => props.value && takeIn(JSON.parse(JSON.stringify(props.value)));
  watch("value", take);
  take();
}
