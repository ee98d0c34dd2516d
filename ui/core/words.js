// How the page writes numbers and names. Layers and heads are counted from 1 there.

// The space in it does not break.
export const percent = (fraction, digits = 1) => `${(fraction * 100).toFixed(digits)}\u00a0%`;
export const decimal = (value, digits = 3) => value.toFixed(digits).replace("-", "\u2212");
export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
export const layerName = (layer) => `layer ${layer + 1}`;
export const queriesText = ({ queries }) =>
  queries.length === 1 ? `query ${queries[0]}` : `${queries.length} queries`;

export const headsText = (heads) =>
  `${heads.length === 1 ? "head" : "heads"} ${heads.map((head) => head + 1).join(", ")}`;
