/**
 * Samplers: async generators `(denoise, x, sigmas, rng)` that yield the sample after each step, as in Python's `runtime/sampling`.
 *
 * `denoise(x, sigma)` gives the denoised sample; x is a Float32Array at sigmas[0]. All sums are rounded to float32 term by term, so the
 * numbers are Python's to the last bit where the network's are.
 */

const f = Math.fround;

/** The weighted sum of arrays, in float32; the factors are rounded once. */
export function combine(...terms) {
  const [[first, start], ...rest] = terms;
  const total = new Float32Array(start.length);
  const scale = f(first);
  for (let i = 0; i < total.length; i += 1) total[i] = scale * start[i];
  for (const [factor, array] of rest) {
    if (factor === 0) continue;
    const rounded = f(factor);
    for (let i = 0; i < total.length; i += 1) total[i] += f(rounded * array[i]);
  }
  return total;
}

const toward = (x0, x, share) => combine([1 - share, x0], [share, x]);
const slope = (x, x0, sigma) => combine([1 / sigma, x], [-1 / sigma, x0]);
const steps = (sigmas) => sigmas.slice(0, -1).map((sigma, index) => [sigma, sigmas[index + 1], index]);

/** sigma_down to step to, and sigma_up, the noise to add (k-diffusion's "ancestral"). */
function ancestral(sigma, next, eta) {
  const up = Math.min(next, (eta * Math.sqrt(next ** 2 * Math.max(sigma ** 2 - next ** 2, 0))) / sigma);
  return [Math.sqrt(next ** 2 - up ** 2), up];
}

async function* euler(denoise, x, sigmas) {
  for (const [sigma, next] of steps(sigmas)) {
    x = toward(await denoise(x, sigma), x, next / sigma);
    yield x;
  }
}

const ancestralWith = (eta) =>
  async function* (denoise, x, sigmas, rng) {
    for (const [sigma, next] of steps(sigmas)) {
      const [down, up] = ancestral(sigma, next, eta);
      x = toward(await denoise(x, sigma), x, down / sigma);
      if (up > 0) x = combine([1, x], [up, rng.normal(x.length)]);
      yield x;
    }
  };

async function* heun(denoise, x, sigmas) {
  for (const [sigma, next] of steps(sigmas)) {
    const x0 = await denoise(x, sigma);
    let ahead = toward(x0, x, next / sigma);
    if (next > 0) {
      const [here, there] = [slope(x, x0, sigma), slope(ahead, await denoise(ahead, next), next)];
      const half = 0.5 * (next - sigma);
      ahead = combine([1, ahead], [half, there], [-half, here]);
    }
    x = ahead;
    yield x;
  }
}

/** DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095, algorithm 2), midpoint; the last step of a short run is first order. */
async function* dpmpp2m(denoise, x, sigmas) {
  const lambdas = sigmas.map((sigma) => (sigma > 0 ? -Math.log(sigma) : Infinity));
  const count = sigmas.length - 1;
  let before = null;
  for (const [sigma, next, index] of steps(sigmas)) {
    const x0 = await denoise(x, sigma);
    const h = lambdas[index + 1] - lambdas[index];
    const phi = -Math.expm1(-h);
    const first = before === null || h === Infinity || (count < 15 && index === count - 1);
    const terms = [[phi, x0]];
    if (!first) {
      const ratio = (lambdas[index] - lambdas[index - 1]) / h;
      terms.push([0.5 * phi, combine([1 / ratio, x0], [-1 / ratio, before])]);
    }
    x = combine([next / sigma, x], ...terms);
    before = x0;
    yield x;
  }
}

/** Latent consistency models (Luo et al. 2023): denoise fully, add new noise, repeat. */
async function* lcm(denoise, x, sigmas, rng) {
  for (const [sigma, next] of steps(sigmas)) {
    x = await denoise(x, sigma);
    if (next > 0) x = combine([1, x], [next, rng.normal(x.length)]);
    yield x;
  }
}

/** Name → function, A1111's label, default schedule, spacing of timesteps, start from the variance of training, end of the last step. */
export const SAMPLERS = {
  euler: { run: euler, label: "Euler", schedule: "model", grid: "fractional" },
  euler_a: { run: ancestralWith(1), label: "Euler a", schedule: "model", grid: "fractional" },
  heun: { run: heun, label: "Heun", schedule: "model", grid: "fractional", calls: 2 },
  ddim: { run: ancestralWith(0), label: "DDIM", schedule: "model", grid: "integer", unitVariance: true, final: "model" },
  ddpm: { run: ancestralWith(1), label: "DDPM", schedule: "model", grid: "integer", unitVariance: true },
  "dpm++2m": { run: dpmpp2m, label: "DPM++ 2M", schedule: "karras", grid: "spare", unitVariance: true },
  lcm: { run: lcm, label: "LCM", schedule: "model", grid: "distilled", unitVariance: true },
};

/** The scale of the first noise at `sigma`. */
export function startScale(sampler, noise, sigma) {
  return sampler.unitVariance || noise.spacing === "leading" ? Math.sqrt(1 + sigma * sigma) : sigma;
}

/** Where the schedule of `sampler` ends: "zero" or "sigma_min". */
export const finalOf = (sampler, noise) => (sampler.final === "model" ? noise.final : "zero");
