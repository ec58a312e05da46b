/** The last group of the form: what few people need, and the settings that only some models have. */

import { el } from "./dom.js";
import { frame, numberField, selectField } from "./controls.js";
import { form, watch } from "./form.js";
import { number, t } from "./i18n.js";
import { on, store } from "./store.js";

/** Two numbers that make one field of a request. `joint` stands between them. */
function pairField(name, parts, { joint, hint = null, ...bounds }) {
  const inputs = parts.map((part) => pairInput(part, bounds));
  const row = el("div", { class: "pair-row" }, inputs[0], el("span", { class: "pair-joint", "aria-hidden": "true", text: joint }), inputs[1]);
  const field = frame(name, t(`field.${name}`), row, { input: inputs[0], hint });
  field.querySelector("label").htmlFor = inputs[0].id;
  field.dataset.parts = parts.join(" ");
  return field;
}

function pairInput(part, bounds) {
  const input = el("input", { type: "number", class: "number", id: `f-${part}`, "aria-label": t(`field.${part}`), ...bounds });
  input.addEventListener("input", () => {
    if (!input.validity.badInput) form.set(part, input.value === "" ? null : Number(input.value));
  });
  const show = () => {
    const value = form.get(part);
    if (document.activeElement !== input || Number(input.value) !== value) input.value = value ?? "";
    const auto = form.auto(part);
    input.placeholder = auto === null ? t("field.auto.placeholder") : number(auto, 3);
  };
  watch(part, show);
  on("details", show);
  return input;
}

/** Numbers in a row, kept as they were typed: the request checks them. */
function listField(name, placeholder) {
  const input = el("input", { type: "text", class: "number", id: `f-${name}`, placeholder: t("field.example", { value: placeholder }), spellcheck: "false" });
  input.addEventListener("input", () => form.set(name, input.value));
  watch(name, () => {
    if (input.value !== form.get(name)) input.value = form.get(name);
  });
  return frame(name, t(`field.${name}`), input, { hint: t(`${name}.hint`), wide: true });
}

/** Fields that only SDXL has; they stay while one of them is set, so that it can be taken back. */
function sizeConditioning() {
  const fields = [
    pairField("original_size", ["original_width", "original_height"], { joint: "×", min: 1, max: 4096, step: 1 }),
    pairField("crop", ["crop_left", "crop_top"], { joint: ",", min: 0, max: 4096, step: 1 }),
  ];
  const show = () => {
    const set = ["original_width", "original_height", "crop_left", "crop_top"].some((name) => form.get(name) !== null);
    for (const field of fields) field.hidden = !set && !store.details?.family?.startsWith("sdxl");
  };
  watch(["original_width", "original_height", "crop_left", "crop_top"], show);
  on("details", show);
  return fields;
}

export const EXPERT = [
  ...["clip_skip", "rescale", "guidance_start", "guidance_end", "decoder", "rng", "format"],
  ...["timesteps", "sigmas", "original_width", "original_height", "crop_left", "crop_top"],
];

export function expertFields(choices) {
  return el(
    "div",
    { class: "two" },
    pairField("guidance_interval", ["guidance_start", "guidance_end"], { joint: "–", min: 0, max: 1, step: 0.05 }),
    numberField("rescale", { min: 0, max: 1, step: 0.05 }),
    numberField("clip_skip", { min: 0, max: 12 }),
    selectField("decoder", () => choices("decoder", store.details?.decoders ?? ["vae"])),
    selectField("rng", () => choices("rng", ["numpy", "torch", "nv"])),
    selectField("format", () => choices("format", ["png", "jpeg", "webp"])),
    ...sizeConditioning(),
    listField("timesteps", "999, 750, 500, 250"),
    listField("sigmas", "14.6, 4.1, 1.6, 0.6"),
  );
}
