/** From the form to a request, and from an image's settings back to the form. */

import { form, INITIAL } from "./form.js";
import { maskAsDataUrl, source, sourceAsInput } from "./source.js";
import { store } from "./store.js";

const PLAIN = ["width", "height", "steps", "guidance", "sampler", "schedule", "speed", "clip_skip", "rescale", "decoder", "rng"];
const HIRES = ["hires", "hires_steps", "hires_strength", "hires_upscaler"];
const FROM_IMAGE = ["strength", "fit", "image_guidance"];
const WITH_MASK = ["mask_blur", "only_masked", "mask_padding"];

/** Fields of a request that are two fields of the form. */
export const PAIRS = {
  guidance_interval: ["guidance_start", "guidance_end"],
  original_size: ["original_width", "original_height"],
  crop: ["crop_left", "crop_top"],
};
const LISTS = ["timesteps", "sigmas"];

/** The numbers in a text. A word that is none stays a word, so that the server says what is wrong with it. */
export const numbersIn = (text) =>
  text
    .split(/[\s,;]+/)
    .filter(Boolean)
    .map((word) => (Number.isFinite(Number(word)) ? Number(word) : word));

function copy(names, request, values) {
  for (const name of names) if (values[name] !== null && values[name] !== undefined && values[name] !== "") request[name] = values[name];
}

/** Names of the embeddings that a text uses as words. */
function embeddingsIn(text) {
  const words = new Set(text.split(/[\s,()[\]:|]+/));
  return (store.details?.embeddings ?? []).map((one) => one.name).filter((name) => words.has(name));
}

/** The request's fields as the form has them, without pictures. */
export function fields(values = form.all()) {
  const request = { prompt: values.prompt };
  if (values.negative) request.negative = values.negative;
  copy(PLAIN, request, values);
  if (values.seedLocked && values.seed !== null) request.seed = values.seed;
  if (values.count > 1) request.count = values.count;
  if (values.hires > 1) copy(HIRES, request, values);
  if (values.variation > 0) copy(["variation", "variation_seed"], request, values);
  for (const [name, parts] of Object.entries(PAIRS)) {
    if (parts.some((part) => values[part] !== null)) request[name] = parts.map((part) => values[part] ?? form.auto(part));
  }
  for (const name of LISTS) if (values[name].trim()) request[name] = numbersIn(values[name]);
  if (Object.keys(values.sampler_options).length) request.sampler_options = values.sampler_options;
  if (values.loras.length) request.loras = values.loras;
  const used = embeddingsIn(`${values.prompt} ${values.negative}`);
  if (used.length) request.embeddings = used;
  return request;
}

/** The whole request, with the start image and the mask. */
export async function requestOf(values = form.all()) {
  const request = fields(values);
  if (!source.input || store.details?.image_to_image === false) return request;
  request.init = await sourceAsInput();
  copy(FROM_IMAGE, request, values);
  if (source.mask && store.details?.inpaint !== false) {
    request.mask = await maskAsDataUrl();
    copy(WITH_MASK, request, values);
  }
  return request;
}

/** Put an image's `settings` into the form. Returns the names that this page has no field for. */
export function applySettings(settings, { seed = true } = {}) {
  const changes = {};
  const left = [];
  for (const [name, value] of Object.entries(settings)) {
    if (value === null || value === undefined) continue;
    if (["seed", "init", "mask", "count"].includes(name)) continue;
    if (name in PAIRS) for (const [place, part] of PAIRS[name].entries()) changes[part] = value[place];
    else if (LISTS.includes(name)) changes[name] = value.join(", ");
    else if (name in INITIAL) changes[name] = value;
    else left.push(name);
  }
  if (seed && settings.seed !== null && settings.seed !== undefined) {
    changes.seed = String(settings.seed);
    changes.seedLocked = true;
  }
  form.assign({ ...emptied(), ...changes });
  return left;
}

/** Settings that an image's record leaves out are at their defaults. */
function emptied() {
  const kept = new Set([
    "prompt",
    "model",
    "live",
    "count",
    "seed",
    "seedLocked",
    "strength",
    "fit",
    "mask_blur",
    "only_masked",
    "mask_padding",
    "format",
  ]);
  return Object.fromEntries(Object.entries(INITIAL).filter(([name]) => !kept.has(name)));
}
