"use strict";
// The page that examples/playground.py --export writes: the model is inside, see model.js.

const about = JSON.parse(at("about").textContent);
const model = new GPT(about.config, readWeights(at("weights").textContent, about.shapes));
const tokenizer = about.tokenizer.characters ? new CharTokenizer(about.tokenizer) : new BytePairTokenizer(about.tokenizer);
const LISTED = 12; // tokens that are shown as bars
let ids = []; // of the prompt and of what is written after it
let kept = {}; // the last logits
let decoder = new TextDecoder();
let running = false;

function settings() {
  const found = readSliders((name) => at(name).value);
  for (const [name, text] of Object.entries(found.shown)) at(`${name}-shown`).textContent = text;
  return found;
}

/** Do something; what goes wrong becomes a line on the page. */
async function attempt(action) {
  at("error").hidden = true;
  try {
    await action();
  } catch (error) {
    at("error").textContent = error.message;
    at("error").hidden = false;
  }
}

function label(id) {
  return visible(new TextDecoder().decode(tokenizer.bytes(id)));
}

function readPrompt() {
  running = false;
  ids = tokenizer.encode(at("prompt").value);
  at("written").replaceChildren(make("span", { class: "given" }, at("prompt").value));
  look();
}

/** Show the guess after what there is so far. */
function look() {
  if (!ids.length) throw new Error("type a text, at least one character");
  const { temperature, topK, topP } = settings();
  const logits = nextLogits();
  const own = probabilities(logits, 1, null, null);
  const chances = probabilities(logits, temperature, topK, topP);
  const order = [...own.keys()].sort((a, b) => logits[b] - logits[a] || a - b).slice(0, LISTED);
  const listed = order.map((id) => ({ id, text: label(id) }));
  drawBars(document.querySelector(".bars"), listed, chances, own, null, (id) => { if (!running) take(id); });
  return chances;
}

/** Those of the tokenizer's tokens; a model may have more ids. They are kept for when only a slider moves. */
function nextLogits() {
  const key = ids.join();
  if (kept.key !== key) kept = { key, logits: model.nextLogits(ids).slice(0, about.size) };
  return kept.logits;
}

/** Add a token to the text. A character may need the bytes of several tokens. */
function take(id) {
  ids.push(id);
  at("written").append(decoder.decode(tokenizer.bytes(id), { stream: true }));
  if (running) at("written").scrollTop = at("written").scrollHeight;
  look();
}

async function write(length) {
  const seed = at("seed").valueAsNumber;
  if (!Number.isInteger(seed) || seed < 0) throw new Error("seed: expected a whole number, 0 or more");
  if (!Number.isInteger(length) || length < 1) throw new Error("tokens to write: expected a whole number, 1 or more");
  const random = randomNumbers(seed);
  working(true);
  try {
    for (let i = 0; i < length && running; i += 1) {
      const id = drawToken(look(), random);
      if (id === about.end) break;
      take(id);
      await new Promise((resume) => { setTimeout(resume); });
    }
  } finally {
    working(false);
  }
}

function working(on) {
  running = on;
  at("stop").disabled = !on;
  at("generate").disabled = at("one").disabled = on;
}

async function writeOn() {
  if (running) return;
  decoder = new TextDecoder();
  readPrompt();
  await write(at("length").valueAsNumber);
}

// One more token; the seed moves on, so that the next one draws anew
async function writeToken() {
  await write(1);
  at("seed").value = at("seed").valueAsNumber + 1;
}

at("prompt").value = about.prompt;
at("prompt").addEventListener("input", () => attempt(readPrompt));
at("writing").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(writeOn);
});
at("one").addEventListener("click", () => attempt(writeToken));
at("stop").addEventListener("click", () => { running = false; });
for (const name of ["temperature", "top_k", "top_p"]) at(name).addEventListener("input", () => attempt(look));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running = false;
  if (event.key === "Enter" && event.ctrlKey) {
    event.preventDefault();
    attempt(writeOn);
  }
});
attempt(readPrompt);
