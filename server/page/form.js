/** What the user has set. A field that is null takes the model's default, which the page shows in its place. */

import { keep, recall } from "./persistence.js";
import { emit, on, store } from "./store.js";

export const INITIAL = Object.freeze({
  prompt: "",
  negative: "",
  model: null,
  width: null,
  height: null,
  steps: null,
  guidance: null,
  sampler: null,
  schedule: null,
  sampler_options: {},
  seed: null,
  seedLocked: false,
  count: null,
  speed: null,
  strength: null,
  fit: "crop",
  mask_blur: null,
  only_masked: false,
  mask_padding: null,
  image_guidance: null,
  hires: null,
  hires_steps: null,
  hires_strength: null,
  hires_upscaler: null,
  variation: null,
  variation_seed: null,
  clip_skip: null,
  rescale: null,
  guidance_start: null,
  guidance_end: null,
  timesteps: "",
  sigmas: "",
  original_width: null,
  original_height: null,
  crop_left: null,
  crop_top: null,
  decoder: null,
  rng: null,
  format: null,
  loras: [],
  live: false,
});

let values = { ...INITIAL };

export function loadForm() {
  const kept = recall("form");
  values = { ...INITIAL };
  if (kept && typeof kept === "object") {
    for (const name of Object.keys(INITIAL)) if (kept[name] !== undefined) values[name] = kept[name];
  }
}

export const form = {
  get: (name) => values[name],
  all: () => structuredClone(values),
  set(name, value) {
    if (Object.is(values[name], value)) return;
    values[name] = value;
    keep("form", values);
    emit("form", [name]);
  },
  assign(changes) {
    values = { ...values, ...changes };
    keep("form", values);
    emit("form", Object.keys(changes));
  },
  reset() {
    this.assign({ ...INITIAL, model: values.model });
  },
  /** The value that will be used: the user's or the model's default. */
  effective(name) {
    return values[name] ?? FIXED[name] ?? store.details?.defaults?.[name] ?? null;
  },
  auto(name) {
    return FIXED[name] ?? store.details?.defaults?.[name] ?? null;
  },
};

/** Defaults that every model shares. */
const FIXED = {
  count: 1,
  mask_blur: 4,
  mask_padding: 32,
  hires: 1,
  hires_upscaler: "lanczos",
  variation: 0,
  clip_skip: 0,
  rescale: 0,
  rng: "numpy",
  decoder: "vae",
  guidance_start: 0,
  guidance_end: 1,
  crop_left: 0,
  crop_top: 0,
  format: "png",
  strength: 0.75,
  hires_strength: 0.5,
  image_guidance: 1.5,
};

/** Call `listener` now and whenever one of `names` changes. */
export function watch(names, listener) {
  const list = Array.isArray(names) ? names : [names];
  on("form", (changed) => {
    if (changed.some((name) => list.includes(name))) listener();
  });
  listener();
}
