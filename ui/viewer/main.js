// Starts everything, and takes in each new result that the server sends.

import { setUpExport, viewFromLink } from "../export/export.js";
import { setUpGallery } from "../gallery/gallery.js";
import { setUpBar } from "../prototypes/bar.js";
import { setUpChoice } from "../prototypes/choice.js";
import { loadMaskSheets, setUpEvolution } from "../prototypes/evolution.js";
import { setUpPoints } from "../prototypes/points.js";
import { setUpWalk } from "../prototypes/walk.js";
import { setUpCanvas, showPhoto } from "./canvas.js";
import { keepReading, readingFor, settingsOf, setUpControls } from "./controls.js";
import { setUpLegend } from "./legend.js";
import { find, segmentOfQuery, state, update } from "./state.js";
import { setUpTiming } from "./timing.js";

// The largest segment is selected at first: there is something to see before anything was clicked.
function firstLook(reading) {
  const largest = reading.segments.reduce((a, b) => (a && a.area_fraction >= b.area_fraction ? a : b), null);
  return { segment: largest?.id ?? null, query: largest?.queries[0] ?? null };
}

const linkToFollow = new URLSearchParams(location.search);

async function takeIn() {
  // gr.HTML hands out a proxy whose every access costs; what is read a thousand times had better be plain.
  const value = props.value ? JSON.parse(JSON.stringify(props.value)) : null;
  if (!value || value.id === state.result?.id) return;
  const { readings, ...result } = value;
  const view = linkToFollow.get("example") === result.name ? viewFromLink(location.search, result) : {};
  linkToFollow.delete("example"); // the view of a link is for the first result only
  await Promise.all([showPhoto(result), loadMaskSheets(result)]);
  for (const reading of readings) await keepReading(reading, result);
  const wanted = { ...settingsOf(readings[0]), ...view };
  // A link may want another reading than those that came along: it is asked for as soon as this one is shown.
  const reading = readingFor(result, wanted) ?? readings[0];
  find(".studio").dataset.empty = "false";
  const last = result.layers.length - 1;
  update({
    result,
    reading,
    ...wanted,
    hovered: null,
    isolated: null,
    hidden: new Set(),
    playing: null,
    layer: last,
    step: last + 1,
    head: null,
    show: "segments",
    ...firstLook(reading),
    ...("query" in view ? { segment: segmentOfQuery(view.query, reading)?.id ?? null } : {}),
    ...view,
  });
}

setUpControls();
setUpCanvas();
setUpLegend();
setUpTiming();
setUpPoints();
setUpBar();
setUpChoice();
setUpEvolution();
setUpWalk();
setUpGallery();
setUpExport();
watch("value", takeIn);
takeIn();
