// The page on three sequences: their paths over the level lines of the loss, and the loss of each over the steps.

import { scheduleFreeSgd, sgdWithMean } from "./averaging.js";
import { controls, element, onceAFrame } from "./controls.js";
import { key, line, plot, plotIn } from "./drawing.js";
import { lossAndGradient, N_SAMPLES, samples, START, surface } from "./least_squares.js";
import { batches } from "./random.js";

const { Plot } = globalThis;
const BATCH = 4;
const LOOKS = {
  x: { color: "var(--figure-blue)", width: 3 },
  y: { color: "var(--figure-orange)", dash: "7 3" },
  z: { color: "var(--figure-green)", dash: "2 2", width: 1.2 },
  "SGD, last iterate": { color: "var(--figure-purple)", dash: "1 3" },
  "SGD, mean of the iterates": { color: "var(--figure-grey)", dash: "10 3 2 3" },
};
const MARKS = {
  x: { symbol: "circle", dx: -12, dy: -12 },
  y: { symbol: "square", dx: 12, dy: 14 },
  z: { symbol: "triangle", dx: 12, dy: -10 },
};
const X = [-2.2, 3.8];
const Y = [-0.8, 3.4];

const root = document.getElementById("interpolation");
root.replaceChildren();
let state;

/** Everything that the pictures show, from the values of the controls. */
function iterate({ steps, gamma, beta, annealSteps, condition, noise, draw }) {
  const rows = samples({ condition, noise, seed: draw });
  const whole = surface(rows);
  const pick = batches(1000 + draw, N_SAMPLES, BATCH);
  const picked = Array.from({ length: steps }, () => pick().map((i) => rows[i]));
  const gradient = (point, k) => lossAndGradient(picked[k], point).gradient;
  const path = scheduleFreeSgd(START, gradient, { steps, gamma, beta, annealSteps });
  const sgd = sgdWithMean(START, gradient, { steps, gamma });
  const excess = (w) => Math.max(whole.loss(w) - whole.loss(whole.minimum), 1e-9);
  const losses = (points) => points.map((w, k) => ({ k, loss: excess(w) }));
  return {
    whole,
    path,
    losses: {
      x: losses(path.map((p) => p.x)),
      y: losses(path.map((p) => p.y)),
      z: losses(path.map((p) => p.z)),
      "SGD, last iterate": losses(sgd.map((p) => p.last)),
      "SGD, mean of the iterates": losses(sgd.map((p) => p.mean)),
    },
  };
}

/** The ellipses on which the loss is `excess` above its minimum, for some values of it. */
function levelLines({ minimum, curvatures, angle }) {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return [0.02, 0.1, 0.4, 1, 2, 4].map((excess) =>
    Array.from({ length: 91 }, (_, i) => {
      const turn = (i / 90) * 2 * Math.PI;
      const across = Math.sqrt((2 * excess) / curvatures[1]) * Math.cos(turn);
      const along = Math.sqrt((2 * excess) / curvatures[0]) * Math.sin(turn);
      return [minimum[0] + cos * across - sin * along, minimum[1] + sin * across + cos * along];
    }),
  );
}

function drawPaths(width) {
  const { whole, path } = state;
  const end = path[path.length - 1];
  const shown = ["z", "y", "x"].filter(table.shown);
  const ends = shown.map((name) => ({ name, at: end[name] }));
  return plot({
    label: "Paths of x, y and z over the level lines of the loss",
    width,
    height: Math.round((width * (Y[1] - Y[0])) / (X[1] - X[0])) + 40,
    marginLeft: 30,
    x: { domain: X, label: "first weight" },
    y: { domain: Y, label: "second weight" },
    marks: [
      levelLines(whole).map((points) => Plot.line(points, { stroke: "currentColor", strokeOpacity: 0.22, clip: true })),
      Plot.dot([whole.minimum], { symbol: "times", r: 5, stroke: "currentColor", strokeWidth: 2 }),
      shown.map((name) => line(path.map((p) => p[name]), LOOKS[name])),
      Plot.line([end.x, end.z], { stroke: "currentColor", strokeWidth: 1, clip: true }),
      ends.map(({ name, at }) =>
        Plot.dot([at], { symbol: MARKS[name].symbol, r: 6, fill: LOOKS[name].color, stroke: "var(--figure-paper)", clip: true }),
      ),
      ends.map(({ name, at }) =>
        Plot.text([at], {
          text: [name], dx: MARKS[name].dx, dy: MARKS[name].dy, fontSize: 15, fontWeight: "bold",
          fill: "currentColor", stroke: "var(--figure-paper)", strokeWidth: 4, clip: true,
        }),
      ),
    ],
  });
}

function drawLosses(width) {
  const names = Object.keys(LOOKS).filter(table.shown).reverse();
  return plot({
    label: "Loss above its minimum against the step, for each line of the table below",
    width,
    height: Math.max(260, Math.round(width * 0.7)),
    x: { label: "step" },
    y: { type: "log", label: "loss above the minimum", ticks: 4, tickFormat: "~g", domain: lossDomain(names), grid: true },
    marks: names.map((name) => line(state.losses[name], LOOKS[name], { x: "k", y: "loss" })),
  });
}

/** Of what is shown; a run that flies apart is cut off. */
function lossDomain(names) {
  const values = names.flatMap((name) => state.losses[name].map((d) => d.loss)).filter(Number.isFinite);
  return [Math.max(1e-6, Math.min(...values, 1)), Math.min(1e3, Math.max(...values, 1))];
}

const update = onceAFrame(() => {
  state = iterate({ ...form.values(), draw });
  const last = (name) => state.losses[name][state.losses[name].length - 1].loss;
  table.write(Object.fromEntries(Object.keys(LOOKS).map((name) => [name, [last(name)]])));
  redraw.forEach((again) => again());
});

let draw = 1;
const pictures = element("div", { class: "figure-pair" });
root.append(pictures);
const form = controls(
  root,
  [
    { name: "steps", label: "Steps", min: 1, max: 500, value: 300 },
    { name: "gamma", label: "Step size (gamma)", min: 0.02, max: 2, value: 0.4, log: true },
    { name: "beta", label: "beta", min: 0, max: 0.98, step: 0.01, value: 0.9 },
    {
      name: "annealSteps", label: "Steps until beta is 0.965", min: 0, max: 500, step: 10, value: 0,
      show: (v) => (v === 0 ? "no annealing" : String(v)),
    },
    { name: "condition", label: "Condition (length of the valley)", min: 1, max: 300, value: 30, log: true },
    { name: "noise", label: "Noise", min: 0, max: 2, step: 0.05, value: 0.5 },
  ],
  update,
);
const again = element("button", { type: "button" }, "Draw other samples");
again.addEventListener("click", () => {
  draw += 1;
  update();
});
root.append(again);
const redraw = [plotIn(pictures, drawPaths), plotIn(pictures, drawLosses)];
const table = key(
  root,
  "Loss above the minimum, after the last step",
  Object.entries(LOOKS).map(([name, look]) => ({ name, look })),
  ["loss"],
  update,
);
update();
