// Controls with labels, that work with a finger, a mouse and the keyboard.

/** One element with attributes and children; strings become text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A number as a reader wants it: three digits, no more. */
export function short(value) {
  if (!Number.isFinite(value)) return "not finite";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}

function slider({ name, min, max, step, value, log = false, show = short }, changed) {
  const [inward, outward] = log ? [Math.log10, (v) => Number((10 ** v).toPrecision(2))] : [(v) => v, (v) => v];
  const input = element("input", {
    type: "range", id: `control-${name}`, name, step: step ?? (log ? 0.1 : 1), min: inward(min), max: inward(max),
  });
  input.value = inward(value);
  const output = element("output", { for: `control-${name}` });
  const read = () => {
    const now = outward(Number(input.value));
    output.textContent = show(now);
    input.setAttribute("aria-valuetext", show(now));
    return now;
  };
  read();
  input.addEventListener("input", changed);
  const limit = (largest) => {
    input.max = inward(largest);
    read();
  };
  return { parts: [input, output], read, limit, set: (v) => { input.value = inward(v); read(); } };
}

function choice({ name, options, value }, changed) {
  const input = element("select", { id: `control-${name}`, name });
  for (const option of options) input.append(element("option", { value: option }, option));
  input.value = value;
  input.addEventListener("input", changed);
  return { parts: [input], read: () => input.value, set: (v) => { input.value = v; } };
}

/**
 * Labelled controls in `parent`. Each of `specs` has a `name`, a `label`, and `options` (a choice) or `min` and `max`
 * (a slider; `log` for one that multiplies). `changed()` is called when one moves.
 *
 * The answer has `values()`, and `limit(name, largest)` and `set(name, value)` for single controls.
 */
export function controls(parent, specs, changed) {
  const made = {};
  const group = element("div", { class: "figure-controls" });
  for (const spec of specs) {
    const control = (spec.options ? choice : slider)(spec, changed);
    made[spec.name] = control;
    group.append(element("div", {}, element("label", { for: `control-${spec.name}` }, spec.label), ...control.parts));
  }
  parent.append(group);
  return {
    values: () => Object.fromEntries(Object.entries(made).map(([name, c]) => [name, c.read()])),
    limit: (name, largest) => made[name].limit(largest),
    set: (name, value) => made[name].set(value),
  };
}

/** `work()` once before the next picture, however often it is asked for. */
export function onceAFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
