// The viewer: one page inside an element, which shows what the server made of a photo.

import { connect } from "../core/host.js";
import { setUpExport } from "../export/export.js";
import { setUpLink } from "../export/link.js";
import { setUpGallery } from "../gallery/gallery.js";
import { setUpBar } from "../prototypes/bar.js";
import { setUpChoice } from "../prototypes/choice.js";
import { setUpEvolution } from "../prototypes/evolution.js";
import { setUpPatch } from "../prototypes/patch.js";
import { setUpPlaying } from "../prototypes/playing.js";
import { setUpWalk } from "../prototypes/walk.js";
import { setUpArrivals } from "./arrivals.js";
import { setUpCamera } from "./camera.js";
import { setUpCanvas } from "./canvas.js";
import { setUpCompare } from "./compare.js";
import { setUpControls } from "./controls.js";
import { setUpKeys } from "./keys.js";
import { setUpLegend } from "./legend.js";
import { setUpPointer } from "./pointer.js";
import { setUpReadings } from "./readings.js";
import { setUpResults } from "./results.js";
import { setUpSegments } from "./segments.js";
import { setUpTiming } from "./timing.js";
import { setUpWipe } from "./wipe.js";

// Starts the viewer, once per page. What it needs is handed in, by gr.HTML or by any other page:
// - `element` holds the HTML of ui/viewer/__init__.py;
// - `props.value` is what ui/viewer/server.py's `open_result` returns, or null;
// - `watch("value", callback)` promises to call back when there is another value;
// - `server` has the functions of ui/viewer/server.py, each returning a promise of its answer.
export function start({ element, props, watch, server }) {
  connect(element, server);
  // In this order the parts hear of a change.
  const bar = [setUpControls, setUpReadings, setUpKeys, setUpResults, setUpCompare];
  const picture = [setUpSegments, setUpCamera, setUpWipe, setUpPointer, setUpCanvas, setUpLegend, setUpTiming];
  const query = [setUpPatch, setUpPlaying, setUpBar, setUpChoice, setUpEvolution, setUpWalk];
  const others = [setUpGallery, setUpExport, setUpLink];
  for (const setUp of [bar, picture, query, others].flat()) setUp();
  setUpArrivals(props, watch);
}
