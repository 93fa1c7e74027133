// A small classifier, its loss and its gradient by hand: logistic regression, or one hidden layer of tanh.
// Weights lie in one flat array: for each layer the matrix (outputs by inputs), then the bias.

/** Sizes of the layers, such as [64, 10] or [64, 16, 10]. */
export function numberOfWeights(sizes) {
  let n = 0;
  for (let i = 1; i < sizes.length; i++) n += sizes[i] * (sizes[i - 1] + 1);
  return n;
}

/** Normal weights, 1 / sqrt(inputs) in size, and biases of 0. */
export function firstWeights(sizes, normal) {
  const weights = new Float64Array(numberOfWeights(sizes));
  let offset = 0;
  for (let i = 1; i < sizes.length; i++) {
    const [inputs, outputs] = [sizes[i - 1], sizes[i]];
    for (let j = 0; j < inputs * outputs; j++) weights[offset + j] = normal() / Math.sqrt(inputs);
    offset += outputs * (inputs + 1);
  }
  return weights;
}

/** outputs = W inputs + b, for one layer that begins at `offset`. */
function affine(weights, offset, inputs, n_outputs) {
  const n = inputs.length;
  const outputs = new Float64Array(n_outputs);
  for (let o = 0; o < n_outputs; o++) {
    const row = offset + o * n;
    let sum = weights[offset + n_outputs * n + o];
    for (let i = 0; i < n; i++) sum += weights[row + i] * inputs[i];
    outputs[o] = sum;
  }
  return outputs;
}

/** The activations of every layer; the last ones are logits. */
function forward(sizes, weights, image) {
  const activations = [image];
  let offset = 0;
  for (let layer = 1; layer < sizes.length; layer++) {
    const outputs = affine(weights, offset, activations[layer - 1], sizes[layer]);
    if (layer < sizes.length - 1) for (let i = 0; i < outputs.length; i++) outputs[i] = Math.tanh(outputs[i]);
    activations.push(outputs);
    offset += sizes[layer] * (sizes[layer - 1] + 1);
  }
  return activations;
}

/** log(sum(exp(logits))), without overflow. */
function logSumExp(logits) {
  const largest = Math.max(...logits);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - largest);
  return largest + Math.log(sum);
}

/** Mean cross-entropy over the images with these indices, and its gradient. */
export function lossAndGradient(sizes, weights, { images, labels }, indices) {
  const gradient = new Float64Array(weights.length);
  let loss = 0;
  for (const index of indices) {
    const activations = forward(sizes, weights, images[index]);
    const logits = activations[sizes.length - 1];
    const total = logSumExp(logits);
    loss += (total - logits[labels[index]]) / indices.length;
    let delta = logits.map((value) => Math.exp(value - total) / indices.length);
    delta[labels[index]] -= 1 / indices.length;
    let end = weights.length;
    for (let layer = sizes.length - 1; layer > 0; layer--) {
      const [n, inputs] = [sizes[layer - 1], activations[layer - 1]];
      const offset = end - sizes[layer] * (n + 1);
      const before = new Float64Array(n);
      for (let o = 0; o < sizes[layer]; o++) {
        const [row, d] = [offset + o * n, delta[o]];
        for (let i = 0; i < n; i++) {
          gradient[row + i] += d * inputs[i];
          before[i] += d * weights[row + i];
        }
        gradient[offset + sizes[layer] * n + o] += d;
      }
      delta = before.map((value, i) => value * (1 - inputs[i] * inputs[i]));
      end = offset;
    }
  }
  return { loss, gradient };
}

/** Mean cross-entropy, and the share of images that are classified rightly. */
export function evaluate(sizes, weights, { images, labels }) {
  let [loss, right] = [0, 0];
  for (let index = 0; index < images.length; index++) {
    const logits = forward(sizes, weights, images[index])[sizes.length - 1];
    loss += (logSumExp(logits) - logits[labels[index]]) / images.length;
    if (logits.indexOf(Math.max(...logits)) === labels[index]) right += 1;
  }
  return { loss, accuracy: right / images.length };
}

/** The digits as the site ships them (docs/_ext/figures.py): pixels in [0, 1]. */
export function unpackDigits({ n_features, pixels, labels }) {
  const images = Array.from(labels, (_, index) =>
    Float64Array.from(
      { length: n_features },
      (_, i) => (pixels.charCodeAt(index * n_features + i) - 65) / 16,
    ),
  );
  return { images, labels: Array.from(labels, Number) };
}
