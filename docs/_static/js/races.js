// The same problem trained by several methods side by side, a few steps at a time so that the page stays alive.

import * as leastSquares from "./least_squares.js";
import * as network from "./network.js";
import { GivenStepSize, ScheduleFreePlus } from "./optimizers.js";
import { batches, normals } from "./random.js";
import { factor, SCHEDULES } from "./schedules.js";

export const PLUS = "ScheduleFree+ (at x)";
export const METHODS = [PLUS, ...Object.keys(SCHEDULES)];
const WARMUP_SHARE = 1 / 15; // of the run, for all
const N_CURVE = 60; // points of a curve
const N_TRAIN = 1297; // of 1,797 digits

/** The classifier of digits with these hidden layers. */
function digitsProblem(digits, hidden) {
  const sizes = [digits.images[0].length, ...hidden, 10];
  const train = { images: digits.images.slice(0, N_TRAIN), labels: digits.labels.slice(0, N_TRAIN) };
  const held = { images: digits.images.slice(N_TRAIN), labels: digits.labels.slice(N_TRAIN) };
  return {
    n: N_TRAIN,
    lossName: "loss on 500 digits that are held out",
    start: network.firstWeights(sizes, normals(5)),
    lossAndGradient: (weights, indices) => network.lossAndGradient(sizes, weights, train, indices),
    evaluate: (weights) => network.evaluate(sizes, weights, held),
  };
}

function leastSquaresProblem() {
  const rows = leastSquares.samples({ condition: 30, noise: 0.3, seed: 1 });
  return {
    n: rows.length,
    lossName: "loss on all samples",
    start: leastSquares.START,
    lossAndGradient: (weights, indices) =>
      leastSquares.lossAndGradient(indices.map((i) => rows[i]), weights),
    evaluate: (weights) => ({ loss: leastSquares.lossAndGradient(rows, weights).loss }),
  };
}

/** The problems by the names that the page shows. */
export function problems(digits) {
  return {
    "digits, one hidden layer (1,210 weights)": digitsProblem(digits, [16]),
    "digits, no hidden layer (650 weights)": digitsProblem(digits, []),
    "least squares (2 weights)": leastSquaresProblem(),
  };
}

/** One step after the other of one method; yields nothing, adds {k, gamma, loss, accuracy} to `curve`. */
function* train(problem, method, settings, curve) {
  const { steps, batch, peak, direction, lr, lossScale, gradientScale } = settings;
  const warmup = Math.ceil(WARMUP_SHARE * steps);
  const plus = method === PLUS;
  const optimizer = plus
    ? new ScheduleFreePlus(problem.start, {
        lr, warmupSteps: warmup, cWarmup: 2 * warmup, r: 1, sfBeta1: 0.5, annealSteps: steps,
      })
    : new GivenStepSize(problem.start, { direction: direction.toLowerCase() });
  const draw = batches(3, problem.n, batch);
  const every = Math.max(1, Math.round(steps / N_CURVE));
  for (let k = 0; k < steps; k++) {
    const { loss, gradient } = problem.lossAndGradient(optimizer.at, draw());
    const scaled = gradient.map((g) => g * lossScale * gradientScale);
    if (plus) optimizer.step(scaled, loss * lossScale);
    else optimizer.step(scaled, peak * factor(method, k, { steps, warmup }));
    if ((k + 1) % every === 0 || k + 1 === steps) {
      curve.push({ k: k + 1, gamma: optimizer.gamma, ...problem.evaluate(optimizer.result) });
    }
    yield;
  }
}

/**
 * All methods at once. `run(milliseconds)` goes on for about so long and says whether there is more to do; `curves` has
 * the points so far by the names of METHODS.
 */
export function race(problem, settings) {
  problem.outset ??= problem.evaluate(problem.start); // where all begin, in every race
  const curves = Object.fromEntries(METHODS.map((method) => [method, [{ k: 0, ...problem.outset }]]));
  const racers = METHODS.map((method) => train(problem, method, settings, curves[method]));
  const run = (milliseconds) => {
    const end = performance.now() + milliseconds;
    while (racers.length > 0 && performance.now() < end) {
      const racer = racers.shift();
      if (!racer.next().done) racers.push(racer);
    }
    return racers.length > 0;
  };
  return { curves, run };
}
