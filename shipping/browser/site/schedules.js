/** Schedules: `steps + 1` descending sigmas, ending at 0 or at the model's smallest sigma. The names and numbers are those of Python. */

import { interpolate, linspace, modelSigmas, sigmaOf } from "./noise_levels.js";

const range = (count) => Array.from({ length: count }, (_, index) => index);

/** Rounded to the nearest whole number, halves to the even one. */
export function rint(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

function timesteps(spacing, noise, steps, grid) {
  const count = noise.train_timesteps;
  if (steps === 1) return [count - 1];
  if (spacing === "trailing") return range(steps).map((index) => rint(count - index * (count / steps)) - 1);
  const spare = grid === "spare" && steps < count ? 1 : 0;
  if (spacing === "linspace") {
    const result = linspace(0, count - 1, steps + spare).slice(spare).reverse();
    return grid === "fractional" ? result : result.map(rint);
  }
  const stride = Math.floor(count / (steps + spare));
  const top = (steps + spare - 1) * stride;
  return range(steps).map((index) => top - index * stride + Math.min(noise.steps_offset, count - 1 - top));
}

const spaced = (spacing) => (noise, steps, grid) => {
  const own = modelSigmas(noise);
  return timesteps(spacing, noise, steps, grid).map((step) => interpolate(step, range(own.length), own));
};

function bounds(noise) {
  const own = modelSigmas(noise);
  return [own[0], own.at(-1)];
}

function karras(noise, steps) {
  const [low, high] = bounds(noise);
  return linspace(high ** (1 / 7), low ** (1 / 7), steps).map((root) => root ** 7);
}

function exponential(noise, steps) {
  const [low, high] = bounds(noise);
  return linspace(Math.log(high), Math.log(low), steps).map(Math.exp);
}

function klOptimal(noise, steps) {
  const [low, high] = bounds(noise);
  return linspace(Math.atan(high), Math.atan(low), steps).map(Math.tan);
}

function sgmUniform(noise, steps) {
  return linspace(noise.train_timesteps - 1, 0, steps + 1).slice(0, -1).map(sigmaOf(noise));
}

function simple(noise, steps) {
  const [own, count] = [modelSigmas(noise), noise.train_timesteps];
  return range(steps).map((index) => own[count - 1 - Math.trunc((index * count) / steps)]);
}

/** Luo et al. 2023: an even selection of the 50 timesteps that latent consistency models were distilled on. */
function lcm(noise, steps) {
  const trained = Math.min(50, noise.train_timesteps);
  if (steps > trained) throw new RangeError(`steps: ${steps}, expected at most ${trained} with the schedule lcm`);
  const own = modelSigmas(noise);
  const stride = Math.floor(noise.train_timesteps / trained);
  return range(steps).map((index) => own[(trained - Math.floor(index * (trained / steps))) * stride - 1]);
}

function model(noise, steps, grid) {
  return (grid === "distilled" ? lcm : spaced(noise.spacing))(noise, steps, grid);
}

/** Name → its function and A1111's label. */
export const SCHEDULES = {
  model: { levels: model, label: "Automatic" },
  linspace: { levels: spaced("linspace"), label: "Uniform" },
  leading: { levels: spaced("leading"), label: "DDIM" },
  trailing: { levels: spaced("trailing"), label: "Trailing" },
  karras: { levels: karras, label: "Karras" },
  exponential: { levels: exponential, label: "Exponential" },
  kl_optimal: { levels: klOptimal, label: "KL Optimal" },
  sgm_uniform: { levels: sgmUniform, label: "SGM Uniform" },
  simple: { levels: simple, label: "Simple" },
  lcm: { levels: lcm, label: "LCM" },
};

/** The noise levels of `steps` steps. `grid` is the sampler's; `final` is "zero" or "sigma_min". */
export function sigmas(name, noise, steps, grid = "fractional", final = "zero") {
  const top = noise.train_timesteps;
  if (!Number.isInteger(steps) || steps < 1 || steps > top) throw new RangeError(`steps: ${steps}, expected 1 to ${top} with this model`);
  const levels = SCHEDULES[name].levels(noise, steps, grid);
  if (final === "zero") return [...levels, 0];
  const last = modelSigmas(noise)[0];
  return levels.at(-1) > last * (1 + 1e-9) ? [...levels, last] : levels;
}
