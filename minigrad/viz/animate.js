"use strict";
// Plays the steps in the JSON of the page. `animate.py` says what they are: boxes, edges, rules, steps and arrays.
const data = JSON.parse(document.getElementById("data").textContent);
const { boxes, edges, rules, steps, arrays } = data;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const find = id => document.getElementById(id);

/** An element with attributes and children; the children are elements or text. */
function make(tag, attributes = {}, ...children) {
  const svg = /^(svg|g|rect|text|path|defs|marker)$/.test(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter(child => child !== null && child !== ""));
  return element;
}

// Text

const GREEK = { alpha: "α", beta: "β", gamma: "γ", delta: "δ", eps: "ε", theta: "θ", mu: "μ", pi: "π", sigma: "σ", phi: "φ", Phi: "Φ" };
const SCRIPT = /((?<![A-Za-z_])d?(?:[A-Za-zα-ωΑ-Ω∑]\u0302?|loss)|[)\]\d])([_^])(\([^()]*(?:\([^()]*\)[^()]*)*\)|-?[A-Za-z0-9]+)/g;

/** A formula as the docstrings write it, typeset: x_i, e^(x_i), x_hat, mu, g b^T. */
function math(text) {
  const symbols = text
    .replace(/([A-Za-z]+)_hat\b/g, (_, name) => `${GREEK[name] ?? name}\u0302`)
    .replace(/(?<![A-Za-z])(d?)([A-Za-z]{2,5})(?![a-z])/g, (all, d, name) => (name in GREEK ? d + GREEK[name] : all))
    .replace(/\bsum_/g, "∑_").replace(/sqrt\b/g, "√").replace(/->/g, "→").replace(/(?<!\w)-|(?<=\b\w)-(?=\w\b)/g, "−");
  const element = make("span", { class: "math" });
  let place = 0;
  for (const found of symbols.matchAll(SCRIPT)) {
    const inside = found[3].startsWith("(") ? found[3].slice(1, -1) : found[3];
    element.append(symbols.slice(place, found.index) + found[1], make(found[2] === "_" ? "sub" : "sup", {}, ...math(inside).childNodes));
    place = found.index + found[0].length;
  }
  element.append(symbols.slice(place));
  return element;
}

/** A sentence in which `code` and $formulas$ are marked. */
function sentence(text) {
  return text.split(/(`[^`]*`|\$[^$]*\$)/).map(part =>
    part.startsWith("`") ? make("code", {}, part.slice(1, -1)) : part.startsWith("$") ? math(part.slice(1, -1)) : part);
}

/** Lines of a docstring: a string is a paragraph, a list holds formulas and remarks on them. */
function written(lines, kind = "") {
  return lines.map(line => typeof line === "string"
    ? make("p", { class: kind }, ...line.split(/(`[^`]*`)/).map(part => part.startsWith("`") ? make("code", {}, part.slice(1, -1)) : math(part)).map(part => { part.style.whiteSpace = "normal"; return part; }))
    : make("div", { class: `formulas ${kind}` }, make("div", {}, ...line.map(cell => / = |^[\w^]+$/.test(cell) ? math(cell) : make("span", { class: "remark" }, ...math(cell).childNodes)))));
}

/** A number with four digits, or fewer; text for one that is not finite. */
const short = (value, digits = 4) => typeof value === "string" ? value : String(Number.isInteger(value) ? value : parseFloat(value.toPrecision(digits))).replace("-", "−");
const shapeOf = shape => shape.length === 0 ? "scalar" : shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;

// Arrays

function heated(element, value, top) {
  if (typeof value !== "number") element.className = "odd";
  else if (value !== 0) element.className = value > 0 ? "plus" : "minus";
  element.style.setProperty("--heat", Math.round(100 * Math.abs(value) / top));
  return element;
}

/** An array as numbers, or as a heat map if it is large or wide. */
function view(index) {
  const array = arrays[index], { shape, values, range = [0, 0] } = array;
  const top = Math.max(...range.map(Number).map(Math.abs)) || 1;
  const columns = values ? shape.at(-1) ?? 1 : array.grid[1];
  const rows = values ? values.length / columns || 0 : array.grid[0];
  const about = `${shapeOf(shape)} ${array.dtype}`;
  if (values && shape.length === 0) return make("b", { class: "scalar", title: `${values[0]} ${array.dtype}` }, short(values[0]));
  const between = `from ${short(range[0])} to ${short(range[1])}`;
  if (values && columns <= 8 && rows <= 8) {
    const cell = (_, i) => heated(make("td", { title: values[i] }, short(values[i], columns > 4 ? 3 : 4)), values[i], 2.2 * top);
    const row = (_, r) => make("tr", {}, ...Array.from({ length: columns }, (_, c) => cell(_, r * columns + c)));
    const table = make("table", columns > 6 ? { class: "tight" } : {}, ...Array.from({ length: rows }, row));
    return make("div", { class: "array" }, make("div", { class: "scroll" }, table), make("div", { class: "about" }, about));
  }
  const codes = values ?? Array.from(atob(array.cells), c => (c.charCodeAt(0) << 24) >> 24).map(code => code === -128 ? "nan" : code);
  const [tall, broad] = array.block ?? [1, 1];
  const cells = codes.map((code, i) => heated(make("i", values ? { title: code } : {}), code, values ? top : 127));
  const size = Math.max(4, Math.min(14, Math.floor(208 / columns)));
  const style = `grid-template-columns: repeat(${columns}, var(--cell)); --cell: ${size}px; --tall: ${rows > 4 ? size : 14}px`;
  const heat = make("div", { class: "heat", style, role: "img", "aria-label": `${about}, ${between}` }, ...cells);
  const sampled = tall * broad > 1 ? ` Each cell shows the largest of ${tall} × ${broad} numbers, by magnitude.` : "";
  return make("div", { class: "array" }, make("div", { class: "scroll" }, heat), make("div", { class: "about" }, `${about}, ${between}.${sampled}`));
}

// The graph

const HALF = box => (box.code ? 29 : 21);
const svg = make("svg", { width: data.size[0], height: data.size[1], viewBox: `0 0 ${data.size.join(" ")}` });

function marker(id, color) {
  const head = make("path", { d: "M0 0 8 4 0 8z", style: `fill: var(${color})` });
  return make("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" }, head);
}

/** Where edges end at a box: beside each other, in the order of where they come from; `[edges that share a place, x]`. */
function ports(groups, box, other) {
  const sorted = [...groups].sort(([a], [b]) => other(a) - other(b)), apart = Math.min(18, (box.width - 16) / groups.length);
  return sorted.map((group, i) => [group, box.at[0] + (i - (groups.length - 1) / 2) * apart]);
}

function drawGraph() {
  svg.append(make("defs", {}, marker("down", "--wire"), marker("up", "--accent")));
  for (const edge of edges) edge.bends = boxes[edge.from].trunk.filter(([, y]) => y < boxes[edge.to].at[1]);
  boxes.forEach((box, i) => {
    const into = edges.filter(edge => edge.to === i), out = edges.filter(edge => edge.from === i);
    const near = out.filter(edge => !edge.bends.length).map(edge => [edge]), far = out.filter(edge => edge.bends.length);
    const ends = ports(into.map(edge => [edge]), box, edge => (edge.bends.at(-1) ?? boxes[edge.from].at)[0]);
    const starts = ports(far.length ? [...near, far] : near, box, edge => (edge.bends[0] ?? boxes[edge.to].at)[0]);
    box.uses = out.filter(edge => edge.to !== boxes.length - 1).length;
    for (const [[edge], x] of ends) edge.end = [x, box.at[1] - HALF(box)];
    for (const [group, x] of starts) for (const edge of group) edge.start = [x, box.at[1] + HALF(box)];
  });
  for (const edge of edges) {
    const points = [edge.start, ...edge.bends, edge.end];
    let d = `M${points[0]}`;
    for (let i = 1; i < points.length; i++) {
      const [[x, y], [u, v]] = [points[i - 1], points[i]], middle = (y + v) / 2;
      d += `C${x} ${middle} ${u} ${middle} ${u} ${v}`;
    }
    edge.path = make("path", { class: "edge", d });
    edge.label = make("text", { class: "label" });
    svg.append(edge.path);
  }
  boxes.forEach((box, i) => {
    const lines = [["", box.title], ["code", box.code], ["small", box.small]].filter(([, text]) => text);
    const texts = lines.map(([kind, text], n) => make("text", { class: kind, y: (n - (lines.length - 1) / 2) * 16 + 4.5 }, text));
    box.line = texts.at(-1);
    box.badge = make("text", { class: "badge", x: box.width / 2 + 4, y: -HALF(box) + 4 });
    const rect = make("rect", { x: -box.width / 2, y: -HALF(box), width: box.width, height: 2 * HALF(box), rx: box.kind === "operation" ? 9 : 3 });
    const said = [box.title, box.small, box.file, box.text].filter(Boolean).join(", ");
    const place = `translate(${box.at})`;
    box.group = make("g", { transform: place, tabindex: 0, role: "button", "aria-label": said }, rect, ...texts, box.badge);
    const jump = () => go(Math.max(steps.findIndex(step => step.box === i), steps.findIndex(step => box.kind !== "operation" && step.sent.some(message => message.to === i))));
    box.group.addEventListener("click", jump);
    box.group.addEventListener("keydown", event => event.key === "Enter" && jump());
    for (const on of ["pointerenter", "focus"]) box.group.addEventListener(on, () => showTip(box));
    for (const off of ["pointerleave", "blur"]) box.group.addEventListener(off, () => (find("tip").hidden = true));
    svg.append(box.group);
  });
  svg.append(...edges.map(edge => edge.label));
  find("graph").append(svg);
}

/** A line of source code with the call in it marked. */
function sourceLine(box) {
  const [start, end] = box.span;
  return [box.text.slice(0, start), make("mark", {}, box.text.slice(start, end)), box.text.slice(end)];
}

function showTip(box) {
  const first = edges.find(edge => boxes[edge.from] === box && boxes[edge.to].text);
  const line = box.text ? box : first && boxes[first.to];
  const title = make("b", {}, box.title), where = line ? ` ${line === box ? "" : "first used in "}${line.file}` : "";
  find("tip").replaceChildren(title, where, line ? make("pre", {}, ...sourceLine(line)) : "");
  find("tip").hidden = false;
  const place = box.group.getBoundingClientRect(), tip = find("tip").getBoundingClientRect();
  const left = Math.max(8, Math.min(place.left, innerWidth - tip.width - 8));
  const top = place.bottom + tip.height + 12 < innerHeight ? place.bottom + 6 : place.top - tip.height - 6;
  Object.assign(find("tip").style, { left: `${left}px`, top: `${Math.max(4, top)}px` });
}

// One step

let now = 0, timer = null;

function paintGraph(step) {
  const reached = boxes.map(() => 0), sum = [], done = new Set(), carried = new Set();
  for (const past of steps.slice(0, now + 1)) {
    done.add(past.box);
    for (const message of past.sent.filter(message => "array" in message)) {
      reached[message.to]++;
      sum[message.to] = arrays[message.after ?? message.array];
      carried.add(`${past.box} ${message.argument}`);
    }
  }
  const last = edges.at(-1);
  [reached[last.from], sum[last.from]] = [reached[last.from] + 1, arrays[steps[0].arrived[0][0]]];
  const sent = new Map(step.sent.filter(message => "array" in message).map(message => [message.argument, message]));
  boxes.forEach((box, i) => {
    const { uses } = box;
    const leaf = box.kind === "leaf" || box.kind === "parameter";
    const met = step.sent.some(message => message.to === i && "before" in message);
    const state = i === step.box ? "active" : done.has(i) ? "done" : reached[i] ? (leaf && reached[i] === uses ? "done" : "reached") : "later";
    box.group.setAttribute("class", `box ${box.kind} ${state} ${met ? "met" : ""}`);
    const number = box.shapes.length === 1 && sum[i]?.shape.length === 0 ? sum[i].values[0] : null;
    box.line.textContent = number === null ? box.small : `grad ${short(number)}`;
    box.badge.textContent = uses > 1 && reached[i] && !(done.has(i) && !leaf) ? `${reached[i]} of ${uses}` : "";
  });
  for (const edge of edges) {
    const message = edge.to === step.box ? (edge === last ? {} : sent.get(edge.argument)) : null;
    const gone = edge === last ? now > 0 : carried.has(`${edge.to} ${edge.argument}`);
    edge.path.setAttribute("class", `edge ${message ? "flow" : gone ? "carried" : ""}`);
    edge.path.setAttribute("marker-end", message || gone ? "none" : "url(#down)");
    edge.path.setAttribute("marker-start", message || gone ? "url(#up)" : "none");
    edge.label.textContent = message?.letter ? `dL/d${math(message.letter).textContent}` : "";
    if (message?.letter) {
      const length = edge.path.getTotalLength(), near = edge.bends.length ? length - 72 : Math.min(length / 2, 34);
      const at = edge.path.getPointAtLength(near);
      edge.label.setAttribute("x", at.x + 7);
      edge.label.setAttribute("y", at.y + 4);
    }
  }
  const box = boxes[step.box ?? boxes.length - 1], graph = find("graph"), scale = svg.clientWidth / data.size[0] || 1;
  const top = box.at[1] * scale - graph.clientHeight * 0.6, left = box.at[0] * scale - graph.clientWidth / 2;
  if (step.box !== null) graph.scrollTo({ top, left, behavior: still.matches ? "auto" : "smooth" });
}

/** A name and its array; a number stands beside the name. */
function value(name, index, ...remarks) {
  const array = view(index), scalar = array.className === "scalar";
  const head = make("div", { class: "name" }, scalar ? make("span", {}, name, " = ", array) : name, ...remarks);
  return make("div", { class: "value" }, head, scalar ? "" : array);
}
const note = (...text) => make("span", { class: "to" }, ...text);
const toBox = (word, i) => note(`${word} `, make("code", {}, boxes[i].name));

function panelOf(step) {
  if (step.box === null) return [
    make("h2", {}, "The gradients of the leaves"),
    make("div", { class: "values" }, ...step.grads.map(([leaf, array]) => value(make("code", {}, `${boxes[leaf].name}.grad`), array))),
  ];
  const box = boxes[step.box], heading = make("h2", {}, box.title);
  if (box.kind === "result") return [heading, value(make("code", {}, box.name), box.array), make("h3", {}, "The gradient to start from"), value(math("dL/dL"), step.arrived[0][0])];
  return [
    heading,
    box.module ? make("p", { class: "where" }, `in ${box.module}`) : "",
    box.text ? make("div", { class: "line" }, make("b", {}, box.file), ...sourceLine(box)) : "",
    ...forwardOf(step, box), ...inputsOf(step), ...ruleOf(rules[box.rule]), ...sentOf(step), freedOf(step),
  ];
}

function forwardOf(step, box) {
  const inputs = edges.filter(edge => edge.to === step.box).flatMap((edge, i) => [
    i ? ", " : "with ", math(box.letters[edge.argument]), " = ", make("code", {}, boxes[edge.from].name), ` ${shapeOf(boxes[edge.from].shapes[edge.output])}`.replace(" scalar", "")]);
  return [make("h3", {}, "Forward"), ...written(rules[box.rule].forward, "given"), make("p", { class: "note" }, ...inputs)];
}

function inputsOf({ arrived, saved, kept }) {
  const gradients = arrived.map(([array, times], i) => {
    const said = times > 1 ? `arrives: the sum of ${times}` : times ? "arrives" : "no gradient reached this output: zeros";
    const number = arrived.length > 1 ? `_${i + 1}` : "";
    return value(math(`g${number} = dL/dy${number}`), array, note(said));
  });
  const arrays = saved.map(([name, array]) => value(math(name), array, note("saved by the forward")));
  const rest = kept.length ? make("p", { class: "note" }, "Also kept: ", make("span", { class: "kept" }, kept.join(", "))) : "";
  return [make("h3", {}, "In"), make("div", { class: "values" }, ...gradients, ...arrays), saved.length || rest ? rest : make("p", { class: "note" }, "The forward saved nothing.")];
}

function ruleOf({ backward, code }) {
  const details = make("details", backward.length ? {} : { open: "" }, make("summary", {}, "The code that runs"), make("pre", {}, code));
  return [make("h3", {}, "Rule"), ...written(backward), code ? details : ""];
}

function sentOf(step) {
  return [make("h3", {}, "Out"), make("div", { class: "values" }, ...step.sent.map(message => {
    if (!("array" in message)) return make("p", { class: "note" }, "none ", toBox("for", message.to));
    const formula = message.formula.startsWith("dL") ? message.formula : `dL/d${message.letter}`;
    const slope = formula === message.formula || !message.formula ? "" : note("by ", math(message.formula));
    const sent = value(math(formula), message.array, toBox("to", message.to), slope);
    if (!("before" in message)) return sent;
    const there = boxes[message.to].kind === "operation" ? "there already" : "in its grad already", sign = text => make("span", { class: "sign" }, text);
    const [before, added, after] = [message.before, message.array, message.after].map(view);
    const sum = after.className === "scalar" ? [note(there), before, sign("+="), added, sign("→"), after] : [note(there), before, note("after ", sign("+=")), after];
    sent.append(make("div", { class: "sum" }, ...sum));
    return sent;
  }))];
}

function freedOf(step) {
  const names = step.saved.flatMap(([name], i) => [i ? ", " : "", math(name)]), several = step.saved.length > 1;
  if (!names.length) return "";
  const [before, after] = step.freed ? ["After this step ", several ? " are freed." : " is freed."] : ["", several ? " stay saved." : " stays saved."];
  return make("p", { class: "freed" }, before, ...names, after);
}

const size = bytes => bytes < 1000 ? `${bytes} bytes` : bytes < 1e6 ? `${(bytes / 1e3).toPrecision(3)} kB` : `${(bytes / 1e6).toPrecision(3)} MB`;

function go(step) {
  now = Math.max(0, Math.min(steps.length - 1, step));
  find("slider").value = now;
  find("slider").setAttribute("aria-valuetext", `step ${now} of ${steps.length - 1}`);
  find("count").textContent = `${now} of ${steps.length - 1}`;
  const held = data.saved ? `; ${size(steps[now].held)} of ${size(data.saved)} saved for the backward are still held` : "";
  find("about").textContent = data.about + held;
  find("words").replaceChildren(...sentence(steps[now].words));
  find("panel").replaceChildren(...panelOf(steps[now]).filter(Boolean));
  find("panel").scrollTop = 0;
  for (const id of ["first", "back"]) find(id).disabled = now === 0;
  for (const id of ["next", "last"]) find(id).disabled = now === steps.length - 1;
  if (now === steps.length - 1) play(false);
  paintGraph(steps[now]);
}

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => go(now + 1), 2000) : null;
  find("play").classList.toggle("on", on);
  find("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (on) go(now === steps.length - 1 ? 0 : now + 1);
}

// Controls

const moves = { first: () => 0, back: () => now - 1, next: () => now + 1, last: () => steps.length - 1 };
for (const [id, to] of Object.entries(moves)) find(id).addEventListener("click", () => { play(false); go(to()); });
find("play").addEventListener("click", () => play(timer === null));
find("slider").addEventListener("input", event => { play(false); go(Number(event.target.value)); });
find("fit").addEventListener("click", () => {
  const whole = find("fit").getAttribute("aria-pressed") === "false", graph = find("graph");
  const scale = whole ? Math.max(0.25, Math.min(1, graph.clientWidth / data.size[0], graph.clientHeight / data.size[1])) : 1;
  find("fit").setAttribute("aria-pressed", whole);
  svg.setAttribute("width", data.size[0] * scale);
  svg.setAttribute("height", data.size[1] * scale);
  paintGraph(steps[now]);
});
const KEYS = { ArrowLeft: "back", ArrowRight: "next", Home: "first", End: "last", " ": "play" };
document.addEventListener("keydown", event => {
  const id = KEYS[event.key], on = event.target;
  if (!id || event.ctrlKey || event.metaKey || event.altKey) return;
  if (on.tagName === "INPUT" && event.key !== " ") return; // the slider moves by itself
  if ((on.tagName === "BUTTON" || on.tagName === "SUMMARY") && event.key === " ") return; // presses that button
  event.preventDefault();
  find(id).click();
});

find("title").textContent = data.title;
find("slider").max = steps.length - 1;
drawGraph();
go(0);
