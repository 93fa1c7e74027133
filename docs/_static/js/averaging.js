// Three sequences: z takes the steps, x is the average of the z, y lies between and is where the gradient is taken.
// The equations are those of docs/algorithm.md.

/** beta of step k; ln(1 - beta) goes linearly from `beta` to `betaMax` in `annealSteps` (0: no annealing). */
export function betaAt(k, { beta, betaMax = 0.965, annealSteps = 0 }) {
  if (annealSteps === 0) return beta;
  const s = Math.min(k / annealSteps, 1);
  return 1 - Math.exp((1 - s) * Math.log(1 - beta) + s * Math.log(1 - betaMax));
}

/**
 * Schedule-Free SGD with a constant step size: the points {x, y, z} from the start to after the last step.
 *
 * `gradient(point, k)` is the gradient of step k, `r` the power of the step in the averaging weights.
 */
export function scheduleFreeSgd(start, gradient, { steps, gamma, r = 0, ...momentum }) {
  let [x, y, z] = [[...start], [...start], [...start]];
  let weightSum = 0;
  const path = [{ x, y, z }];
  for (let k = 0; k < steps; k++) {
    const g = gradient(y, k);
    const weight = (k + 1) ** r;
    weightSum += weight;
    const [c, beta] = [weight / weightSum, betaAt(k, momentum)];
    z = z.map((value, i) => value - gamma * g[i]);
    x = x.map((value, i) => (1 - c) * value + c * z[i]);
    y = x.map((value, i) => beta * value + (1 - beta) * z[i]);
    path.push({ x, y, z });
  }
  return path;
}

/** Plain SGD: its iterates, and their running mean (Polyak averaging), as {last, mean}. */
export function sgdWithMean(start, gradient, { steps, gamma }) {
  const path = scheduleFreeSgd(start, gradient, { steps, gamma, beta: 0 }); // with beta = 0 y is z
  return path.map(({ x, z }) => ({ last: z, mean: x }));
}
