// The page that foretells a loss: shipped runs, or a file of the reader's own, which stays in the page.

import { controls, element, onceAFrame, short } from "./controls.js";
import { plot, plotIn } from "./drawing.js";
import { CannotForecast, forecast } from "./forecast.js";
import { readMetrics } from "./metrics_files.js";

const { Plot } = globalThis;
const MINIMUM = 48; // points that a forecast needs
const DRAWN = 1500; // points at most
const LARGEST_FILE = 50e6; // bytes
const OWN = "your own metrics";

const root = document.getElementById("predictor");
root.replaceChildren();
const runs = await (await fetch(new URL("../data/curves.json", import.meta.url))).json();
let own = null;
let [shown, scale] = [null, null];

const curveOf = (name) => (name === OWN ? own : runs.find((run) => run.name === name));

/** Mean of the loss over the last twentieth before `step`: what happened there, without the noise of a batch. */
function happened(curve, step) {
  const last = curve.step.at(-1);
  if (step > last) return null;
  const near = curve.loss.filter((_, i) => curve.step[i] <= step && curve.step[i] > step - 0.05 * last);
  return near.length > 0 ? near.reduce((a, b) => a + b) / near.length : null;
}

/** All that is shown, from the values of the controls. */
function foretell() {
  const { run, stop, until, rates } = form.values();
  const curve = curveOf(run);
  const length = curve.step.length;
  const seen = Math.max(1, Math.round(stop * length));
  const part = {
    step: curve.step.slice(0, seen),
    loss: curve.loss.slice(0, seen),
    rate: rates === "heeded" ? curve.rate?.slice(0, seen) : undefined,
  };
  const target = Math.round(until * curve.step.at(-1));
  shown = { curve, part, target, found: null, message: "" };
  try {
    shown.found = forecast(part);
  } catch (error) {
    if (!(error instanceof CannotForecast)) throw error;
    shown.message = error.message;
  }
}

function write() {
  const { curve, part, target, found, message } = shown;
  const there = happened(curve, target);
  status.textContent = found ? "" : `No forecast. ${message}`;
  const rows = [
    ["training stops at step", String(Math.round(part.step.at(-1)))],
    ["foretold step", String(target)],
  ];
  if (found) {
    const [low, high] = found.interval(target);
    const [least, most] = found.limitInterval();
    rows.push(
      ["loss foretold", found.at(target).toFixed(3)],
      ["nine times of ten between", `${low.toFixed(3)} and ${high.toFixed(3)}`],
      ["what then happened", there === null ? "not known yet" : `${there.toFixed(3)}${there < low || there > high ? ", outside" : ", inside"}`],
      ["where it goes in the end, c", `${found.fit.c.toFixed(3)} (${least.toFixed(3)} to ${most.toFixed(3)})`],
      ["the curve", `${short(found.fit.a)} / sqrt(t + ${short(found.fit.b)}) + ${short(found.fit.c)}`],
    );
  }
  table.replaceChildren(
    ...rows.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))),
  );
}

/** Every so many points that at most DRAWN are left. */
function thinned(curve) {
  const every = Math.ceil(curve.step.length / DRAWN);
  return curve.step.flatMap((step, i) => (i % every === 0 && step > 0 ? [{ step, loss: curve.loss[i] }] : []));
}

function draw(width) {
  const { curve, part, target, found } = shown;
  const stop = part.step.at(-1);
  const points = thinned(curve).filter((d) => Number.isFinite(d.loss));
  const end = Math.max(target, curve.step.at(-1)) * 1.05;
  const first = Math.max(points[0].step, curve.step.at(-1) / 100);
  const marks = [
    Plot.dot(points.filter((d) => d.step <= stop), { x: "step", y: "loss", r: 1.6, fill: "currentColor", fillOpacity: 0.45, clip: true }),
    Plot.dot(points.filter((d) => d.step > stop), { x: "step", y: "loss", r: 1.8, stroke: "currentColor", strokeOpacity: 0.35, strokeWidth: 0.8, clip: true }),
    Plot.ruleX([stop], { stroke: "currentColor", strokeWidth: 1.5 }),
    Plot.text([stop], { x: (d) => d, text: ["stop"], frameAnchor: "top", dx: 4, textAnchor: "start", fontWeight: "bold" }),
  ];
  if (found) {
    const from = found.fit.step[0];
    const line = Array.from({ length: 121 }, (_, i) => from * (Math.max(target, stop) / from) ** (i / 120));
    const band = line.map((step) => ({ step, at: found.at(step), ends: found.interval(step) }));
    marks.push(
      Plot.areaY(band, { x: "step", y1: (d) => d.ends[0], y2: (d) => d.ends[1], fill: "var(--figure-orange)", fillOpacity: 0.22 }),
      Plot.line(band, { x: "step", y: "at", stroke: "var(--figure-orange)", strokeWidth: 2.5, strokeDasharray: "9 3" }),
      Plot.dot(found.fit.step.map((step, i) => ({ step, loss: found.fit.loss[i] })), { x: "step", y: "loss", r: 2.6, fill: "var(--figure-blue)" }),
    );
    const there = happened(curve, target);
    if (there !== null) {
      marks.push(Plot.dot([[target, there]], { symbol: "star", r: 8, fill: "var(--figure-green)", stroke: "var(--figure-paper)" }));
    }
  }
  const made = plot({
    label: "Loss against the step, with the fitted curve and its interval; the vertical line is where training stops",
    width,
    height: Math.max(280, Math.round(width * 0.5)),
    x: { type: "log", domain: [first, end], label: "step", ticks: 5, tickFormat: "~s" },
    y: { domain: lossDomain(points, found, target), label: "loss", grid: true, nice: true },
    marks,
  });
  scale = made.scale("x");
  return made;
}

function lossDomain(points, found, target) {
  const losses = points.map((d) => d.loss);
  const ends = found ? found.interval(target) : [];
  const usual = [...losses].sort((a, b) => a - b)[Math.floor(0.98 * losses.length)] ?? 1;
  return [Math.min(...losses, ...ends), Math.max(usual, ...ends)];
}

/** Put the stop where the pointer is. */
function drag(event) {
  const step = scale.invert(event.clientX - place.getBoundingClientRect().left);
  const { curve } = shown;
  const seen = curve.step.filter((t) => t <= step).length;
  form.set("stop", Math.min(1, Math.max(0.1, seen / curve.step.length)));
  update();
}

const update = onceAFrame(() => {
  foretell();
  write();
  redraw();
});

const place = element("div", { class: "figure-drag" });
root.append(place);
place.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  place.setPointerCapture(event.pointerId);
  drag(event);
});
place.addEventListener("pointermove", (event) => {
  if (place.hasPointerCapture(event.pointerId)) drag(event);
});
const form = controls(
  root,
  [
    { name: "run", label: "Run", options: [...runs.map((run) => run.name), OWN], value: runs[0].name },
    { name: "rates", label: "A learning rate beside the loss is", options: ["heeded", "ignored"], value: "heeded" },
    {
      name: "stop", label: "Training stops after", min: 0.1, max: 1, step: 0.01, value: 0.5,
      show: (v) => `${Math.round(100 * v)} % of the run`,
    },
    { name: "until", label: "Foretell the loss at", min: 1, max: 30, step: 0.05, value: 1, log: true, show: (v) => `${short(v)} x its length` },
  ],
  () => {
    if (form.values().run === OWN && own === null) {
      form.set("run", runs[0].name);
      status.textContent = "Drop a file below, choose one, or paste it.";
      return;
    }
    update();
  },
);
const status = element("p", { class: "figure-status", role: "status" });
const table = element("tbody");
root.append(status, element("table", { class: "figure-key" }, element("caption", {}, "What is foretold"), table));

/** Take the text of a file, or say what is wrong with it. */
function take(text, name) {
  try {
    const curve = readMetrics(text);
    if (curve.step.length < MINIMUM) {
      throw new CannotForecast(`${curve.step.length} points with a step and a loss; expected ${MINIMUM} or more.`);
    }
    own = curve;
    form.set("run", OWN);
    form.set("stop", 1);
    form.set("until", 2);
    update();
    taken.textContent = `${name}: ${curve.step.length} points, read in this page; nothing was sent anywhere.`;
  } catch (error) {
    if (!(error instanceof CannotForecast)) throw error;
    taken.textContent = `${name} cannot be used. ${error.message}`;
  }
}

async function takeFile(file) {
  if (file.size > LARGEST_FILE) {
    taken.textContent = `${file.name} cannot be used. It has ${short(file.size / 1e6)} MB; expected at most 50. Keep the columns step and loss.`;
    return;
  }
  take(await file.text(), file.name);
}

const input = element("input", { type: "file", id: "own-file", accept: ".csv,.json,.jsonl,.txt" });
input.addEventListener("change", () => input.files[0] && takeFile(input.files[0]));
const text = element("textarea", { id: "own-text", rows: "3", spellcheck: "false", placeholder: "step,loss" });
const read = element("button", { type: "button" }, "Read what was pasted");
read.addEventListener("click", () => take(text.value, "What was pasted"));
const taken = element("p", { class: "figure-status", role: "status", id: "own-status" });
const zone = element(
  "div",
  { class: "figure-drop", id: "own-drop" },
  element("p", {}, element("strong", {}, "Your own run: "), "drop a file here. CSV, JSON lines, or a Trainer's trainer_state.json. It does not leave the browser."),
  element("label", { for: "own-file" }, "Or choose one "),
  input,
  element("label", { for: "own-text" }, "Or paste it"),
  text,
  read,
  taken,
);
for (const name of ["dragenter", "dragover"]) {
  zone.addEventListener(name, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
}
zone.addEventListener("dragleave", () => zone.classList.remove("over"));
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  zone.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) takeFile(file);
  else taken.textContent = "That was no file. Drop a file of metrics, or paste its text.";
});
root.append(zone);

foretell();
write();
const redraw = plotIn(place, draw);
