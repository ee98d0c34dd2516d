// Colours as [red, green, blue], 0..255.

import { state } from "./state.js";

// The channels of "#ff6a3c".
export const channels = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));

// 256 colours in even steps from the first of these to the last: colorTable("#000000 #ffffff") is all greys.
export function colorTable(hexColors) {
  const anchors = hexColors.split(" ").map(channels);
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(at), anchors.length - 2);
    return anchors[low].map((value, channel) => value + (anchors[low + 1][channel] - value) * (at - low));
  });
}

// Colour-blind eyes can tell them apart. Points have a white rim, so they stand out on any photo.
const LAYERS = colorTable("#fde725 #7ad151 #22a884 #2a788e #8d6cc4 #e0459b");

// The colour of a decoder layer for CSS and canvas; the layers share the table evenly, early to late.
export const layerColor = (layer) => `rgb(${layerChannels(layer)})`;

const layerChannels = (layer) => LAYERS[Math.round((255 * layer) / Math.max(1, state.result.layers.length - 1))];

// Black or white, whichever has more contrast on the colour of a layer.
export function inkOnLayer(layer) {
  const [red, green, blue] = layerChannels(layer).map((value) => (value / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000" : "#fff";
}
