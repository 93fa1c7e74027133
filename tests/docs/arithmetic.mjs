// What the pages compute, on data that the tests export: {what, ...} as JSON on standard input, JSON back.

import { readFileSync } from "node:fs";

import { betaAt, scheduleFreeSgd, sgdWithMean } from "../../docs/_static/js/averaging.js";
import { CannotForecast, forecast } from "../../docs/_static/js/forecast.js";
import * as leastSquares from "../../docs/_static/js/least_squares.js";
import * as network from "../../docs/_static/js/network.js";
import { GivenStepSize, ScheduleFreePlus } from "../../docs/_static/js/optimizers.js";
import { batches, normals } from "../../docs/_static/js/random.js";
import { factor } from "../../docs/_static/js/schedules.js";

const answers = {
  plus({ start, gradients, losses, options }) {
    const optimizer = new ScheduleFreePlus(start, options);
    return gradients.map((gradient, k) => {
      optimizer.step(gradient, losses[k]);
      const { x, y, z, gamma, c } = optimizer;
      return { x: [...x], y: [...y], z: [...z], gamma, c };
    });
  },
  given({ start, gradients, gammas, options }) {
    const optimizer = new GivenStepSize(start, options);
    return gradients.map((gradient, k) => {
      optimizer.step(gradient, gammas[k]);
      return [...optimizer.result];
    });
  },
  averaging({ start, matrix, noise, settings }) {
    const gradient = (point, k) => matrix.map((row, i) => row[0] * point[0] + row[1] * point[1] + noise[k][i]);
    return {
      path: scheduleFreeSgd(start, gradient, settings),
      sgd: sgdWithMean(start, gradient, settings),
    };
  },
  beta: ({ steps, momentum }) => steps.map((k) => betaAt(k, momentum)),
  schedules: ({ names, steps, warmup }) =>
    names.map((name) => Array.from({ length: steps }, (_, k) => factor(name, k, { steps, warmup }))),
  network({ sizes, weights, images, labels, indices }) {
    const { loss, gradient } = network.lossAndGradient(sizes, weights, { images, labels }, indices);
    return { loss, gradient: [...gradient], held: network.evaluate(sizes, weights, { images, labels }) };
  },
  surface({ condition, noise, seed, point }) {
    const rows = leastSquares.samples({ condition, noise, seed });
    return { rows, here: leastSquares.lossAndGradient(rows, point), ...leastSquares.surface(rows), loss: leastSquares.surface(rows).loss(point) };
  },
  // the page on interpolation: the loss above the minimum after the last step, for several draws of the samples
  draws({ n, steps, gamma, beta, annealSteps, condition, noise }) {
    return Array.from({ length: n }, (_, i) => {
      const rows = leastSquares.samples({ condition, noise, seed: i + 1 });
      const whole = leastSquares.surface(rows);
      const pick = batches(1001 + i, rows.length, 4);
      const picked = Array.from({ length: steps }, () => pick().map((j) => rows[j]));
      const gradient = (point, k) => leastSquares.lossAndGradient(picked[k], point).gradient;
      const { x, y, z } = scheduleFreeSgd(leastSquares.START, gradient, { steps, gamma, beta, annealSteps }).at(-1);
      const { last, mean } = sgdWithMean(leastSquares.START, gradient, { steps, gamma }).at(-1);
      const excess = (w) => whole.loss(w) - whole.loss(whole.minimum);
      return { x: excess(x), y: excess(y), z: excess(z), last: excess(last), mean: excess(mean) };
    });
  },
  forecast({ step, loss, rate, until }) {
    const known = (values) => values?.map((v) => v ?? NaN); // JSON has no NaN
    try {
      const found = forecast({ step, loss: known(loss), rate: known(rate) });
      const { a, b, c, burnIn, step: bins } = found.fit;
      const { drift, limitDrift } = found;
      const figures = { at: found.at(until), interval: found.interval(until), limitInterval: found.limitInterval() };
      return { a, b, c, burnIn, bins: bins.length, first: bins[0], drift, limitDrift, ...figures };
    } catch (error) {
      if (!(error instanceof CannotForecast)) throw error;
      return { refused: error.message };
    }
  },
  normals: ({ seed, n }) => {
    const normal = normals(seed);
    return Array.from({ length: n }, () => normal());
  },
};

const question = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(answers[question.what](question)));
