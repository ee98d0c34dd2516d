// Paints segments, one pixel per pixel of the shown photo: those of the reading, and of the other network's beside it.

import { channels } from "../core/colors.js";
import { boxOf } from "../core/geometry.js";
import { make } from "../core/host.js";
import { drawInBox } from "../core/pictures.js";
import { isPainted } from "../core/result.js";
import { onChange, state } from "../core/state.js";

const AREA_ALPHA = 190;
const EDGE_ALPHA = 170;

let own = null; // two canvases, `areas` and `edges`
let other = null;

function makeSheets() {
  const { width, height } = state.result;
  const sheet = () => make("canvas", { width, height });
  [own, other] = [0, 1].map(() => ({ areas: sheet(), edges: sheet() }));
}

// Fills a picture from a colour per id. A colour is 0xAABBGGRR: the four bytes of a pixel on a little-endian machine.
function paintIds(canvas, { idMap, segments }, colorOf, isLeftOut = () => false) {
  const colors = new Uint32Array(segments.length + 1);
  for (const segment of segments) colors[segment.id] = colorOf(segment) >>> 0;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) if (!isLeftOut(i)) pixels[i] = colors[idMap[i]];
  context.putImageData(image, 0, 0);
}

function paintAreas({ areas }, reading, alphaOf) {
  paintIds(areas, reading, ({ id, color }) => {
    const [red, green, blue] = channels(color);
    return (alphaOf(id) << 24) | (blue << 16) | (green << 8) | red;
  });
}

// A pixel is white only where its upper or left neighbour is another segment.
function paintEdges({ edges }, reading, alphaOf) {
  const { idMap } = reading;
  const { width } = edges;
  const isInside = (i) =>
    (i < width || idMap[i] === idMap[i - width]) && (i % width === 0 || idMap[i] === idMap[i - 1]);
  paintIds(edges, reading, ({ id }) => (alphaOf(id) << 24) | 0xffffff, isInside);
}

function paintOwnAreas() {
  const { hovered, segment } = state;
  const strong = hovered ?? segment;
  const weak = hovered === null ? AREA_ALPHA : 80;
  paintAreas(own, state.reading, (id) => (!isPainted(id) ? 0 : id === (strong ?? id) ? 255 : weak));
}

function paintOwnEdges() {
  paintEdges(own, state.reading, (id) => (!isPainted(id) ? 0 : id === state.segment ? 255 : EDGE_ALPHA));
}

function paintOther() {
  if (!state.beside) return;
  paintAreas(other, state.beside, () => AREA_ALPHA);
  paintEdges(other, state.beside, () => EDGE_ALPHA);
}

function draw(context, { areas, edges }) {
  context.globalAlpha = state.opacity;
  drawInBox(context, areas, boxOf(), false);
  context.globalAlpha = Math.min(1, 1.6 * state.opacity);
  if (state.outlines) drawInBox(context, edges, boxOf(), true);
  context.globalAlpha = 1;
}

export const drawOwnSegments = (context) => draw(context, own);
export const drawOtherSegments = (context) => draw(context, other);

export function setUpSegments() {
  onChange(["result"], makeSheets);
  onChange(["reading", "hidden", "isolated", "segment"], paintOwnEdges);
  onChange(["reading", "hidden", "isolated", "hovered", "segment"], paintOwnAreas);
  onChange(["beside"], paintOther);
}
