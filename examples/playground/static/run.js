"use strict";
// The part of the page that follows a run: its curves, and the attention and samples of its estimates.

const CHARTS = [
  { title: "loss", lines: [["loss", "one faint", ""], ["train_loss", "one", "training"], ["val_loss", "two-line", "validation"]] },
  { title: "learning rate", lines: [["learning_rate", "one", ""]] },
  { title: "gradient norm", lines: [["grad_norm", "one", ""]] },
];
const MOST_POINTS = 400; // of a line
let rows = [];
let estimates = [];
let chosenStep = Infinity; // of the slider, which goes along with the run while it is at its end

/** Follow the run until the server ends. */
async function follow() {
  at("run").hidden = false;
  for await (const news of newsOfTheRun()) {
    if (news.reset) [rows, estimates] = [[], []];
    if (news.rows) rows.push(...news.rows);
    if (news.rows || news.reset) drawCharts();
    if (news.estimate) await addEstimate(news.estimate);
  }
  at("waiting").hidden = false;
  at("waiting").textContent = "The run has ended, or its server has.";
}

async function* newsOfTheRun() {
  try {
    yield* events(await ask("run"));
  } catch { /* the connection was cut */ }
}

async function addEstimate(estimate) {
  estimates.push({ ...estimate, attention: floats(estimate.attention) });
  at("step").max = estimates.length - 1;
  at("step").value = estimates.findLastIndex(({ step }) => step <= chosenStep);
  at("waiting").hidden = true;
  at("history").hidden = false;
  drawEstimate();
  await attempt(async () => showModels((await (await ask("models")).json()).models));
}

function drawCharts() {
  at("charts").replaceChildren(...CHARTS.map(({ title, lines }) => {
    const caption = make("figcaption", {}, title);
    const drawn = lines.map(([column, look, name]) => {
      const points = thinned(rows.filter((row) => column in row).map((row) => [row.iteration, row[column]]));
      if (points.length && !look.includes("faint")) {
        caption.append(make("span", { class: look, "data-column": column },
          ` ${name} ${shortNumber(points.at(-1)[1])}`));
      }
      return { points, look };
    });
    return make("figure", {}, caption, chart(drawn));
  }));
}

/** At most MOST_POINTS points: the mean of each stretch. */
function thinned(points) {
  const size = Math.ceil(points.length / MOST_POINTS);
  if (size <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / size) }, (_, i) => {
    const stretch = points.slice(i * size, (i + 1) * size);
    return [stretch.at(-1)[0], stretch.reduce((sum, [, y]) => sum + y, 0) / stretch.length];
  });
}

function shortNumber(value) {
  return value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(1) : value.toPrecision(3);
}

function draw(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Lines over the steps, with the smallest and the largest value at the axis. */
function chart(lines) {
  const [width, height, left, bottom] = [320, 150, 46, 18];
  const all = lines.flatMap(({ points }) => points);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  if (!all.length) return picture;
  const [low, high] = [Math.min(...all.map(([, y]) => y)), Math.max(...all.map(([, y]) => y))];
  const end = Math.max(...all.map(([x]) => x), 1);
  const place = ([x, y]) => [
    left + ((width - left - 6) * x) / end,
    6 + (height - bottom - 12) * (high > low ? (high - y) / (high - low) : 0.5),
  ];
  picture.append(
    draw("path", { class: "axis", d: `M${left} 2V${height - bottom}H${width - 2}` }),
    draw("text", { x: left - 5, y: 14, "text-anchor": "end" }, shortNumber(high)),
    draw("text", { x: left - 5, y: height - bottom - 2, "text-anchor": "end" }, shortNumber(low)),
    draw("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, `step ${end.toLocaleString("en")}`),
  );
  for (const { points, look } of lines) {
    picture.append(draw("polyline", { class: look, points: points.map((point) => place(point).join()).join(" ") }));
    if (points.length && points.length < 12) {
      for (const [x, y] of points.map(place)) picture.append(draw("circle", { class: look, cx: x, cy: y, r: 3 }));
    }
  }
  return picture;
}

/** The sample, and the attention of every head of a layer, at the estimate that the slider shows. */
function drawEstimate() {
  const estimate = estimates[Number(at("step").value)];
  if (!estimate) return;
  const { heads, layers, labels, attention } = estimate;
  const T = labels.length;
  if (Number(at("run-layer").max) !== layers - 1) at("run-layer").max = layers - 1;
  const layer = Number(at("run-layer").value);
  at("step-shown").textContent = estimate.step.toLocaleString("en");
  at("run-layer-shown").textContent = `${layer} of 0–${layers - 1}`;
  at("sample").textContent = estimate.sample;
  at("labels").textContent = visible(labels.join(""));
  const ink = getComputedStyle(document.body).getPropertyValue("--fill").trim();
  at("maps").replaceChildren(...Array.from({ length: heads }, (_, head) => {
    const start = (layer * heads + head) * T * T;
    const canvas = make("canvas", { width: T, height: T });
    const pen = canvas.getContext("2d");
    pen.fillStyle = ink;
    for (let i = 0; i < T * T; i += 1) {
      pen.globalAlpha = Math.sqrt(Math.min(attention[start + i], 1));
      pen.fillRect(i % T, Math.floor(i / T), 1, 1);
    }
    return make("figure", {}, make("figcaption", {}, `head ${head}`), canvas);
  }));
}

at("step").addEventListener("input", ({ target }) => {
  chosenStep = target.value === target.max ? Infinity : estimates[Number(target.value)].step;
  drawEstimate();
});
at("run-layer").addEventListener("input", drawEstimate);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawEstimate);
