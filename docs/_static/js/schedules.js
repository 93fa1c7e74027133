// Factors on the peak step size, as functions of the step k (from 0) and the planned length.

const decayShare = 0.2; // of the run, for warmup-stable-decay

export const SCHEDULES = {
  constant: () => 1,
  "1/sqrt(t)": (k, { warmup }) => Math.sqrt(Math.max(warmup, 1) / Math.max(warmup, k + 1)), // 1 at the end of the warmup
  cosine: (k, { steps }) => (1 + Math.cos((Math.PI * k) / steps)) / 2,
  "warmup-stable-decay": (k, { steps }) => Math.min(1, (steps - k) / (decayShare * steps)),
  linear: (k, { steps }) => 1 - k / steps,
};

/** `SCHEDULES[name]` after a linear warmup over `warmup` steps. */
export function factor(name, k, { steps, warmup = 0 }) {
  const rising = warmup > 0 ? Math.min(1, (k + 1) / warmup) : 1;
  return rising * SCHEDULES[name](k, { steps, warmup });
}
