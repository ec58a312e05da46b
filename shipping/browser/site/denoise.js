/** Predictions of the U-Net become denoised samples; guidance puts those of the prompt and of the negative prompt together. */

import { timestepOf } from "./noise_levels.js";
import { combine } from "./samplers.js";

/** x0 from a prediction: epsilon (Ho et al. 2020), v (Salimans & Ho 2022), or the sample itself. */
export function denoised(prediction, x, sigma, output) {
  if (prediction === "epsilon") return combine([1, x], [-sigma, output]);
  if (prediction === "v_prediction") return combine([1 / (sigma * sigma + 1), x], [-sigma / Math.sqrt(sigma * sigma + 1), output]);
  return output;
}

/** The `timestep_cond` of a latent consistency model: its guidance scale as sinusoids (Luo et al. 2023). */
export function guidanceEmbedding(scale, width) {
  const half = Math.floor(width / 2);
  const result = new Float32Array(width);
  for (let i = 0; i < half; i += 1) {
    const angle = (scale - 1) * 1000 * Math.exp(i * (-Math.log(10000) / (half - 1)));
    result[i] = Math.sin(angle);
    result[half + i] = Math.cos(angle);
  }
  return result;
}

/**
 * A denoiser `(x, sigma) → x0` with classifier-free guidance over prompts joined by AND.
 *
 * `predict(x, timestep, states)` runs the U-Net on a scaled sample; `positive(sigma)` and `negative(sigma)` give [{weight, states}].
 */
export function guided({ predict, noise, positive, negative, scale }) {
  const timestep = timestepOf(noise);
  return async (x, sigma) => {
    const input = combine([1 / Math.sqrt(1 + sigma * sigma), x]);
    const run = (states) => predict(input, timestep(sigma), states);
    const prompts = positive(sigma).filter((prompt) => prompt.weight !== 0);
    const total = prompts.reduce((sum, prompt) => sum + prompt.weight, 0);
    const outputs = [];
    for (const prompt of prompts) outputs.push(await run(prompt.states));
    if (total !== 0 && (negative === null || Math.abs(1 - scale * total) < 1e-9)) {
      const mean = outputs.length === 1 ? outputs[0] : combine(...outputs.map((output, index) => [prompts[index].weight / total, output]));
      return denoised(noise.prediction, x, sigma, mean);
    }
    if (negative === null) throw new RangeError("prompt: the weights of the AND parts sum to 0, which requires a negative prompt");
    const away = await run(negative(sigma)[0].states);
    const terms = outputs.map((output, index) => [scale * prompts[index].weight, output]);
    return denoised(noise.prediction, x, sigma, combine([1 - scale * total, away], ...terms));
  };
}
