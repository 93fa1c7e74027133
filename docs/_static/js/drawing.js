// Lines that are told apart by their dashes as well as by their colour, on top of Observable Plot.

import { element, short } from "./controls.js";

const { Plot } = globalThis; // plot.umd.min.js, loaded before

/** A place for a plot of `draw(width)`, drawn again when its width changes. Returns the function that draws. */
export function plotIn(parent, draw) {
  const place = element("div", { class: "figure-plot" });
  parent.append(place);
  let width = 0;
  const redraw = () => {
    if (width > 0) place.replaceChildren(draw(width));
  };
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now === width) return;
    width = now;
    redraw();
  }).observe(place);
  return redraw;
}

/** Plot.plot with the looks of the site; `label` says in words what the picture shows. */
export function plot({ label, marks, ...options }) {
  const made = Plot.plot({
    marginLeft: 48,
    style: { background: "none", color: "inherit", fontSize: "12px", fontFamily: "inherit" },
    marks,
    ...options,
  });
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", label);
  return made;
}

/** The line of one series: `look` has a colour, dashes and a width. */
export function line(points, look, options = {}) {
  return Plot.line(points, {
    stroke: look.color,
    strokeDasharray: look.dash,
    strokeWidth: look.width ?? 1.8,
    clip: true,
    ...options,
  });
}

function sample(look) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", "34");
  svg.setAttribute("height", "10");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M0 5H34");
  path.setAttribute("stroke", look.color);
  path.setAttribute("stroke-width", look.width ?? 1.8);
  path.setAttribute("stroke-dasharray", look.dash ?? "none");
  svg.append(path);
  return svg;
}

/**
 * The key of the lines, and their values as a table: a check box shows or hides a line.
 *
 * `series` are {name, look}, `columns` the headings of the values. The answer has `shown(name)` and
 * `write({name: [value, ...]})`.
 */
export function key(parent, caption, series, columns, changed) {
  const boxes = {};
  const cells = {};
  const body = element("tbody");
  for (const { name, look, hidden } of series) {
    boxes[name] = element("input", { type: "checkbox", checked: !hidden });
    boxes[name].addEventListener("input", changed);
    cells[name] = columns.map(() => element("td"));
    const label = element("label", {}, boxes[name], sample(look), name);
    body.append(element("tr", {}, element("th", { scope: "row" }, label), ...cells[name]));
  }
  const head = columns.map((text) => element("th", { scope: "col" }, text));
  parent.append(
    element(
      "table",
      { class: "figure-key" },
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "line"), ...head)),
      body,
    ),
  );
  return {
    shown: (name) => boxes[name].checked,
    write: (values) => {
      for (const [name, row] of Object.entries(values)) {
        row.forEach((value, i) => {
          cells[name][i].textContent = typeof value === "number" ? short(value) : value;
        });
      }
    },
  };
}
