"use strict";
// The page of examples/playground.py. The server computes; this file asks it and draws.

const SETTINGS = ["temperature", "top_k", "top_p"];
let views = []; // one for each model
let reading = null; // the AbortController of the text that is being read
let writing = null; // and of the text that is being written

// Asking the server

async function ask(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET", signal,
      ...(body && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("the server does not answer; is it still running?");
  }
  if (!answer.ok) {
    const content = await answer.text();
    let problem = content;
    try { problem = JSON.parse(content).error; } catch { /* a plain line */ }
    throw new Error(problem);
  }
  return answer;
}

/** The server-sent events of an answer, as objects. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (waiting + part.value).split("\n");
    waiting = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
  }
}

/** Do something; what goes wrong becomes a line on the page. */
async function attempt(action) {
  at("error").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    at("error").textContent = error.message;
    at("error").hidden = false;
  }
}

function floats(base64) {
  return new Float32Array(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
}

// A model's part of the page

class View {
  constructor(number, about) {
    this.number = number;
    this.place = at("model").content.firstElementChild.cloneNode(true);
    this.tokens = []; // {id, text, made}
    this.position = -1; // the chosen token
    this.find(".layer").addEventListener("input", () => this.drawHeads());
    this.find(".tokens").addEventListener("click", (event) => {
      if (event.target.dataset.position) choose(this, Number(event.target.dataset.position));
    });
    this.find(".tokens").addEventListener("keydown", (event) => this.walk(event));
    this.describe(about);
    at("models").append(this.place);
  }

  find(selector) { return this.place.querySelector(selector); }

  describe(about) {
    this.about = about;
    this.find(".name").textContent = about.name;
    const count = (n, what) => `${n.toLocaleString("en")} ${what}`;
    this.find(".about").textContent = [
      count(about.parameters, "parameters"), count(about.layers, "layers"), count(about.heads, "heads in each"),
      count(about.vocabulary, "tokens in the vocabulary"), `sees ${count(about.context, "tokens")} at a time`,
    ].join(" · ");
    const layer = this.find(".layer");
    if (Number(layer.max) !== about.layers - 1) {
      layer.max = about.layers - 1;
      layer.value = about.layers - 1;
    }
  }

  /** The arrow keys walk over the tokens. */
  walk(event) {
    const last = this.tokens.length - 1;
    const to = { ArrowLeft: this.position - 1, ArrowRight: this.position + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(this, Math.min(Math.max(to, 0), last));
  }

  get ids() { return this.tokens.map(({ id }) => id); }

  async read(text, signal) {
    const answer = await ask("tokens", { model: this.number, text }, signal);
    this.tokens = (await answer.json()).tokens;
    this.position = this.tokens.length - 1;
    this.drawTokens();
  }

  /** Add a token that the model wrote. What has come since the last frame is drawn together. */
  add(token) {
    this.tokens.push({ ...token, made: true });
    this.frame ??= requestAnimationFrame(() => this.drawNew());
  }

  drawNew() {
    const list = this.find(".tokens");
    this.frame = null;
    while (list.childElementCount < this.tokens.length) list.append(this.chip(list.childElementCount));
    list.scrollTop = list.scrollHeight;
  }

  chip(position) {
    const { text, made } = this.tokens[position];
    const chip = make("span", { role: "option", "data-position": position, id: `token-${this.number}-${position}` });
    chip.append(...spelled(text));
    chip.classList.toggle("made", Boolean(made));
    return chip;
  }

  drawTokens() {
    this.find(".tokens").replaceChildren(...this.tokens.map((_, i) => this.chip(i)));
    this.mark();
  }

  /** Mark the chosen token, and those that the model no longer sees from there. */
  mark() {
    const first = this.position + 1 - this.about.context;
    const list = this.find(".tokens");
    [...list.children].forEach((chip, i) => {
      chip.setAttribute("aria-selected", i === this.position);
      chip.classList.toggle("unseen", i < first);
    });
    list.setAttribute("aria-activedescendant", `token-${this.number}-${this.position}`);
    const chosen = list.children[this.position];
    if (chosen) {
      const [top, height] = [chosen.offsetTop, chosen.offsetHeight];
      if (top < list.scrollTop || top + height > list.scrollTop + list.clientHeight) list.scrollTop = top - 40;
    }
    const faint = first > 0 ? ` The ${first.toLocaleString("en")} faint tokens are out of its sight.` : "";
    this.find(".where").textContent = chosen
      ? `Everything below is about the guess made after token ${this.position + 1}, “${visible(this.tokens[this.position].text)}”.${faint}`
      : "";
  }

  /** Ask for all about the prediction after the chosen token. */
  async look(target = null) {
    if (this.position < 0) return;
    this.asking?.abort();
    this.asking = new AbortController();
    this.mark();
    const ids = this.ids.slice(0, this.position + 1);
    const answer = await ask("look", { model: this.number, ids, target }, this.asking.signal);
    const found = await answer.json();
    for (const name of ["logits", "attention", "influence"]) found[name] = floats(found[name]);
    this.found = { ...found, own: probabilities(found.logits, 1, null, null) };
    this.seen = this.tokens.slice(this.position + 1 - found.seen, this.position + 1);
    this.draw();
  }

  draw() {
    for (const place of this.place.querySelectorAll(".target")) {
      place.replaceChildren(make("span", { class: "token" }, visible(this.found.target.text)));
    }
    this.drawBars();
    this.drawLens();
    this.drawInfluence();
    this.drawHeads();
  }

  drawBars() {
    if (!this.found) return;
    const { temperature, topK, topP } = settings();
    const chances = probabilities(this.found.logits, temperature, topK, topP);
    drawBars(this.find(".bars"), this.found.likeliest, chances, this.found.own, this.found.target.id, (id) => {
      attempt(() => this.look(id));
    });
  }

  drawLens() {
    const rows = this.found.lens.map((layer, i) => {
      const guesses = layer.top.map(({ text, p }) => {
        const guess = make("span", { class: "token", "data-p": p, title: percent(p) }, visible(text));
        guess.style.setProperty("--share", `${Math.round(70 * p)}%`);
        return guess;
      });
      const bar = make("span", { class: "chance" });
      bar.style.width = `${100 * layer.target}%`;
      return make("tr", { "data-target": layer.target }, make("th", {}, i ? `layer ${i - 1}` : "start"),
        make("td", {}, make("div", { class: "guesses" }, ...guesses)),
        make("td", {}, make("div", { class: "track" }, bar)),
        make("td", { class: "number" }, percent(layer.target)));
    });
    this.find(".lens tbody").replaceChildren(...rows);
  }

  drawInfluence() {
    const values = this.found.influence;
    const largest = Math.max(...values.map(Math.abs)) || 1;
    this.find(".influence .text").replaceChildren(...this.seen.map(({ text }, i) => colored(
      text, values[i] < 0 ? "--down" : "--up", Math.abs(values[i]) / largest, values[i])));
    const order = [...values.keys()].sort((a, b) => values[b] - values[a]);
    const name = (i) => `“${visible(this.seen[i].text)}” (${values[i] > 0 ? "+" : "−"}${Math.abs(values[i]).toFixed(2)})`;
    const [most, least] = [order[0], order.at(-1)];
    this.find(".strongest").textContent = [
      values[most] > 0.005 ? `Most for it: ${name(most)}.` : "", values[least] < -0.005 ? `Most against it: ${name(least)}.` : "",
    ].join(" ");
  }

  drawHeads() {
    if (!this.found) return;
    const layer = Number(this.find(".layer").value);
    const { heads, layers } = this.about;
    const count = this.seen.length;
    this.find(".layer-shown").textContent = `${layer} of 0–${layers - 1}`;
    const maps = Array.from({ length: heads }, (_, head) => {
      const start = (layer * heads + head) * count;
      const weights = this.found.attention.subarray(start, start + count);
      const text = make("p", { class: "text" }, ...this.seen.map((token, i) => colored(
        token.text, "--fill", Math.sqrt(weights[i]), weights[i])));
      const most = weights.indexOf(Math.max(...weights));
      return make("figure", { "data-head": head }, make("figcaption", {},
        `head ${head} · most at “${visible(this.seen[most].text)}” (${percent(weights[most])})`), text);
    });
    this.find(".heads .maps").replaceChildren(...maps);
  }
}

/** A token's text as nodes: a line break is shown, and breaks the line. */
function spelled(text) {
  return text.split(/(\n)/).filter(Boolean).map((part) => (
    part === "\n" ? make("span", { class: "break" }, "↵\n") : part));
}

/** A token on a colored background; strength is from 0 to 1. */
function colored(text, color, strength, value) {
  const chip = make("span", { "data-value": value, title: value.toPrecision(3) }, ...spelled(text));
  chip.style.background = `color-mix(in srgb, var(${color}) ${Math.round(75 * strength)}%, transparent)`;
  return chip;
}

// What the user does

/** The settings of the sliders. */
function settings() {
  const found = readSliders((name) => at(name).value);
  for (const name of SETTINGS) at(`${name}-shown`).textContent = found.shown[name];
  return found;
}

/** Choose a token, and in the other model the one at the same place in the text. */
function choose(view, position) {
  const length = (tokens) => tokens.reduce((sum, { text }) => sum + text.length, 0);
  const end = length(view.tokens.slice(0, position + 1));
  for (const other of views) {
    let [k, total] = [-1, 0];
    while (k + 1 < other.tokens.length && total + other.tokens[k + 1].text.length <= end) {
      k += 1;
      total += other.tokens[k].text.length;
    }
    other.position = other === view ? position : Math.max(k, 0);
  }
  attempt(() => Promise.all(views.map((one) => one.look())));
}

/** Read the text, and look at its last token. */
async function readText() {
  const text = at("prompt").value;
  reading?.abort();
  reading = new AbortController();
  if (!text) throw new Error("type a text, at least one character");
  await Promise.all(views.map((view) => view.read(text, reading.signal)));
  await Promise.all(views.map((view) => view.look()));
}

/** Let every model write tokens after its text, until it is stopped. */
async function write(length) {
  const { temperature, topK, topP } = settings();
  const options = { temperature, top_k: topK, top_p: topP, seed: at("seed").valueAsNumber, length };
  if (!Number.isInteger(options.seed) || options.seed < 0) throw new Error("seed: expected a whole number, 0 or more");
  if (!Number.isInteger(length) || length < 1) throw new Error("tokens to write: expected a whole number, 1 or more");
  if (views.some(({ tokens }) => !tokens.length)) throw new Error("type a text, at least one character");
  writing = new AbortController();
  working(true);
  try {
    await Promise.all(views.map((view) => writeOne(view, options, writing.signal)));
  } finally {
    writing = null;
    working(false);
    for (const view of views) view.drawNew();
    for (const view of views) view.position = view.tokens.length - 1;
    await Promise.all(views.map((view) => view.look()));
  }
}

async function writeOne(view, options, signal) {
  const answer = await ask("generate", { model: view.number, ids: view.ids, ...options }, signal);
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error);
    if (!event.end) view.add(event);
  }
}

function working(on) {
  at("stop").disabled = !on;
  at("generate").disabled = at("one").disabled = on;
}

// From the start: all tokens of the prompt, then what is written
async function writeOn() {
  for (const view of views) view.tokens = view.tokens.filter(({ made }) => !made);
  for (const view of views) view.drawTokens();
  await write(at("length").valueAsNumber);
}

// One more token; the seed moves on, so that the next one draws anew
async function writeToken() {
  await write(1);
  at("seed").value = at("seed").valueAsNumber + 1;
}

async function start() {
  const about = await (await ask("models")).json();
  if (about.live) follow();
  await showModels(about.models);
}

/** Show the models. Those that are shown already keep their tokens, and look at them again. */
async function showModels(models) {
  const first = !views.length;
  models.forEach((model, i) => (views[i] ? views[i].describe(model) : views.push(new View(i, model))));
  at("models").classList.toggle("two", views.length > 1);
  at("writing").hidden = !views.length;
  if (writing || !views.length) return;
  if (first) at("prompt").value = models[0].prompt;
  await (first ? readText() : Promise.all(views.map((view) => view.look())));
}

let timer;
at("prompt").addEventListener("input", () => {
  writing?.abort();
  clearTimeout(timer);
  timer = setTimeout(() => attempt(readText), 250);
});
at("writing").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!writing) attempt(writeOn);
});
at("one").addEventListener("click", () => attempt(writeToken));
at("stop").addEventListener("click", () => writing?.abort());
for (const name of SETTINGS) {
  at(name).addEventListener("input", () => {
    settings();
    for (const view of views) view.drawBars();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") writing?.abort();
  if (event.key === "Enter" && event.ctrlKey && !writing) {
    event.preventDefault();
    attempt(writeOn);
  }
});
settings();
attempt(start);
