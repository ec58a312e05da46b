/**
 * The page's modules without a browser: node node_side.mjs SITE, with a request as JSON on stdin and the answer as JSON on stdout.
 *
 * SITE is a copy of the modules as a package of type "module". Arrays of floats go as base64 of their float32 bytes.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const site = process.argv[2];
const module = (name) => import(pathToFileURL(`${site}/${name}.js`));
const packed = (array) => Buffer.from(Float32Array.from(array).buffer).toString("base64");
const unpacked = (text) => new Float32Array(new Uint8Array(Buffer.from(text, "base64")).buffer);

const answers = {
  /** {seeds, counts}: the noise of each seed, drawn in pieces of these sizes. */
  async noise({ seeds, counts }) {
    const { Rng } = await module("random");
    return seeds.map((seed) => {
      const rng = new Rng(BigInt(seed));
      return packed(counts.flatMap((count) => [...rng.normal(count)]));
    });
  },

  /** {noises, cases: [schedule, steps, grid, final]}: levels and timesteps. */
  async schedules({ noises, cases }) {
    const { sigmas } = await module("schedules");
    const { timestepOf } = await module("noise_levels");
    return noises.map((noise) =>
      cases.map(([name, steps, grid, final]) => {
        const levels = sigmas(name, noise, steps, grid, final);
        return { levels, timesteps: levels.map(timestepOf(noise)) };
      }),
    );
  },

  /** {runs: [{sampler, levels, start, seed}]}: every sample, with a denoiser that is not linear. */
  async samplers({ runs }) {
    const { SAMPLERS, combine } = await module("samplers");
    const { Rng } = await module("random");
    const found = [];
    for (const { sampler, levels, start, seed } of runs) {
      const denoise = async (x, sigma) => combine([1 / (1 + sigma), x], [0.25, x.map((v) => Math.fround(v * v) / (1 + Math.fround(v * v)))]);
      const samples = [];
      for await (const x of SAMPLERS[sampler].run(denoise, unpacked(start), levels, new Rng(BigInt(seed)))) samples.push(packed(x));
      found.push(samples);
    }
    return found;
  },

  /** The tables of samplers and schedules. */
  async tables() {
    const { SAMPLERS } = await module("samplers");
    const { SCHEDULES } = await module("schedules");
    const facts = ({ label, schedule, grid, unitVariance = false, final = "zero" }) => ({ label, schedule, grid, unit: unitVariance, final });
    return {
      samplers: Object.fromEntries(Object.entries(SAMPLERS).map(([name, one]) => [name, facts(one)])),
      schedules: Object.fromEntries(Object.entries(SCHEDULES).map(([name, one]) => [name, one.label])),
    };
  },

  /** {vocabulary, …, texts}: token ids and unknown symbols. */
  async tokens({ vocabulary, merges, description, added, texts }) {
    const { Tokenizer } = await module("tokenizer");
    const tokenizer = new Tokenizer(vocabulary, merges, description, added);
    return texts.map((text) => tokenizer.encode(text));
  },

  /** {prompts, steps}: the weighted text of each step, and the chunks of the first one. */
  async prompts({ vocabulary, merges, description, prompts, steps }) {
    const { parse, atStep } = await module("grammar");
    const { chunk } = await module("encode");
    const { Tokenizer } = await module("tokenizer");
    const tokenizer = new Tokenizer(vocabulary, merges, description);
    return prompts.map((text) =>
      parse(text).map(({ weight, nodes }) => {
        const versions = Array.from({ length: steps }, (_, step) => atStep(nodes, step, steps));
        return { weight, versions, chunks: versions.map((sections) => chunk(sections, tokenizer).chunks) };
      }),
    );
  },

  /** {bundle}: the files that the page reads. */
  async files({ bundle }) {
    const { filesOf } = await module("model");
    return filesOf(JSON.parse(readFileSync(`${bundle}/manifest.json`)));
  },

  /** {ort, bundle, requests, png}: whole images with ONNX Runtime Web's WASM. */
  async draw({ ort: packageFolder, bundle, requests, png, tool, hash }) {
    const ort = createRequire(`${packageFolder}/`)("onnxruntime-web");
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    const { openModel, filesOf, preview } = await module("model");
    const { encodePng } = await module("png");
    const { texts } = await module("metadata");
    const manifest = JSON.parse(readFileSync(`${bundle}/manifest.json`));
    const read = async (path) => {
      if (!filesOf(manifest).includes(path)) throw new Error(`${path} is not among the files of the site`);
      return readFileSync(`${bundle}/${path}`);
    };
    const model = await openModel(ort, manifest, read);
    const images = [];
    for (const [number, request] of requests.entries()) {
      const steps = [];
      for await (const event of model.draw(request)) {
        if (!event.pixels) {
          const small = preview(event.denoised, event.shape, manifest.preview);
          steps.push({ step: event.step, of: event.steps, preview: small && Buffer.from(small.pixels).toString("base64") });
          continue;
        }
        const chunks = texts(event.request, { name: manifest.source.name, hash }, tool, { memory: "resident", provider: "wasm" });
        const file = await encodePng(event.pixels, event.width, event.height, chunks);
        writeFileSync(`${png}/${number}.png`, file);
        images.push({ latents: packed(event.latents), steps, unknown: event.unknown, cut: event.cut, calls: model.calls });
      }
    }
    return images;
  },
};

const { what, ...request } = JSON.parse(readFileSync(0));
process.stdout.write(JSON.stringify(await answers[what](request)));
