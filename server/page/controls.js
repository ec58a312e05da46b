/** The controls of the form. Each is bound to a field, shows the model's default while the field is empty, and can say what is wrong. */

import { el, unique } from "./dom.js";
import { form, watch } from "./form.js";
import { number, t } from "./i18n.js";
import { icon } from "./icons.js";
import { on, store } from "./store.js";

/** A button with an icon; `label` is its name and its tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** A frame for a field: label, control, hint, and a place for its error. */
export function frame(name, label, control, { input = control, hint = null, extra = null, wide = false } = {}) {
  const id = input.id || unique(name);
  input.id = id;
  const error = el("p", { class: "field-error", id: `${id}-error`, hidden: true });
  const about = hint && el("p", { class: "field-hint", id: `${id}-hint`, text: hint });
  input.setAttribute("aria-describedby", [about?.id, error.id].filter(Boolean).join(" "));
  return el(
    "div",
    { class: `field${wide ? " wide" : ""}`, data: { field: name } },
    el("div", { class: "field-head" }, el("label", { htmlFor: id, text: label }), extra),
    control,
    about,
    error,
  );
}

/** Colour a slider's track up to its knob. */
export function fillTrack(range) {
  const [low, high] = [Number(range.min), Number(range.max)];
  range.style.setProperty("--part", `${(100 * (Number(range.value) - low)) / (high - low)}%`);
}

/** A number with a slider beside it for the mouse. Empty means automatic. */
export function numberField(name, { min, max, step = 1, slider = null, label = t(`field.${name}`), hint = null, words = null }) {
  const input = el("input", {
    type: "number",
    class: "number",
    min,
    max,
    step,
    inputmode: step < 1 ? "decimal" : "numeric",
    id: `f-${name}`,
  });
  const range =
    slider &&
    el("input", { type: "range", min: slider[0], max: slider[1], step: slider[2] ?? step, tabindex: "-1", "aria-hidden": "true" });
  const back = el("button", {
    type: "button",
    class: "auto-button",
    title: t("field.auto.title"),
    "aria-label": t("field.auto.label", { name: label }),
    text: t("field.auto"),
    onclick: () => {
      form.set(name, null);
      input.focus();
    },
  });
  const word = words && el("span", { class: "field-word" });
  const read = () => (input.value === "" ? null : Number(input.value));
  input.addEventListener("input", () => {
    if (!input.validity.badInput) form.set(name, read());
  });
  range?.addEventListener("input", () => form.set(name, Number(range.value)));
  const show = () => {
    const value = form.get(name);
    const auto = form.auto(name);
    if (document.activeElement !== input || read() !== value) input.value = value ?? "";
    input.placeholder = auto === null ? t("field.auto.placeholder") : number(auto, 3);
    back.hidden = value === null;
    if (range) {
      range.value = value ?? auto ?? slider[0];
      fillTrack(range);
    }
    if (word) word.textContent = words(value ?? auto);
  };
  watch(name, show);
  on("details", show);
  const control = el("div", { class: slider ? "number-row" : "number-row alone" }, range, input);
  return frame(name, label, control, { input, hint, extra: el("span", { class: "field-extra" }, word, back) });
}

/** A choice from a list; the first entry, if there is one for "automatic", stands for null. */
export function selectField(name, options, { label = t(`field.${name}`), hint = null, automatic = true, wide = false } = {}) {
  const select = el("select", { id: `f-${name}` });
  const fill = () => {
    const auto = form.auto(name);
    const list = options();
    const shown = list.find((option) => option.value === auto)?.text ?? auto;
    select.replaceChildren();
    if (automatic)
      select.append(el("option", { value: "", text: shown ? t("field.auto.is", { value: shown }) : t("field.auto.placeholder") }));
    const chosen = form.get(name);
    if (chosen && !list.some((option) => option.value === chosen)) list.push({ value: chosen, text: chosen });
    for (const option of list) select.append(el("option", { value: option.value, text: option.text }));
    select.value = chosen ?? "";
    select.title = select.selectedOptions[0]?.text ?? "";
  };
  select.addEventListener("change", () => form.set(name, select.value || null));
  watch(name, fill);
  on("details", fill);
  return frame(name, label, el("div", { class: "select" }, select), { input: select, hint, wide });
}

/** A few choices side by side. */
export function segmented(name, options, { label = t(`field.${name}`) } = {}) {
  const id = unique(name);
  const group = el("div", { class: "segmented", role: "radiogroup", "aria-labelledby": id });
  const fill = () => {
    const chosen = form.effective(name);
    group.replaceChildren(
      ...options().map((option) => {
        const input = el("input", {
          type: "radio",
          name: id,
          value: option.value,
          checked: option.value === chosen,
          class: "visually-hidden",
          onchange: () => form.set(name, option.value),
        });
        return el("label", { title: option.title }, input, el("span", { text: option.text }));
      }),
    );
  };
  const show = () => {
    for (const input of group.querySelectorAll("input")) input.checked = input.value === form.effective(name);
  };
  fill();
  watch(name, show);
  on("details", fill);
  return el(
    "div",
    { class: "field wide", data: { field: name } },
    el("div", { class: "field-head" }, el("span", { id, text: label })),
    group,
    el("p", { class: "field-error", hidden: true }),
  );
}

/** A switch. */
export function toggle(label, { checked, onchange, id = unique("toggle"), hint = null }) {
  const input = el("input", { type: "checkbox", role: "switch", id, checked, class: "switch", onchange: () => onchange(input.checked) });
  return el(
    "div",
    { class: "toggle" },
    input,
    el("label", { htmlFor: id, text: label }),
    hint && el("p", { class: "field-hint", text: hint }),
  );
}

export function toggleField(name, label = t(`field.${name}`)) {
  const node = toggle(label, { checked: form.get(name), onchange: (value) => form.set(name, value), id: `f-${name}` });
  watch(name, () => {
    node.querySelector("input").checked = Boolean(form.get(name));
  });
  return node;
}

/** Show `message` beside the field of that name, and move there unless `focus` is false. False if the page has no such field. */
export function showFieldError(name, message, focus = true) {
  const box = document.querySelector(`[data-field="${CSS.escape(name ?? "")}"]`);
  const place = box?.querySelector(":scope > .field-error");
  if (!place) return false;
  for (let parent = box.closest("details"); parent; parent = parent.parentElement.closest("details")) parent.open = true;
  place.textContent = message;
  place.hidden = false;
  const input = box.querySelector("input:not([type=range]), textarea, select");
  input?.setAttribute("aria-invalid", "true");
  if (!focus) return true;
  input?.focus();
  box.scrollIntoView({ block: "nearest" });
  return true;
}

export function clearFieldErrors(names = null) {
  for (const box of document.querySelectorAll("[data-field]")) {
    const own = [box.dataset.field, ...(box.dataset.parts ?? "").split(" ")];
    if (names && !own.some((name) => names.includes(name))) continue;
    for (const place of box.querySelectorAll(".field-error")) place.hidden = true;
    for (const input of box.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  }
}

on("form", (changed) => clearFieldErrors(changed));

export const samplerTitle = (name) => store.details?.samplers?.find((one) => one.name === name)?.title ?? name;
