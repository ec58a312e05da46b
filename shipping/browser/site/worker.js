/** The worker that draws, so that the page stays alive. One message in, events out; see `send`. */

import { Files } from "./files.js";
import { texts } from "./metadata.js";
import { openModel, preview } from "./model.js";
import { base, packed } from "./place.js";
import { encodePng } from "./png.js";
import { threads } from "./threads.js";

const MODEL = "model/";
const send = (type, facts = {}, transfer = []) => self.postMessage({ type, ...facts }, transfer);

let site;
let wish; // what the address asks for: {provider, threads}
let files;
let model = null;
let stop = null; // AbortController of what runs

class Cancelled extends Error {}

/** Let messages in, such as the one that cancels; between two calls of the network nothing else does. */
const channel = new MessageChannel();
let resume = () => {};
channel.port1.onmessage = () => resume();

async function turn() {
  await new Promise((resolve) => {
    resume = resolve;
    channel.port2.postMessage(0);
  });
  if (stop.signal.aborted) throw new Cancelled();
}

/** Whether to draw with WebGPU: where the site has its runtime, and on real hardware. `?provider=webgpu` or `wasm` decides otherwise. */
async function onGpu() {
  if (packed || !site.runtime.webgpu || wish.provider === "wasm") return false;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && (wish.provider === "webgpu" || !adapter.info?.isFallbackAdapter);
}
const runtimeFiles = (gpu) => (gpu ? ["runtime/ort.webgpu.js", "runtime/ort.webgpu.wasm"] : ["runtime/ort.wasm.js", "runtime/ort.wasm"]);
const needed = (gpu) => [runtimeFiles(gpu)[1], ...site.model.files.map((path) => MODEL + path)];

async function start(message) {
  ({ site, wish } = message);
  files = new Files(base?.href, site.files, packed?.parts);
  const paths = needed(await onGpu());
  const missing = await files.missing(paths);
  const sum = (some) => some.reduce((total, path) => total + site.files[path].size, 0);
  send("started", { download: sum(missing), model: sum(paths.slice(1)), runtime: sum(paths.slice(0, 1)) });
}

async function open() {
  const gpu = await onGpu();
  try {
    await openOn(gpu);
  } catch (error) {
    if (!gpu || stop.signal.aborted) throw error;
    await openOn(false); // a driver that refuses the model
  }
}

async function openOn(gpu) {
  const missing = await files.missing(needed(gpu));
  const total = missing.reduce((sum, path) => sum + site.files[path].size, 0);
  let done = 0;
  let told = 0;
  const arrived = (bytes) => {
    done += bytes;
    if (done < total && performance.now() - told < 100) return;
    told = performance.now();
    send("loading", { done, total });
  };
  const read = (path) => files.read(path, { signal: stop.signal, arrived });
  const [script, binary] = runtimeFiles(gpu);
  const ort = await import(packed?.urls[script] ?? `../${script}`);
  ort.env.wasm.wasmBinary ??= (await read(binary)).buffer;
  ort.env.wasm.numThreads = threads(self.crossOriginIsolated, navigator.hardwareConcurrency, wish.threads);
  ort.env.logLevel = "error";
  const manifest = JSON.parse(new TextDecoder().decode(await read(`${MODEL}manifest.json`)));
  const opened = (component) => {
    if (stop.signal.aborted) throw new Cancelled();
    send("opening", { component, done: total ? done / total : 1 });
  };
  model = await openModel(ort, manifest, (path) => read(MODEL + path), { provider: gpu ? "webgpu" : "wasm", opened });
  await files.tidy();
  send("ready", { provider: model.provider, threads: ort.env.wasm.numThreads });
}

async function draw({ request }) {
  const begun = performance.now();
  if (!model) await open();
  const opened = performance.now();
  for await (const event of model.draw(request, turn)) {
    if (!event.pixels) {
      const small = preview(event.denoised, event.shape, model.manifest.preview);
      send("step", { step: event.step, steps: event.steps, preview: small });
      continue;
    }
    const seconds = (performance.now() - opened) / 1000;
    const chunks = texts(event.request, site.model, site.tool, { memory: "resident", provider: model.provider });
    const png = await encodePng(event.pixels, event.width, event.height, chunks);
    const { solver, ...settings } = event.request;
    const facts = { ...settings, seconds, opening: (opened - begun) / 1000, calls: model.calls, unknown: event.unknown, cut: event.cut };
    send("image", { png: png.buffer, facts }, [png.buffer]);
  }
}

function codeOf(error) {
  if (error instanceof Cancelled || error?.name === "AbortError") return "cancelled";
  if (error?.code) return error.code;
  const text = String(error?.message ?? error);
  if (error instanceof RangeError && /^\w+: /u.test(text)) return "request";
  if (/memory|allocat|Array buffer|bad_alloc/iu.test(text)) return "memory";
  if (error instanceof TypeError && /fetch|network|load/iu.test(text)) return "network";
  return "internal";
}

const work = { start, draw };

self.onmessage = async ({ data }) => {
  if (data.type === "cancel") {
    stop?.abort();
    return;
  }
  stop = new AbortController();
  try {
    await work[data.type](data);
  } catch (error) {
    send("failed", { code: codeOf(error), message: String(error?.message ?? error) });
  }
};
