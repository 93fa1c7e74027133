// Random numbers that are the same at every visit: the figures are examples, and examples can be talked about.

/** Uniform numbers in [0, 1) from a 32-bit seed (mulberry32). */
export function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers (Box and Muller). */
export function normals(seed) {
  const uniform = uniforms(seed);
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** A function that gives `size` indices below `n`, drawn with replacement: a mini-batch. */
export function batches(seed, n, size) {
  const uniform = uniforms(seed);
  return () => Array.from({ length: size }, () => Math.floor(uniform() * n));
}
