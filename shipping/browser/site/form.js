/** The prompt and the settings. */

import { $, el, remember, remembered } from "./dom.js";
import { t } from "./i18n.js";
import { SAMPLERS } from "./samplers.js";
import { SCHEDULES } from "./schedules.js";

const NAMES = ["prompt", "negative", "width", "height", "steps", "guidance", "sampler", "schedule", "seed"];

const field = (name, control, hint) =>
  el("div", { class: "field" }, el("label", { htmlFor: name, text: t(`field.${name}`) }), control, hint && el("p", { class: "hint", text: hint }));

function numeric(name, { min, max, step, value }) {
  const input = el("input", { id: name, type: "number", class: "number", inputmode: "decimal", min, max, step, value: String(value) });
  const slider = el("input", { type: "range", min, max, step, value: String(value), "aria-label": t(`field.${name}`), tabindex: "-1" });
  const show = () => slider.style.setProperty("--part", `${(100 * (slider.value - min)) / (max - min)}%`);
  slider.addEventListener("input", () => {
    input.value = slider.value;
    show();
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  input.addEventListener("input", () => {
    slider.value = input.value;
    show();
  });
  show();
  return el("div", { class: "number-row" }, slider, input);
}

function choice(name, entries, value) {
  const options = entries.map(([key, text]) => el("option", { value: key, text }));
  const select = el("select", { id: name }, ...options);
  select.value = value;
  return el("div", { class: "select" }, select);
}

const labelled = (table) => Object.entries(table).map(([name, { label }]) => [name, label]);

/** Build the form for `manifest`, with the prompts `examples` as buttons. */
export function buildForm(manifest, examples) {
  const { defaults, latent } = manifest;
  const start = defaultsOf(manifest);
  const side = { min: latent.downscale, max: 2048, step: latent.downscale };
  const chips = examples.map((text) =>
    el("li", {}, el("button", { type: "button", class: "chip", text, onclick: () => set({ prompt: text }) })),
  );
  const more = el(
    "details",
    { id: "more" },
    el("summary", { text: t("more") }),
    el(
      "div",
      { class: "more" },
      field("negative", el("textarea", { id: "negative", rows: "2", maxlength: "20000" })),
      field("steps", numeric("steps", { min: 1, max: 50, step: 1, value: defaults.steps })),
      field("guidance", numeric("guidance", { min: 1, max: 20, step: 0.5, value: defaults.guidance })),
      el(
        "div",
        { class: "two" },
        field("width", el("input", { id: "width", type: "number", class: "number", ...side, value: String(defaults.width) })),
        field("height", el("input", { id: "height", type: "number", class: "number", ...side, value: String(defaults.height) })),
        field("sampler", choice("sampler", labelled(SAMPLERS), start.sampler)),
        field("schedule", choice("schedule", labelled(SCHEDULES), start.schedule)),
      ),
      el("button", { type: "button", class: "button small", text: t("reset"), onclick: () => set({ ...start, prompt: $("#prompt").value }) }),
    ),
  );
  $("#fields").replaceChildren(
    field("prompt", el("textarea", { id: "prompt", rows: "4", maxlength: "20000", placeholder: t("prompt.placeholder"), enterkeyhint: "go" })),
    ...(chips.length ? [el("ul", { class: "chips", "aria-label": t("examples") }, ...chips)] : []),
    field(
      "seed",
      el("input", { id: "seed", type: "text", class: "number", inputmode: "numeric", pattern: "[0-9]*", placeholder: t("seed.random"), maxlength: "20" }),
    ),
    more,
  );
  set({ ...start, ...(remembered("form") ?? {}) });
  $("#form").addEventListener("input", () => remember("form", values()));
}

/** The settings that the model suggests, as the form writes them. */
export function defaultsOf({ defaults }) {
  const sampler = defaults.sampler in SAMPLERS ? defaults.sampler : "dpm++2m";
  const schedule = defaults.schedule in SCHEDULES ? defaults.schedule : SAMPLERS[sampler].schedule;
  const { width, height, steps, guidance } = defaults;
  const numbers = Object.fromEntries(Object.entries({ width, height, steps, guidance }).map(([name, value]) => [name, String(value)]));
  return { prompt: "", negative: "", seed: "", sampler, schedule, ...numbers };
}

export function values() {
  return Object.fromEntries(NAMES.map((name) => [name, $(`#${name}`).value]));
}

export function set(given) {
  for (const [name, value] of Object.entries(given)) {
    const node = NAMES.includes(name) ? $(`#${name}`) : null;
    if (!node) continue;
    node.value = value;
    node.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

/** The request as it stands. An empty seed becomes a random one of 32 bits. */
export function request() {
  const said = values();
  const seed = said.seed.trim() || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  if (!/^\d{1,20}$/u.test(seed)) throw new RangeError(`seed: ${seed}, expected 0 to 18446744073709551615`);
  const numbers = Object.fromEntries(["width", "height", "steps", "guidance"].map((name) => [name, Number(said[name] || NaN)]));
  return { ...said, ...numbers, seed };
}
