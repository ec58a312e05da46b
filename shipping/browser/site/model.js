/** A bundle that is ready to draw: sessions, tokenizer, and the flow from a request to pixels. Neither page nor network in here. */

import { guidanceEmbedding, guided } from "./denoise.js";
import { encode } from "./encode.js";
import { clean } from "./grammar.js";
import { Rng } from "./random.js";
import { SAMPLERS, combine, finalOf, startScale } from "./samplers.js";
import { SCHEDULES, rint, sigmas as levelsOf } from "./schedules.js";
import { Tokenizer } from "./tokenizer.js";

const MAX_SIDE = 2048;
export const COMPONENTS = ["text_encoder", "unet", "vae_decoder"];

/** The files of `manifest` that drawing needs: graphs with their weights, and the tokenizer. */
export function filesOf(manifest) {
  const graphs = COMPONENTS.flatMap((name) => {
    const { graph } = manifest.components[name];
    const folder = graph.slice(0, graph.lastIndexOf("/") + 1);
    return [graph, ...Object.keys(manifest.files).filter((file) => file.startsWith(folder) && !file.endsWith(".onnx"))];
  });
  const { folder } = manifest.tokenizers.tokenizer;
  const words = ["vocab.json", "merges.txt", "added_tokens.json"].map((name) => `${folder}/${name}`);
  return [...new Set([...graphs, ...words.filter((name) => name in manifest.files)])];
}

/**
 * Open the model of `manifest`. `read(path)` gives the bytes of a file of the bundle; `provider` is "wasm" or "webgpu".
 *
 * `opened(name)` is called when the files of a component are there and it opens. Sessions open one after the other, so that few weights
 * are in memory twice.
 */
export async function openModel(ort, manifest, read, { provider = "wasm", opened = () => {} } = {}) {
  const text = async (path) => new TextDecoder().decode(await read(path));
  const { folder } = manifest.tokenizers.tokenizer;
  const added = `${folder}/added_tokens.json` in manifest.files ? JSON.parse(await text(`${folder}/added_tokens.json`)) : {};
  const tokenizer = new Tokenizer(
    JSON.parse(await text(`${folder}/vocab.json`)),
    await text(`${folder}/merges.txt`),
    manifest.tokenizers.tokenizer,
    added,
  );
  const sessions = {};
  for (const name of COMPONENTS) {
    const { graph } = manifest.components[name];
    const place = graph.slice(0, graph.lastIndexOf("/") + 1);
    const names = filesOf(manifest).filter((file) => file.startsWith(place) && file !== graph);
    const externalData = [];
    for (const file of names) externalData.push({ path: file.slice(place.length), data: await read(file) });
    const options = { executionProviders: [provider], logSeverityLevel: 3, ...(externalData.length ? { externalData } : {}) };
    const bytes = await read(graph);
    opened(name);
    sessions[name] = await ort.InferenceSession.create(bytes, options);
  }
  return new Model(ort, manifest, tokenizer, sessions, provider);
}

/** A request with the model's defaults, checked. Throws a RangeError that begins with the field's name. */
export function resolve(asked, manifest) {
  const { defaults, latent, noise } = manifest;
  const known = (name) => (name in SAMPLERS ? name : "dpm++2m");
  const sampler = asked.sampler || known(defaults.sampler);
  const schedule = asked.schedule || (asked.sampler || !(defaults.schedule in SCHEDULES) ? SAMPLERS[sampler]?.schedule : defaults.schedule);
  const request = {
    prompt: clean(asked.prompt ?? ""),
    negative: clean(asked.negative ?? ""),
    width: asked.width ?? defaults.width,
    height: asked.height ?? defaults.height,
    steps: asked.steps ?? defaults.steps,
    guidance: asked.guidance ?? defaults.guidance,
    seed: BigInt(asked.seed ?? 0),
    sampler,
    schedule,
  };
  for (const name of ["width", "height"]) {
    const side = request[name];
    if (!Number.isInteger(side) || side < latent.downscale || side > MAX_SIDE || side % latent.downscale) {
      throw new RangeError(`${name}: ${side}, expected a multiple of ${latent.downscale} from ${latent.downscale} to ${MAX_SIDE}`);
    }
  }
  if (!(request.guidance >= 0 && request.guidance <= 100)) throw new RangeError(`guidance: ${request.guidance}, expected 0 to 100`);
  if (request.seed < 0n || request.seed >= 1n << 64n) throw new RangeError(`seed: ${request.seed}, expected 0 to 18446744073709551615`);
  if (!(sampler in SAMPLERS)) throw new RangeError(`sampler: ${sampler}, expected one of ${Object.keys(SAMPLERS).join(", ")}`);
  if (!(schedule in SCHEDULES)) throw new RangeError(`schedule: ${schedule}, expected one of ${Object.keys(SCHEDULES).join(", ")}`);
  const solver = SAMPLERS[sampler];
  return { ...request, solver, sigmas: levelsOf(schedule, noise, request.steps, solver.grid, finalOf(solver, noise)) };
}

export class Model {
  constructor(ort, manifest, tokenizer, sessions, provider) {
    Object.assign(this, { ort, manifest, tokenizer, sessions, provider });
    /** Milliseconds of each U-Net call of the last image. */
    this.calls = [];
  }

  #tensor(data, shape) {
    return new this.ort.Tensor("float32", data, shape);
  }

  async #states(ids) {
    const wide = this.manifest.components.text_encoder.inputs.input_ids.dtype === "int64";
    const data = wide ? BigInt64Array.from(ids, BigInt) : Int32Array.from(ids);
    const outputs = await this.sessions.text_encoder.run({ input_ids: new this.ort.Tensor(wide ? "int64" : "int32", data, [1, ids.length]) }, [
      "last_hidden_state",
    ]);
    return Float32Array.from(outputs.last_hidden_state.data);
  }

  /** The U-Net as `predict(x, timestep, {states, tokens})`. `turn()` is awaited before each call: there a cancel can be heard. */
  #predict(shape, more, turn) {
    const { inputs } = this.manifest.components.unet;
    const wide = inputs.timestep.dtype === "int64";
    const dims = inputs.timestep.shape.length ? [1] : [];
    return async (x, timestep, { states, tokens }) => {
      await turn();
      const begun = performance.now();
      const time = wide ? new this.ort.Tensor("int64", BigInt64Array.of(BigInt(rint(timestep))), dims) : this.#tensor(Float32Array.of(timestep), dims);
      const feeds = { sample: this.#tensor(x, shape), timestep: time, encoder_hidden_states: this.#tensor(states, [1, tokens, states.length / tokens]), ...more };
      const output = Float32Array.from((await this.sessions.unet.run(feeds)).out_sample.data);
      this.calls.push(performance.now() - begun);
      return output;
    };
  }

  /**
   * Draw one image. Yields {step, steps, denoised, latents} after each step, at last {pixels, width, height, request}.
   *
   * `turn` is awaited between calls of the network; what it throws ends the drawing.
   */
  async *draw(asked, turn = async () => {}) {
    const { manifest } = this;
    const request = resolve(asked, manifest);
    const { sigmas, solver } = request;
    const { channels, downscale } = manifest.latent;
    const shape = [1, channels, request.height / downscale, request.width / downscale];
    const distilled = manifest.components.unet.inputs.timestep_cond;
    const encoded = await encode(request.prompt, request.guidance > 1 ? request.negative : null, {
      tokenizer: this.tokenizer,
      run: (ids) => this.#states(ids),
      sigmas,
      zeroEmptyNegative: manifest.zero_empty_negative === true,
    });
    const width = distilled?.shape.at(-1);
    const more = distilled ? { timestep_cond: this.#tensor(guidanceEmbedding(request.guidance, width), [1, width]) } : {};
    this.calls = [];
    const byStates = this.#predict(shape, more, turn);
    const attach = (conditioning) => conditioning && ((sigma) => conditioning(sigma).map((one) => ({ weight: one.weight, states: one })));
    const model = guided({
      predict: byStates,
      noise: manifest.noise,
      positive: attach(encoded.positive),
      negative: distilled ? null : attach(encoded.negative),
      scale: distilled ? 1 : request.guidance,
    });
    const rng = new Rng(request.seed);
    const count = shape.reduce((product, side) => product * side, 1);
    let latents = combine([startScale(solver, manifest.noise, sigmas[0]), rng.normal(count)]);
    let denoised = latents;
    const watched = async (x, sigma) => (denoised = await model(x, sigma));
    let step = 0;
    for await (latents of solver.run(watched, latents, sigmas, rng)) {
      step += 1;
      if (!latents.every(Number.isFinite)) throw new Error(`step ${step}: NaN or Inf in the latents; use less guidance or another sampler`);
      yield { step, steps: sigmas.length - 1, denoised, latents, shape };
    }
    await turn();
    const pixels = await this.#decode(latents, shape);
    yield { pixels, width: request.width, height: request.height, request, latents, unknown: encoded.unknown, cut: encoded.cut };
  }

  /** Latents to RGB bytes, row by row. */
  async #decode(latents, shape) {
    const { scaling, shift, mean, std } = this.manifest.latent;
    const area = shape[2] * shape[3];
    const z = latents.map((value, index) => {
      const channel = Math.floor(index / area);
      return mean && std ? value / (scaling / std[channel]) + mean[channel] : value / scaling + shift;
    });
    const { sample } = await this.sessions.vae_decoder.run({ latent_sample: this.#tensor(z, shape) });
    const [, , height, width] = sample.dims;
    const size = width * height;
    const pixels = new Uint8Array(3 * size);
    for (let channel = 0; channel < 3; channel += 1) {
      for (let at = 0; at < size; at += 1) {
        const value = sample.data[channel * size + at];
        if (!Number.isFinite(value)) throw new Error("NaN or Inf in the decoded image; use a bundle whose VAE decoder is fp32");
        pixels[3 * at + channel] = rint(Math.fround(Math.fround(Math.min(1, Math.max(-1, value)) + 1) * 127.5));
      }
    }
    return pixels;
  }
}

/** A small RGB image of unfinished latents, one pixel per latent pixel: colours are linear in them. null if the bundle has no factors. */
export function preview(latents, shape, factors) {
  if (!factors?.length) return null;
  const [, channels, height, width] = shape;
  const area = width * height;
  const pixels = new Uint8ClampedArray(4 * area);
  for (let at = 0; at < area; at += 1) {
    for (let colour = 0; colour < 3; colour += 1) {
      let value = factors[channels][colour];
      for (let channel = 0; channel < channels; channel += 1) value += latents[channel * area + at] * factors[channel][colour];
      pixels[4 * at + colour] = rint((Math.min(1, Math.max(-1, value || 0)) + 1) * 127.5);
    }
    pixels[4 * at + 3] = 255;
  }
  return { pixels, width, height };
}
