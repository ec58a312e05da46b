/** The form: the few settings that matter most first, everything else one click away. */

import { frame, iconButton, numberField, samplerTitle, segmented, selectField } from "./controls.js";
import { $, el } from "./dom.js";
import { EXPERT, expertFields } from "./expert.js";
import { form, INITIAL, watch } from "./form.js";
import { has, t } from "./i18n.js";
import { icon } from "./icons.js";
import { toast, toastError } from "./notices.js";
import { keep, recall } from "./persistence.js";
import { presetsMenu } from "./presets.js";
import { promptFields } from "./prompt.js";
import { seedFields } from "./seed.js";
import { sizeFields } from "./size.js";
import { clearSource, putSource, sourceNow } from "./source.js";
import { sourceFields } from "./source_card.js";
import { on, store } from "./store.js";

/** Choices from the server, as names or as { name, title }. */
function choices(prefix, list) {
  return (list ?? []).map((one) => {
    const name = one.name ?? one;
    const about = `${prefix}.${name}.title`;
    return {
      value: name,
      text: has(`${prefix}.${name}`) ? t(`${prefix}.${name}`) : (one.title ?? name),
      title: has(about) ? t(about) : null,
    };
  });
}

function guidanceWord(value) {
  if (value === null) return "";
  return t(
    value <= 1
      ? "guidance.off"
      : value < 4
        ? "guidance.loose"
        : value < 8
          ? "guidance.balanced"
          : value < 14
            ? "guidance.close"
            : "guidance.strict",
  );
}

/** A section that opens and closes, and stays as it was left. `fields` tells in the closed title what is set inside. */
function section(name, fields, ...children) {
  const mark = el("span", { class: "section-mark" });
  const node = el(
    "details",
    { class: "section", open: (recall("sections") ?? {})[name] ?? false },
    el("summary", {}, icon("chevron"), el("span", { text: t(`section.${name}`) }), mark),
    el("div", { class: "section-body" }, ...children),
  );
  node.addEventListener("toggle", () => keep("sections", { ...recall("sections"), [name]: node.open }));
  watch(fields, () => {
    const set = fields.filter((field) => JSON.stringify(form.get(field)) !== JSON.stringify(INITIAL[field])).length;
    mark.textContent = set ? t("section.set", { count: set }) : "";
  });
  return node;
}

function quality() {
  return el(
    "div",
    { class: "group" },
    segmented("speed", () => choices("speed", store.details?.speeds ?? ["exact", "balanced", "fast"])),
    el(
      "div",
      { class: "two" },
      numberField("steps", { min: 1, max: 10000, slider: [1, 60] }),
      numberField("guidance", { min: 0, max: 100, step: 0.1, slider: [0, 20, 0.5], words: guidanceWord }),
    ),
  );
}

function sampling() {
  const samplers = () => (store.details?.samplers ?? []).map((one) => ({ value: one.name, text: samplerTitle(one.name) }));
  return section(
    "sampling",
    ["sampler", "schedule", "sampler_options"],
    el(
      "div",
      { class: "two" },
      selectField("sampler", samplers, { wide: true }),
      selectField("schedule", () => choices("schedule", store.details?.schedules), { wide: true }),
      samplerOptions(),
    ),
  );
}

function loras() {
  const rows = el("div", { class: "lora-rows" });
  const pick = el("select", { id: "f-lora-pick", "aria-label": t("lora.add") });
  const set = (list) => form.set("loras", list);
  const fill = () => {
    const chosen = form.get("loras");
    rows.replaceChildren(
      ...chosen.map((lora, index) => {
        const weight = el("input", {
          type: "number",
          class: "number",
          step: 0.05,
          min: -100,
          max: 100,
          value: lora.weight,
          "aria-label": t("lora.weight", { name: lora.name }),
          onchange: () => set(chosen.map((one, place) => (place === index ? { ...one, weight: Number(weight.value) } : one))),
        });
        return el(
          "div",
          { class: "lora-row" },
          el("span", { text: lora.name, class: "lora-name" }),
          weight,
          iconButton("close", t("lora.remove", { name: lora.name }), () => set(chosen.filter((_, place) => place !== index))),
        );
      }),
    );
    const free = (store.details?.loras ?? []).filter(({ name }) => !chosen.some((one) => one.name === name));
    pick.replaceChildren(
      el("option", { value: "", text: t(free.length ? "lora.add" : chosen.length ? "lora.none" : "lora.empty") }),
      ...free.map(({ name }) => el("option", { value: name, text: name })),
    );
    pick.disabled = free.length === 0;
  };
  pick.addEventListener("change", () => {
    if (pick.value) set([...form.get("loras"), { name: pick.value, weight: 1 }]);
  });
  watch("loras", fill);
  on("details", fill);
  return section(
    "loras",
    ["loras"],
    el(
      "div",
      { class: "field wide", data: { field: "loras" } },
      rows,
      el("div", { class: "select" }, pick),
      el("p", { class: "field-error", hidden: true }),
    ),
  );
}

function hires() {
  const upscalers = () => choices("upscaler", store.details?.upscalers ?? ["lanczos", "latent"]);
  return section(
    "hires",
    ["hires", "hires_steps", "hires_strength", "hires_upscaler"],
    el("p", { class: "section-hint", text: t("hires.hint") }),
    el(
      "div",
      { class: "two" },
      selectField("hires_upscaler", upscalers, { wide: true }),
      numberField("hires", { min: 1, max: 8, step: 0.05, slider: [1, 4, 0.25] }),
      numberField("hires_steps", { min: 1, max: 10000 }),
      numberField("hires_strength", { min: 0, max: 1, step: 0.01, slider: [0, 1, 0.05] }),
    ),
  );
}

function variation() {
  return section(
    "variation",
    ["variation", "variation_seed"],
    el("p", { class: "section-hint", text: t("variation.hint") }),
    el(
      "div",
      { class: "two" },
      numberField("variation", { min: 0, max: 1, step: 0.01, slider: [0, 1, 0.05] }),
      numberField("variation_seed", { min: 0, max: Number.MAX_SAFE_INTEGER }),
    ),
  );
}

/** `eta=0.5, s_noise=1` as an object, and back. */
const written = (options) =>
  Object.entries(options)
    .map(([name, value]) => `${name}=${value}`)
    .join(", ");

function read(text) {
  const pairs = text
    .split(",")
    .map((part) => part.split("=").map((one) => one.trim()))
    .filter(([name, value]) => name && value);
  const value = (word) => (word === "true" || word === "false" ? word === "true" : Number.isNaN(Number(word)) ? word : Number(word));
  return Object.fromEntries(pairs.map(([name, word]) => [name, value(word)]));
}

function samplerOptions() {
  const input = el("input", { type: "text", id: "f-sampler_options", placeholder: t("field.example", { value: "eta=0.5, s_noise=1" }) });
  const hint = el("p", { class: "field-hint" });
  input.addEventListener("input", () => form.set("sampler_options", read(input.value)));
  const show = () => {
    if (document.activeElement !== input) input.value = written(form.get("sampler_options"));
    const names = store.details?.samplers?.find((one) => one.name === form.effective("sampler"))?.options ?? [];
    hint.textContent = names.length ? t("sampler.options", { names: names.join(", ") }) : t("sampler.options.none");
  };
  watch(["sampler", "sampler_options"], show);
  on("details", show);
  const field = frame("sampler_options", t("field.sampler_options"), input, { wide: true });
  field.insertBefore(hint, field.lastChild);
  return field;
}

function expert() {
  return section("expert", EXPERT, expertFields(choices));
}

function head() {
  const reset = iconButton("reset", t("compose.reset"), () => {
    const before = form.all();
    const start = sourceNow();
    clearSource();
    form.reset();
    const back = () => {
      form.assign(before);
      putSource(start).catch(toastError);
    };
    toast(t("compose.reset.done"), { action: t("undo"), onAction: back });
    $("#prompt").focus();
  });
  return el("div", { class: "compose-head" }, presetsMenu(), reset);
}

export function buildCompose() {
  $("#fields").replaceChildren(
    head(),
    promptFields(),
    sourceFields(),
    sizeFields(),
    seedFields(),
    quality(),
    el("div", { class: "sections" }, sampling(), loras(), hires(), variation(), expert()),
  );
}
