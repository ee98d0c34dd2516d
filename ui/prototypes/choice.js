// The panel that explains a choice: three maps and the numbers that decided.

import { sizeWithin, tokenAt } from "../core/geometry.js";
import { find, make } from "../core/host.js";
import { hasForeground, scoreName } from "../core/result.js";
import { onChange, state } from "../core/state.js";
import { decimal, headsText, layerName } from "../core/words.js";
import { drawMap, scaleEnds } from "./choices.js";
import { openPoint } from "./patch.js";
import { pointsOf } from "./points.js";

const MAP_PX = 480;

function paintFigure(which, title, note) {
  const canvas = find(`#choice canvas.${which}`);
  const { photo } = state.result.pictures;
  const size = sizeWithin(MAP_PX, photo);
  Object.assign(canvas, size);
  const context = canvas.getContext("2d");
  context.drawImage(photo, 0, 0, size.width, size.height);
  drawMap(context, { left: 0, top: 0, ...size }, state.choice, which);
  canvas.setAttribute("aria-label", `${title}: ${note.join(" to ")}`);
  const caption = canvas.nextElementSibling;
  caption.querySelector("b").textContent = title;
  const scale = caption.querySelector("span");
  if (scale.className === "scale") scale.replaceChildren(note[0], make("i"), note[1]);
  else scale.textContent = note[0];
}

function weightsTitle({ kind, baseline }) {
  if (baseline)
    return `Attention of the masked baseline (its query ${baseline.query}, mask IoU ${baseline.iou.toFixed(2)})`;
  return kind === "logit" ? "Attention: softmax of these logits" : "Softmax of the same similarities";
}

function showChoice() {
  const { choice, query } = state;
  find("#choice").hidden = query === null;
  find("#choice").classList.toggle("waiting", !choice);
  if (!choice) return;
  const { layer, head, kind, low, high, allowed, tokens, baseline } = choice;
  const isLogit = kind === "logit";
  paintFigure("scores", isLogit ? "Logit of each token" : "Similarity of each token", scaleEnds(choice, "scores"));
  paintFigure("banned", "What the previous mask banned", [bannedText(choice)]);
  paintFigure("weights", weightsTitle(choice), scaleEnds(choice, "weights"));

  const sees = hasForeground(query, layer);
  const own = state.head === null ? " (of all heads the best score)" : "";
  const story = sees ? storyOf(choice) : "no foreground in this layer, so no token is marked.";
  find("#choice .choice-lead").textContent = `Query ${query}, ${layerName(layer)}, head ${head + 1}${own}: ${story}`;
  const facts = [
    ["tokens allowed", `${allowed} of ${tokens}`],
    [isLogit ? "logits" : "similarities", `${decimal(low)} to ${decimal(high)}`],
  ];
  if (!choice.empty) facts.push(["half of the softmax weight is on", `${choice.tokens_for_half} of ${allowed} tokens`]);
  if (baseline) facts.push(["half of the masked baseline's attention is on", `${baseline.tokens_for_half} tokens`]);
  if (sees) {
    const { row, col } = tokenAt(layer, choice.index);
    facts.unshift(
      [isLogit ? "largest weight on" : "picked", `row ${row + 1}, column ${col + 1}`],
      [scoreName(), decimal(choice.similarity)],
      [isLogit ? "the same token is first for" : "the same token was picked by", agreeText(choice)],
    );
  }
  const list = facts.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value)));
  find("#choice .facts").replaceChildren(...list, ...(sees ? [patchButton(choice)] : []));
}

function storyOf({ kind, bestIsBanned }) {
  if (kind === "logit")
    return "masked attention mixes all allowed tokens by their softmax weights; the ring marks the largest weight.";
  const other = bestIsBanned ? "; a more similar one was banned" : "";
  return `of the tokens that the previous mask allowed, it took the most similar one (ring)${other}.`;
}

function bannedText({ empty, tokens, allowed }) {
  if (empty) return "every token: no foreground";
  return allowed === tokens ? "nothing" : `${tokens - allowed} of ${tokens} tokens (grey)`;
}

function agreeText({ layer, query, head, index }) {
  const others = state.result.prototype_index[layer][query].flatMap((at, other) =>
    at === index && other !== head ? [other] : [],
  );
  return others.length ? headsText(others) : "no other head";
}

function patchButton({ layer, query, index }) {
  const show = () => {
    openPoint(pointsOf(query, layer).find((point) => point.index === index));
    find("#patch .close").focus();
  };
  return make("button", { type: "button", onclick: show }, "Show the patch");
}

export function setUpChoice() {
  onChange(["query", "choice"], showChoice);
}
