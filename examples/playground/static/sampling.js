"use strict";
// From logits to probabilities and tokens, as Sampling in gpt/sample.py does it.

/** The probability of every token after temperature, top-k and top-p. null is no limit. */
function probabilities(logits, temperature, topK, topP) {
  let largest = -Infinity;
  for (const logit of logits) largest = Math.max(largest, logit);
  const likeliest = logits.indexOf(largest);
  if (temperature === 0) return Float64Array.from(logits, (_, i) => (i === likeliest ? 1 : 0));
  const scaled = Float64Array.from(logits, (logit) => (logit - largest) / temperature);
  const ranked = () => scaled.slice().sort().reverse(); // largest first
  const cut = (least) => scaled.forEach((value, i) => { if (value < least) scaled[i] = -Infinity; });
  if (topK !== null && topK < scaled.length) cut(ranked()[topK - 1]);
  if (topP !== null) {
    const order = ranked();
    let kept = 0;
    let total = 0;
    for (const p of softmax(order)) {
      if (total >= topP) break;
      total += p;
      kept += 1;
    }
    cut(order[kept - 1]);
  }
  return softmax(scaled);
}

/** exp(x) / sum of exp(x), for x whose largest is 0. */
function softmax(x) {
  const y = x.map(Math.exp);
  const total = y.reduce((sum, value) => sum + value, 0);
  return y.map((value) => value / total);
}

// What the sliders mean

const TOP_K = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, null];

/** The settings of the page's sliders, and what to write beside them. */
function readSliders(get) {
  const temperature = Number(get("temperature"));
  const topK = TOP_K[Number(get("top_k"))];
  const topP = Number(get("top_p")) < 1 ? Number(get("top_p")) : null;
  const shown = { temperature: temperature.toFixed(2), top_k: topK ?? "off", top_p: topP?.toFixed(2) ?? "off" };
  return { temperature, topK, topP, shown };
}

// Showing tokens and bars

const at = (id) => document.getElementById(id);

/** An element with attributes and children. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A token's text with visible spaces and line breaks. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/** A probability in percent. */
function percent(p) {
  return p === 0 ? "–" : p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(1)}%`;
}

/**
 * A bar for each token {id, text}: the full part is its chance, the outline the model's own.
 * Returns the bars, as buttons, and a line about all other tokens.
 */
function drawBars(place, tokens, chances, own, chosen, choose) {
  const scale = Math.max(...tokens.map(({ id }) => Math.max(chances[id], own[id])));
  const bars = tokens.map(({ id, text }) => {
    const [full, outline] = [make("span", { class: "chance" }), make("span", { class: "own" })];
    full.style.width = `${(100 * chances[id]) / scale}%`;
    outline.style.width = `${(100 * own[id]) / scale}%`;
    const bar = make("button", {
      type: "button", "data-id": id, "data-chance": chances[id], "data-own": own[id],
      "aria-pressed": id === chosen, title: `the model's own guess: ${percent(own[id])}`,
    }, make("span", { class: "token" }, visible(text)), make("span", { class: "track" }, full, outline),
      make("span", { class: "number" }, percent(chances[id])));
    bar.classList.toggle("cut", chances[id] === 0);
    bar.addEventListener("click", () => choose(id));
    return bar;
  });
  const others = chances.length - tokens.length;
  const rest = 1 - tokens.reduce((sum, { id }) => sum + chances[id], 0);
  const line = others > 0 ? [make("p", { class: "rest" },
    `${others.toLocaleString("en")} other tokens: ${rest < 1e-9 ? "nothing" : `${percent(rest)} together`}`)] : [];
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  place.replaceChildren(...bars, ...line);
  if (focused) bars.find((bar) => bar.dataset.id === focused)?.focus();
}
