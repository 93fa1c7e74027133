// A problem in two unknowns that can be drawn: a line through noisy points, badly conditioned.

import { normals } from "./random.js";

export const N_SAMPLES = 256;
const ANGLE = 0.5; // of the valley, in radians
const TARGET = [1.5, 1];
export const START = [-1.5, 2.4];

/** Rows (a, b) with b = a . TARGET + noise; the curvatures along the two axes are `condition` apart, the larger is 1. */
export function samples({ condition, noise, seed }) {
  const normal = normals(seed);
  const [cos, sin] = [Math.cos(ANGLE), Math.sin(ANGLE)];
  return Array.from({ length: N_SAMPLES }, () => {
    const [along, across] = [normal() / Math.sqrt(condition), normal()];
    const a = [cos * along - sin * across, sin * along + cos * across];
    return { a, b: a[0] * TARGET[0] + a[1] * TARGET[1] + noise * normal() };
  });
}

/** Mean over these samples of (a . w - b)^2 / 2, and its gradient. */
export function lossAndGradient(rows, w) {
  let loss = 0;
  const gradient = [0, 0];
  for (const { a, b } of rows) {
    const residual = a[0] * w[0] + a[1] * w[1] - b;
    loss += (residual * residual) / 2 / rows.length;
    gradient[0] += (residual * a[0]) / rows.length;
    gradient[1] += (residual * a[1]) / rows.length;
  }
  return { loss, gradient };
}

/** The whole problem as a quadratic: loss(w) at once, the minimum and the axes of its level lines. */
export function surface(rows) {
  let [aa, ab, bb, ca, cb, cc] = [0, 0, 0, 0, 0, 0];
  for (const { a, b } of rows) {
    aa += (a[0] * a[0]) / rows.length;
    ab += (a[0] * a[1]) / rows.length;
    bb += (a[1] * a[1]) / rows.length;
    ca += (a[0] * b) / rows.length;
    cb += (a[1] * b) / rows.length;
    cc += (b * b) / rows.length;
  }
  const determinant = aa * bb - ab * ab;
  const minimum = [(bb * ca - ab * cb) / determinant, (aa * cb - ab * ca) / determinant];
  const loss = (w) =>
    (aa * w[0] * w[0] + 2 * ab * w[0] * w[1] + bb * w[1] * w[1]) / 2 -
    (ca * w[0] + cb * w[1]) +
    cc / 2;
  const [mean, half] = [(aa + bb) / 2, Math.hypot((aa - bb) / 2, ab)];
  return {
    loss,
    minimum,
    curvatures: [mean - half, mean + half],
    angle: Math.atan2(2 * ab, aa - bb) / 2, // of the direction with the larger curvature
  };
}
