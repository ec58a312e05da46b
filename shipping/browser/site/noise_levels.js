/** The noise levels that a model was trained on, as sigmas of Karras et al. 2022, x = x0 + sigma · noise, and their timesteps. */

/** `count` even numbers from `first` to `last`, both included, rounded as NumPy rounds them. */
export function linspace(first, last, count) {
  const step = count > 1 ? (last - first) / (count - 1) : 0;
  const values = Array.from({ length: count }, (_, index) => index * step + first);
  if (count > 1) values[count - 1] = last;
  return values;
}

/** Linear interpolation of the points (xs ascending, ys) at `x`, with the ends held. */
export function interpolate(x, xs, ys) {
  const last = xs.length - 1;
  if (x <= xs[0]) return ys[0];
  if (x >= xs[last]) return ys[last];
  let [low, high] = [0, last];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  return ((ys[low + 1] - ys[low]) / (xs[low + 1] - xs[low])) * (x - xs[low]) + ys[low];
}

function betas({ betas: kind, beta_start: first, beta_end: last, train_timesteps: count }) {
  if (kind === "linear") return linspace(first, last, count);
  if (kind === "scaled_linear") return linspace(Math.sqrt(first), Math.sqrt(last), count).map((root) => root * root);
  const cosine = (index) => Math.cos(((index / count + 0.008) / 1.008) * (Math.PI / 2)) ** 2;
  return Array.from({ length: count }, (_, index) => Math.min(1 - cosine(index + 1) / cosine(index), 0.999));
}

/** The sigma of each training timestep, ascending. With `zero_terminal_snr` the last alpha-bar is 2⁻²⁴ instead of 0 (Lin et al. 2023). */
export function modelSigmas(noise) {
  let product = 1;
  let bars = betas(noise).map((beta) => (product *= 1 - beta));
  if (noise.zero_terminal_snr) {
    const roots = bars.map(Math.sqrt);
    const [first, last] = [roots[0], roots.at(-1)];
    bars = roots.map((root) => ((root - last) * (first / (first - last))) ** 2);
    bars[bars.length - 1] = 2 ** -24;
  }
  return bars.map((bar) => Math.sqrt((1 - bar) / bar));
}

/** The function from sigma to the model's timestep: linear in log sigma, whole at the model's own sigmas. */
export function timestepOf(noise) {
  const logs = modelSigmas(noise).map((sigma) => Math.log(Math.max(sigma, 1e-10)));
  const steps = logs.map((_, index) => index);
  return (sigma) => {
    const exact = interpolate(Math.log(Math.max(sigma, 1e-10)), logs, steps);
    const whole = Math.round(exact);
    return Math.abs(exact - whole) < 1e-6 ? whole : exact;
  };
}

/** The inverse of `timestepOf`. */
export function sigmaOf(noise) {
  const logs = modelSigmas(noise).map((sigma) => Math.log(Math.max(sigma, 1e-10)));
  const steps = logs.map((_, index) => index);
  return (timestep) => Math.exp(interpolate(timestep, steps, logs));
}
