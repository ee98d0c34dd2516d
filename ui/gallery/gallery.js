// All queries as pictures or as a table: what became of each, and why. Both are the same HTML table in two styles. Its
// rows and thumbnails are made once per result; a new reading only changes texts.

import { find, findAll, make, makeSwatch } from "../core/host.js";
import { drainColor, paintPhoto } from "../core/pictures.js";
import { allQueries, finalPrediction, lastStep, selectQuery } from "../core/result.js";
import { onChange, state } from "../core/state.js";
import { percent } from "../core/words.js";
import { paintMask } from "../prototypes/masks.js";

const THUMBNAIL_PX = 240; // long side; twice as many as CSS shows, for sharp screens
const FRAME_PX = 4;

// What becomes of a query, the best first.
const USED = ["kept", "merged"];
const DROPPED = [
  "small overlap",
  "lost pixels",
  "empty mask",
  "little evidence",
  "low score",
  "not a thing",
  "no object",
];
const FATES = [...USED, ...DROPPED];

// What each column is sorted by, and in which direction at the first click.
const COLUMNS = {
  query: { key: ({ query }) => query, largestFirst: false },
  class: { key: ({ category }) => category, largestFirst: false },
  score: { key: ({ score }) => score, largestFirst: true },
  area: { key: ({ query }) => maskArea(query), largestFirst: true },
  outcome: { key: ({ fate }) => FATES.indexOf(fate), largestFirst: false },
};

const order = { column: "outcome", descending: false };
let shownChip = "all"; // or "dropped", or one of FATES
let rows = []; // by query: its <tr>

const maskArea = (query) => finalPrediction(query).area;
const isDropped = (fate) => DROPPED.includes(fate);
const passes = (fate, chip) => chip === "all" || chip === fate || (chip === "dropped" && isDropped(fate));

// ----------------------------------------------------------------------------------------------------- once per result

function makeRow(query) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const button = make("button", { type: "button", tabIndex: -1, "aria-label": `Query ${query}` }, `${query}`);
  const cells = ["class", "score", "area", "outcome"].map((name) => make("td", { className: name }));
  const picture = make("td", { className: "picture" }, make("div", { className: "thumbnail" }, canvas));
  const onclick = () => {
    selectQuery(query);
    button.focus({ preventScroll: true }); // so that the page's keys work from here
  };
  return make("tr", { query, onclick }, picture, make("th", { className: "query", scope: "row" }, button), ...cells);
}

function paintThumbnail(row) {
  paintMask(row.querySelector("canvas"), row.query, lastStep(), finalPrediction(row.query).color);
}

// The grey, dim photo that lies under all thumbnails.
function backdrop() {
  const canvas = make("canvas");
  const { context, box } = paintPhoto(canvas, THUMBNAIL_PX);
  drainColor(context, box);
  context.fillStyle = "rgb(0 0 0 / 0.45)";
  context.fillRect(0, 0, box.width, box.height);
  return canvas.toDataURL("image/jpeg", 0.7);
}

function makeRows(whenSeen) {
  const { width, height } = state.result;
  whenSeen.disconnect();
  rows = allQueries().map(makeRow);
  for (const row of rows) whenSeen.observe(row);
  find("#queries tbody").replaceChildren(...rows);
  find("#queries").style.setProperty("--ratio", width / height);
  find("#queries").style.setProperty("--backdrop", `url(${backdrop()})`);
}

// ---------------------------------------------------------------------------------------------------- at every reading

function describe(row, outcome) {
  const [category, score, area, fate] = row.querySelectorAll("td:not(.picture)");
  const { color } = state.result.model.categories[outcome.category_id];
  category.replaceChildren(makeSwatch(color), make("span", { title: outcome.category }, outcome.category));
  score.textContent = outcome.score.toFixed(2);
  area.textContent = percent(maskArea(outcome.query));
  const badge = make("b", {}, outcome.fate);
  fate.replaceChildren(badge, make("span", { title: outcome.reason }, outcome.reason));
  row.classList.toggle("dropped", isDropped(outcome.fate));
}

function renderChips() {
  const count = (chip) => state.reading.outcomes.filter(({ fate }) => passes(fate, chip)).length;
  if (count(shownChip) === 0) shownChip = "all";
  const chips = ["all", ...USED, "dropped", ...DROPPED].filter((chip) => count(chip) > 0);
  const buttons = chips.map((chip) => {
    const onclick = () => showOnly(chip);
    const properties = { type: "button", className: isDropped(chip) ? "reason" : "", chip, onclick };
    return make("button", properties, chip, make("span", {}, `${count(chip)}`));
  });
  find("#queries .chips").replaceChildren(...buttons);
}

// Hides the rows that do not pass the filter, and sorts all by the chosen column, and equal ones by score.
function arrange() {
  const { key } = COLUMNS[order.column];
  const sign = order.descending ? -1 : 1;
  const compare = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === right) return b.score - a.score;
    return left < right ? -sign : sign;
  };
  const sorted = state.reading.outcomes.toSorted(compare);
  for (const { query, fate } of sorted) rows[query].hidden = !passes(fate, shownChip);
  find("#queries tbody").append(...sorted.map(({ query }) => rows[query]));
  for (const heading of findAll("#queries th[data-column]")) {
    if (heading.dataset.column !== order.column) heading.removeAttribute("aria-sort");
    else heading.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
  }
  for (const button of findAll("#queries .chips button"))
    button.setAttribute("aria-pressed", button.chip === shownChip);
}

function renderReading() {
  for (const outcome of state.reading.outcomes) describe(rows[outcome.query], outcome);
  renderChips();
  arrange();
}

// --------------------------------------------------------------------------------------------------- which is selected

const shownRows = () => findAll("#queries tbody tr:not([hidden])");

// Scrolls the box, never the page, until the row and its frame are seen.
function reveal(row) {
  const box = find("#queries .queries-box");
  const { top, bottom } = row.getBoundingClientRect();
  const above = find("#queries thead").getBoundingClientRect().bottom - (top - FRAME_PX);
  const below = bottom + FRAME_PX - box.getBoundingClientRect().bottom;
  if (above > 0) box.scrollTop -= above;
  else if (below > 0) box.scrollTop += below;
}

// The Tab key stops at one row only; the arrow keys lead to the others.
function makeTabStop(row) {
  for (const button of findAll("#queries tbody button")) button.tabIndex = -1;
  if (row) row.querySelector("button").tabIndex = 0;
}

function markSelected() {
  for (const row of rows) {
    const selected = row.query === state.query;
    row.classList.toggle("selected", selected);
    row.querySelector("button").setAttribute("aria-pressed", selected);
  }
  const [row] = shownRows().filter(({ query }) => query === state.query);
  if (row) reveal(row);
  makeTabStop(row ?? shownRows()[0]);
}

function moveFocus(event) {
  const shown = shownRows();
  const at = shown.indexOf(event.target.closest("tr"));
  if (at < 0) return;
  // In the table one row fills a line; several pictures do.
  const perLine = shown.filter((row) => row.offsetTop === shown[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perLine, ArrowDown: perLine, Home: -at, End: shown.length };
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation(); // elsewhere the arrow keys go from segment to segment
  const row = shown[Math.min(shown.length - 1, Math.max(0, at + steps[event.key]))];
  makeTabStop(row);
  row.querySelector("button").focus({ preventScroll: true });
  reveal(row);
}

function showOnly(chip) {
  shownChip = chip;
  arrange();
  markSelected();
}

function sortBy(column) {
  order.descending = order.column === column ? !order.descending : COLUMNS[column].largestFirst;
  order.column = column;
  arrange();
  markSelected();
}

export function setUpGallery() {
  const onSeen = (entries) => {
    for (const { target } of entries.filter(({ isIntersecting }) => isIntersecting)) {
      whenSeen.unobserve(target);
      paintThumbnail(target);
    }
  };
  const whenSeen = new IntersectionObserver(onSeen, { root: find("#queries .queries-box"), rootMargin: "200px" });
  find("#queries tbody").addEventListener("keydown", moveFocus);
  for (const heading of findAll("#queries th[data-column]")) {
    heading.firstElementChild.addEventListener("click", () => sortBy(heading.dataset.column));
  }
  find("#queries fieldset").addEventListener("change", ({ target }) => {
    find("#queries table").dataset.view = target.value;
    markSelected();
  });
  onChange(["result", "reading", "query"], (changes) => {
    if ("result" in changes) makeRows(whenSeen);
    if ("result" in changes || "reading" in changes) renderReading();
    markSelected();
  });
}
