// The loss foretold: a / sqrt(t + b) + c through a training loss. The procedure of sfplus_kernels.forecast, number by number.

const BINS = 100; // at most so many means are fitted: single batches are noise
const MINIMUM_BINS = 20;
const MINIMUM_POINTS = 48;
const BURN_INS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7];
const REHEARSALS = [0.5, 0.7];
const END = 0.05; // the last share of the curve, whose mean is its end
const STEADY_RATE = 0.01;

/** Why a curve gives no forecast, in words for the reader. */
export class CannotForecast extends Error {}

const sum = (values) => values.reduce((total, v) => total + v, 0);
const mean = (values) => sum(values) / values.length;
const rootMeanSquare = (values) => Math.sqrt(mean(values.map((v) => v * v)));

/** Quantile of Student's t for a probability above 0.5, from the normal one (exact to 1e-5 for 12 degrees and more). */
function tQuantile(z, degrees) {
  const terms = [
    (z ** 3 + z) / 4,
    (5 * z ** 5 + 16 * z ** 3 + 3 * z) / 96,
    (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / 384,
    (79 * z ** 9 + 776 * z ** 7 + 1482 * z ** 5 - 1920 * z ** 3 - 945 * z) / 92160,
  ];
  return z + sum(terms.map((term, i) => term / degrees ** (i + 1)));
}
const Z95 = 1.6448536269514722; // of the normal distribution, for an interval at level 0.9
const Z995 = 2.5758293035489004; // for p < 0.01 on both sides

/** To the nearest whole number, halves to the even one, as Python rounds. */
function rounded(value) {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 === 0 ? down : down + 1;
}

const shape = (t, { a, b, c }) => a / Math.sqrt(t + b) + c;

/** Means of equally many points each; what does not fill a bin is left out at the beginning. */
function binned(step, loss) {
  const size = Math.ceil(step.length / BINS);
  const count = Math.floor(step.length / size);
  const first = step.length - count * size;
  const means = (values) =>
    Array.from({ length: count }, (_, i) => mean(values.slice(first + i * size, first + (i + 1) * size)));
  return { step: means(step), loss: means(loss) };
}

/** For a fixed b the best a >= 0 and c in [floor, ceiling]: least squares with two unknowns. */
function withB(b, { step, loss }, floor, ceiling) {
  const n = step.length;
  let [q, qq, l, ql] = [0, 0, 0, 0];
  for (let i = 0; i < n; i++) {
    const root = 1 / Math.sqrt(step[i] + b);
    q += root;
    qq += root * root;
    l += loss[i];
    ql += root * loss[i];
  }
  let a = (n * ql - q * l) / (n * qq - q * q);
  let c = (l - a * q) / n;
  if (a < 0 || c < floor || c > ceiling) {
    c = Math.min(Math.max(a < 0 ? l / n : c, floor), ceiling);
    a = Math.max(0, (ql - c * q) / qq);
  }
  let squares = 0;
  for (let i = 0; i < n; i++) squares += (loss[i] - a / Math.sqrt(step[i] + b) - c) ** 2;
  return { a, b, c, squares };
}

/** The least squares over b in [0, 10 last]: a grid of its logarithm, then golden section beside the best. */
function leastSquares(bins, floor) {
  const last = bins.step.at(-1);
  const ceiling = Math.min(...bins.loss);
  const at = (b) => withB(b, bins, floor, ceiling);
  const grid = [0, ...Array.from({ length: 120 }, (_, i) => last * 10 ** (-5 + (6 * i) / 119))];
  const found = grid.map(at);
  const best = found.reduce((low, fit, i) => (fit.squares < found[low].squares ? i : low), 0);
  let [low, high] = [grid[Math.max(0, best - 1)], grid[Math.min(grid.length - 1, best + 1)]];
  const ratio = (Math.sqrt(5) - 1) / 2;
  for (let i = 0; i < 60; i++) {
    const [left, right] = [high - ratio * (high - low), low + ratio * (high - low)];
    if (at(left).squares < at(right).squares) high = right;
    else low = left;
  }
  const fine = at((low + high) / 2);
  return fine.squares < found[best].squares ? fine : found[best];
}

function autocorrelation(residual) {
  const total = sum(residual.map((r) => r * r));
  return total > 0 ? sum(residual.slice(1).map((r, i) => r * residual[i])) / total : 0;
}

/** Inverse of a symmetric 3 x 3 matrix. */
function inverse(m) {
  const minor = (i, j) => {
    const [r, s] = [0, 1, 2].filter((k) => k !== i);
    const [u, v] = [0, 1, 2].filter((k) => k !== j);
    return (m[r][u] * m[s][v] - m[r][v] * m[s][u]) * ((i + j) % 2 ? -1 : 1);
  };
  const determinant = sum([0, 1, 2].map((j) => m[0][j] * minor(0, j)));
  return [0, 1, 2].map((i) => [0, 1, 2].map((j) => minor(j, i) / determinant));
}

/** Derivatives of the curve by a, b and c. */
const slopes = (t, { a, b }) => [(t + b) ** -0.5, (-a / 2) * (t + b) ** -1.5, 1];

function fitted(bins, burnIn, floor) {
  const { a, b, c, squares } = leastSquares(bins, floor);
  const residual = bins.step.map((t, i) => bins.loss[i] - shape(t, { a, b, c }));
  const rows = bins.step.map((t) => slopes(t, { a, b }));
  // in units of its own diagonal, for a, b and c are of very different sizes
  const unit = [0, 1, 2].map((i) => Math.sqrt(sum(rows.map((row) => row[i] ** 2))));
  const normal = [0, 1, 2].map((i) =>
    [0, 1, 2].map((j) => sum(rows.map((row) => row[i] * row[j])) / (unit[i] * unit[j])),
  );
  const rho = autocorrelation(residual);
  const alike = (1 + Math.max(0, rho)) / (1 - Math.max(0, rho)); // neighbours that are alike count as fewer points
  const variance = (squares / (bins.step.length - 3)) * alike;
  const covariance = inverse(normal).map((row, i) => row.map((v, j) => (v * variance) / (unit[i] * unit[j])));
  if (!covariance.flat().every(Number.isFinite)) {
    throw new CannotForecast("The loss does not say how the curve bends: it is flat, or too short.");
  }
  return { a, b, c, covariance, ...bins, burnIn, residual, patternless: rho < 2 / Math.sqrt(bins.step.length) };
}

/** The curve after the smallest burn-in that leaves no pattern, else after the largest that there is. */
function search(step, loss, { burnIn, floor, first }) {
  let found = null;
  for (const share of burnIn === undefined ? BURN_INS : [burnIn]) {
    const from = Math.max(step[0] + share * (step.at(-1) - step[0]), first);
    const begin = step.findIndex((t) => t >= from);
    if (begin < 0 || step.length - begin < MINIMUM_BINS) continue;
    found = fitted(binned(step.slice(begin), loss.slice(begin)), share, floor);
    if (found.patternless) break;
  }
  if (found === null) {
    throw new CannotForecast(
      `Fewer than ${MINIMUM_BINS} of ${step.length} points are left after the beginning.`,
    );
  }
  return found;
}

/** The step from which the learning rate is constant. */
function constantFrom(allSteps, allRates) {
  const known = allRates.map(Number.isFinite);
  const [step, rate] = [allSteps, allRates].map((values) => values.filter((_, i) => known[i]));
  if (rate.length === 0) throw new CannotForecast("No learning rate is a finite number.");
  const end = rate.at(-1);
  const last = rate.findLastIndex((r) => Math.abs(r - end) > STEADY_RATE * Math.abs(end));
  if (last < 0) return step[0];
  if (step[last] > step[0] + BURN_INS.at(-1) * (step.at(-1) - step[0])) {
    throw new CannotForecast(
      `The learning rate still changes at step ${step[last]}. Under a schedule the loss falls because the rate does, and a ` +
        "longer run would have another schedule.",
    );
  }
  return step[last + 1];
}

/** Throw unless the loss falls by more than it scatters. */
function checkFall({ step, loss, residual, ...curve }) {
  const [t, l] = [mean(step), mean(loss)];
  const [tt, tl, ll] = [
    sum(step.map((v) => (v - t) ** 2)),
    sum(step.map((v, i) => (v - t) * (loss[i] - l))),
    sum(loss.map((v) => (v - l) ** 2)),
  ];
  const degrees = step.length - 2;
  const deviation = Math.sqrt(Math.max(0, ll - tl ** 2 / tt) / degrees / tt);
  if (tl > 0 && tl / tt > tQuantile(Z995, degrees) * deviation) {
    throw new CannotForecast("The loss rises; expected one that falls.");
  }
  const fall = shape(step[0], curve) - shape(step.at(-1), curve);
  const about = mean(residual);
  const scatter = rootMeanSquare(residual.map((r) => r - about));
  if (fall <= scatter) {
    throw new CannotForecast(
      `The loss falls by ${fall.toPrecision(2)} and scatters by ${scatter.toPrecision(2)}; expected a fall that can be seen.`,
    );
  }
}

/** How wrong forecasts of the curve's own end are, for each doubling of the steps, and how wrong c is. */
function rehearse(step, loss, whole, settings) {
  const tail = Math.max(1, rounded(END * step.length));
  const [end, level] = [mean(step.slice(-tail)), mean(loss.slice(-tail))];
  const [errors, limits] = [[], []];
  for (const share of REHEARSALS) {
    const seen = rounded(share * step.length);
    try {
      const early = search(step.slice(0, seen), loss.slice(0, seen), settings);
      errors.push((shape(end, early) - level) / Math.log2(step.at(-1) / step[seen - 1]));
      limits.push(early.c - whole.c);
    } catch (error) {
      if (!(error instanceof CannotForecast)) throw error;
    }
  }
  if (errors.length === 0) {
    throw new CannotForecast(
      "Too few points lie after the beginning to try the forecast on the curve itself; train for longer.",
    );
  }
  return { drift: rootMeanSquare(errors), limitDrift: rootMeanSquare(limits) };
}

function check({ step, loss, floor }) {
  const wrong = loss.findIndex((v) => !Number.isFinite(v));
  if (wrong >= 0) throw new CannotForecast(`The loss is not finite at step ${step[wrong]}: the run broke down there.`);
  const back = step.findIndex((t, i) => i > 0 && !(t > step[i - 1]));
  if (back > 0) {
    throw new CannotForecast(
      `Step ${step[back]} follows step ${step[back - 1]}; expected steps that rise. Are several runs in one file?`,
    );
  }
  if (step.length < MINIMUM_POINTS) {
    throw new CannotForecast(
      `${step.length} points; expected ${MINIMUM_POINTS} or more. Log more often, or train for longer.`,
    );
  }
  const lowest = Math.min(...loss);
  if (lowest < floor) throw new CannotForecast(`The loss is ${lowest.toPrecision(4)}, below its floor of ${floor}.`);
}

/**
 * Fit the curve to {step, loss, rate?}: `fit` (a, b, c, burnIn and the bins), `drift`, `limitDrift`, and the functions
 * `at(step)`, `interval(step)` and `limitInterval()` at level 0.9. Throws CannotForecast with the reason.
 */
export function forecast({ step, loss, rate }, { burnIn, floor = 0 } = {}) {
  check({ step, loss, floor });
  const settings = { burnIn, floor, first: rate ? constantFrom(step, rate) : step[0] };
  const fit = search(step, loss, settings);
  checkFall(fit);
  if (burnIn === undefined && !fit.patternless) {
    throw new CannotForecast(
      "The loss does not follow a / sqrt(t + b) + c: it stays above or below the best such curve for long stretches. A " +
        "schedule of the learning rate does that, a change of the data, or a run that has only begun.",
    );
  }
  const { drift, limitDrift } = rehearse(step, loss, fit, settings);
  const at = (t) => shape(t, fit);
  const between = (value, gradient, wander) => {
    const spread = sum(gradient.map((g, i) => sum(gradient.map((h, j) => g * h * fit.covariance[i][j]))));
    const half = Math.sqrt(spread + wander ** 2) * tQuantile(Z95, fit.step.length - 3);
    const highest = Math.max(value, at(fit.step.at(-1)));
    return [Math.max(floor, value - half), Math.min(highest, value + half)];
  };
  return {
    fit,
    drift,
    limitDrift,
    at,
    interval: (t) => between(at(t), slopes(t, fit), drift * Math.max(0, Math.log2(t / fit.step.at(-1)))),
    limitInterval: () => between(fit.c, [0, 0, 1], limitDrift),
  };
}
