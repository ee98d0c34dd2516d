// The names of the segments, written where each of them has most room.

import { camera, place } from "../core/geometry.js";
import { byArea } from "../core/result.js";
import { state } from "../core/state.js";

const FONT = "600 12.5px system-ui, sans-serif";
const HEIGHT = 20;
const PADDING = 7;
const MIN_ROOM_PX = 20; // a segment that is thinner than this on the canvas is not named

// For each segment a place deep inside it, and its depth, in pixels of the shown photo. Depth is the distance to the
// nearest pixel outside the segment, in steps to the eight neighbours. The place is the one nearest to the segment's
// middle among those that are nearly the deepest.
function deepestPlaces({ idMap, segments }, { width, height }) {
  const depth = depths(idMap, width, height);
  const found = new Map(segments.map(({ id }) => [id, { depth: 0, area: 0, sumX: 0, sumY: 0, away: Infinity }]));
  const visit = (look) => {
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) if (idMap[i]) look(found.get(idMap[i]), x, y, depth[i]);
    }
  };
  visit((place, x, y, here) => {
    place.depth = Math.max(place.depth, here);
    place.area += 1;
    place.sumX += x;
    place.sumY += y;
  });
  visit((place, x, y, here) => {
    if (here < 0.9 * place.depth) return;
    const away = Math.hypot(x - place.sumX / place.area, y - place.sumY / place.area);
    if (away < place.away) Object.assign(place, { away, x, y });
  });
  return found;
}

function depths(idMap, width, height) {
  const depth = new Uint16Array(idMap.length);
  const at = (i, x, y, dx, dy) => {
    if (x + dx < 0 || x + dx >= width || y + dy < 0 || y + dy >= height) return 0;
    const j = i + dy * width + dx;
    return idMap[j] === idMap[i] ? depth[j] : 0;
  };
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      depth[i] = 1 + Math.min(at(i, x, y, -1, 0), at(i, x, y, -1, -1), at(i, x, y, 0, -1), at(i, x, y, 1, -1));
    }
  }
  for (let y = height - 1, i = idMap.length - 1; y >= 0; y--) {
    for (let x = width - 1; x >= 0; x--, i--) {
      const below = Math.min(at(i, x, y, 1, 0), at(i, x, y, 1, 1), at(i, x, y, 0, 1), at(i, x, y, -1, 1));
      depth[i] = Math.min(depth[i], 1 + below);
    }
  }
  return depth;
}

// Writes the names between the edges `from` and `to`, fractions of the width, the largest segment first. A name that
// would cross an edge is moved inside. A name that would cover another one, or a `reserved` box, or is wider than the
// photo, is left out until the photo is enlarged.
export function drawNames(context, reading, isNamed, from, to, reserved) {
  const { result } = state;
  const taken = [...reserved];
  reading.places ??= deepestPlaces(reading, result);
  for (const { id, category } of byArea(reading.segments)) {
    const { x, y, depth } = reading.places.get(id);
    if (!isNamed(id) || depth * camera.scale < MIN_ROOM_PX) continue;
    const [middle, top] = place((x + 0.5) / result.width, (y + 0.5) / result.height);
    const half = nameWidth(context, category) / 2;
    if (2 * half > place(1, 0)[0] - place(0, 0)[0]) continue; // wider than the photo
    const [first, last] = [place(from, 0)[0] + half, place(to, 0)[0] - half];
    const left = Math.min(Math.max(middle, first), last);
    if (Math.abs(left - middle) > 2 * half) continue;
    const box = nameBox(context, category, left, top);
    const covers = (other) =>
      box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom;
    if (taken.some(covers)) continue;
    taken.push(box);
    drawName(context, category, left, top);
  }
}

// The box that a name covers when its middle is at a place of the canvas.
export function nameBox(context, name, left, top) {
  const half = nameWidth(context, name) / 2;
  return { left: left - half, right: left + half, top: top - HEIGHT / 2, bottom: top + HEIGHT / 2 };
}

export function nameWidth(context, name) {
  context.font = FONT;
  return context.measureText(name).width + 2 * PADDING;
}

// Writes a name with its middle at a place of the canvas.
export function drawName(context, name, left, top) {
  const width = nameWidth(context, name);
  context.save();
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = "#000a";
  context.beginPath();
  context.roundRect(left - width / 2, top - HEIGHT / 2, width, HEIGHT, 5);
  context.fill();
  context.fillStyle = "#fff";
  context.fillText(name, left, top + 0.5);
  context.restore();
}
