// The page on step sizes: ScheduleFree+ beside fixed schedules, trained while one looks.

import { controls, element, onceAFrame, short } from "./controls.js";
import { key, line, plot, plotIn } from "./drawing.js";
import { unpackDigits } from "./network.js";
import { METHODS, PLUS, problems, race } from "./races.js";

const { Plot } = globalThis;
const SLICE = 12; // milliseconds of training between two looks at the controls
const PAUSE = 120; // milliseconds of training between two pictures
const LOOKS = {
  [PLUS]: { color: "var(--figure-blue)", width: 3 },
  constant: { color: "var(--figure-orange)", dash: "7 3" },
  "1/sqrt(t)": { color: "var(--figure-green)", dash: "2 2" },
  cosine: { color: "var(--figure-purple)", dash: "10 3 2 3" },
  "warmup-stable-decay": { color: "var(--figure-grey)", dash: "14 4" },
  linear: { color: "var(--figure-red)", dash: "4 2 1 2 1 2" },
};

const root = document.getElementById("step-size");
root.replaceChildren();
const digits = await (await fetch(new URL("../data/digits.json", import.meta.url))).json();
const known = problems(unpackDigits(digits));
let [running, trained, drawings] = [null, "", 0];

/** The last point of a curve at or before the step at which one stops. */
function atStop(method) {
  const { stop } = form.values();
  return running.curves[method].filter(({ k }) => k <= stop).at(-1);
}

/** Start again if anything but the stop has changed, else draw the stop only. */
const update = onceAFrame(() => {
  const { stop, ...settings } = form.values();
  const wanted = JSON.stringify(settings);
  if (wanted !== trained) {
    const longer = trained !== "" && settings.steps !== JSON.parse(trained).steps;
    if (longer) {
      form.limit("stop", settings.steps);
      form.set("stop", settings.steps);
    }
    trained = wanted;
    running = race(known[settings.problem], { ...settings, batch: Number(settings.batch) });
    work(running, 0);
  } else draw();
});

/** Train in slices, until it is done or another race has begun; `drawn` is when there was a picture of it. */
function work(mine, drawn) {
  if (mine !== running) return;
  const more = mine.run(SLICE);
  root.setAttribute("data-done", String(!more));
  const now = performance.now();
  const due = !more || now - drawn > PAUSE;
  if (due) draw();
  if (more) setTimeout(() => work(mine, due ? now : drawn), 0);
}

function draw() {
  table.write(
    Object.fromEntries(
      METHODS.map((method) => {
        const { gamma, loss, accuracy } = atStop(method);
        const right = accuracy === undefined ? "" : `${(100 * accuracy).toFixed(1)} %`;
        return [method, [gamma ?? "", loss, right]];
      }),
    ),
  );
  drawings += 1;
  redrawFrom(0, drawings);
}

/** One picture a turn, so that the hand is never far behind; a newer drawing takes over. */
function redrawFrom(number, drawing) {
  if (drawing !== drawings || number === redraw.length) return;
  redraw[number]();
  setTimeout(() => redrawFrom(number + 1, drawing), 0);
}

function picture(width, { label, value, domain, caption }) {
  const names = METHODS.filter(table.shown).reverse();
  const { stop, steps } = form.values();
  const curves = names.map((name) => [
    name,
    running.curves[name].filter((d) => Number.isFinite(d[value]) && d[value] > 0),
  ]);
  const values = curves.flatMap(([, points]) => points.map((d) => d[value]));
  return plot({
    label: `${caption}, for each line of the table below`,
    width,
    height: Math.max(250, Math.round(width * 0.62)),
    x: { domain: [0, steps], label: "step" },
    y: { type: "log", label, domain: domain(values), ticks: 4, tickFormat: "~g", grid: true },
    marks: [
      curves.map(([name, points]) => line(points, LOOKS[name], { x: "k", y: value })),
      Plot.ruleX([stop], { stroke: "currentColor", strokeWidth: 1.5 }),
    ],
  });
}

const bounded = (least, most) => (values) => [
  Math.max(least, Math.min(...values, most / 10)),
  Math.min(most, Math.max(...values, least * 10)),
];

const pictures = element("div", { class: "figure-pair" });
root.append(pictures);
const form = controls(
  root,
  [
    { name: "problem", label: "Problem", options: Object.keys(known), value: Object.keys(known)[0] },
    { name: "direction", label: "Schedules step along", options: ["Adam", "SGD"], value: "Adam" },
    { name: "peak", label: "Peak step size of the schedules", min: 1e-3, max: 3, value: 0.01, log: true },
    { name: "lr", label: "lr of ScheduleFree+ (a factor)", min: 0.01, max: 3, value: 0.32, log: true },
    { name: "batch", label: "Batch size", options: ["4", "16", "64", "256"], value: "64" },
    { name: "steps", label: "Planned steps", min: 60, max: 600, step: 30, value: 300 },
    { name: "lossScale", label: "Multiply the loss by", min: 1e-3, max: 1e3, step: 0.5, value: 1, log: true },
    { name: "gradientScale", label: "Multiply the gradient alone by", min: 1e-3, max: 1e3, step: 0.5, value: 1, log: true },
    { name: "stop", label: "Stop at step", min: 0, max: 300, value: 300, show: (v) => short(v) },
  ],
  update,
);
const redraw = [
  plotIn(pictures, (width) =>
    picture(width, {
      label: known[form.values().problem].lossName, value: "loss", domain: bounded(0.02, 100), caption: "Loss against the step",
    }),
  ),
  plotIn(pictures, (width) =>
    picture(width, { label: "step size (gamma)", value: "gamma", domain: bounded(1e-5, 10), caption: "Step size against the step" }),
  ),
];
const table = key(
  root,
  "Where you stop",
  METHODS.map((name) => ({ name, look: LOOKS[name] })),
  ["step size", "loss", "right"],
  () => draw(),
);
update();
