// The optimizers of the page on step sizes, over one flat array of numbers. The equations are those of docs/algorithm.md.

import { betaAt } from "./averaging.js";

/** Adam's direction: m_hat / (sqrt(v_hat) + eps). */
class AdamDirection {
  constructor(n, [beta1, beta2], eps) {
    Object.assign(this, { beta1, beta2, eps, step: 0 });
    this.m = new Float64Array(n);
    this.v = new Float64Array(n);
  }

  of(gradient) {
    const { m, v, beta1, beta2, eps } = this;
    this.step += 1;
    const [correct1, correct2] = [1 - beta1 ** this.step, 1 - beta2 ** this.step];
    return gradient.map((g, i) => {
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      return m[i] / correct1 / (Math.sqrt(v[i] / correct2) + eps);
    });
  }
}

/** SGD or Adam with a step size that is given at each step. `at` and `result` are the same weights. */
export class GivenStepSize {
  constructor(start, { direction = "adam", betas = [0.9, 0.95], eps = 1e-8 } = {}) {
    this.at = Float64Array.from(start);
    this.adam = direction === "adam" ? new AdamDirection(start.length, betas, eps) : null;
  }

  get result() {
    return this.at;
  }

  step(gradient, gamma) {
    this.gamma = gamma;
    const u = this.adam === null ? gradient : this.adam.of(gradient);
    for (let i = 0; i < this.at.length; i++) this.at[i] -= gamma * u[i];
  }
}

/** ScheduleFree+: the gradient is taken `at` y, the `result` is x, and gamma comes from the loss. */
export class ScheduleFreePlus {
  constructor(start, options = {}) {
    const defaults = {
      lr: 1, betas: [0.9, 0.95], sfBeta1: 0.9, sfBeta1Max: 0.965, annealSteps: 0, eps: 1e-8,
      weightDecay: 0, r: 0, polyakBeta: 0, cWarmup: 0, weightLrPower: 2, warmupSteps: 0, fStar: 0,
    };
    this.options = { ...defaults, ...options };
    this.x = Float64Array.from(start);
    this.y = Float64Array.from(start);
    this.z = Float64Array.from(start);
    this.adam = new AdamDirection(start.length, this.options.betas, this.options.eps);
    this.k = 0;
    this.l1Mean = 0;
    this.largestGamma = this.options.eps;
    this.weightSum = 0;
  }

  get at() {
    return this.y;
  }

  get result() {
    return this.x;
  }

  step(gradient, loss) {
    const { x, y, z, k } = this;
    const { lr, eps, polyakBeta, fStar, warmupSteps, cWarmup, weightDecay } = this.options;
    const { r, weightLrPower, sfBeta1, sfBeta1Max, annealSteps } = this.options;
    const beta = betaAt(k, { beta: sfBeta1, betaMax: sfBeta1Max, annealSteps });

    let [l1, inner] = [0, 0];
    for (let i = 0; i < y.length; i++) {
      l1 += Math.abs(gradient[i]);
      inner += gradient[i] * (z[i] - x[i]);
    }
    this.l1Mean = polyakBeta * this.l1Mean + (1 - polyakBeta) * Math.sqrt(Math.PI / 2) * l1;
    const denominator = this.l1Mean / (1 - polyakBeta ** (k + 1));
    const polyak = denominator > 0 ? Math.max(0, loss - fStar + beta * inner) / denominator : 0;

    const warmup = warmupSteps > 0 ? Math.min(1, (k + 1) / warmupSteps) : 1;
    const gamma = Math.max(lr, eps) * warmup * polyak;
    this.largestGamma = Math.max(this.largestGamma, gamma);
    let c = 1;
    if (k >= cWarmup) {
      const weight = (k + 1) ** r * this.largestGamma ** weightLrPower;
      this.weightSum += weight;
      c = weight / this.weightSum;
    }

    const u = this.adam.of(gradient);
    for (let i = 0; i < y.length; i++) {
      z[i] -= gamma * u[i] + gamma ** 2 * weightDecay * y[i];
      x[i] = (1 - c) * x[i] + c * z[i];
      y[i] = beta * x[i] + (1 - beta) * z[i];
    }
    this.k += 1;
    Object.assign(this, { gamma, c });
  }
}
