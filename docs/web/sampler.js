// Choosing the next token from logits, as mamba_export/generation/sampling.py does, from another random stream.

import { PageError } from "./errors.js";

/** The likeliest token; the first of those that tie. */
export function greedy(logits) {
  let best = 0;
  for (let token = 1; token < logits.length; token++)
    if (logits[token] > logits[best]) best = token;
  if (!Number.isFinite(logits[best]))
    throw new PageError("The model returned logits that are not finite.");
  return best;
}

/** A function from logits to a token: greedy at temperature 0, else a draw; equal seeds draw equally. */
export function sampler(temperature, seed) {
  if (!(temperature >= 0 && Number.isFinite(temperature)))
    throw new PageError("Temperature: give a number from 0 on.");
  if (!(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32)) {
    throw new PageError("Seed: give a whole number from 0 to 4294967295.");
  }
  if (temperature === 0) return greedy;
  const random = mulberry32(seed);
  return (logits) => {
    const largest = logits[greedy(logits)];
    const weights = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
    let left = random() * weights.reduce((sum, weight) => sum + weight);
    let token = weights.findIndex((weight) => (left -= weight) < 0);
    if (token < 0) token = weights.findLastIndex((weight) => weight > 0); // rounding
    return token;
  };
}

/** Tommy Ettinger's generator of 32 bits: numbers in [0, 1). */
function mulberry32(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
