/** The part of the form about the image to start from. */

import { clearFieldErrors, iconButton, numberField, selectField, toggleField } from "./controls.js";
import { el } from "./dom.js";
import { form } from "./form.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { openMaskEditor } from "./mask.js";
import { toast } from "./notices.js";
import { clearSource, setMask, source, useBlob } from "./source.js";
import { on, store } from "./store.js";

function strengthWord(value) {
  if (value === null) return "";
  return t(value < 0.35 ? "strength.little" : value < 0.65 ? "strength.some" : value < 0.9 ? "strength.much" : "strength.all");
}

export async function takeFile(file) {
  try {
    await useBlob(file);
    toast(t("source.taken"));
  } catch {
    toast(t("source.unreadable", { name: file.name || t("source.picture") }), { kind: "error" });
  }
}

function empty() {
  const input = el("input", {
    type: "file",
    accept: "image/png,image/jpeg,image/webp",
    class: "visually-hidden",
    id: "source-file",
    onchange: () => input.files[0] && takeFile(input.files[0]),
  });
  return el(
    "div",
    { class: "source-empty" },
    input,
    el(
      "label",
      { htmlFor: "source-file", class: "source-drop" },
      icon("image"),
      el("span", {}, el("strong", { text: t("source.choose") }), el("small", { text: t("source.or") })),
    ),
  );
}

function chosen() {
  const mask = source.mask;
  const thumb = el(
    "div",
    { class: "source-thumb" },
    el("img", { src: source.url, alt: t("source.alt") }),
    mask && el("img", { class: "mask-over", src: source.maskUrl, alt: "" }),
  );
  const actions = el(
    "div",
    { class: "source-actions" },
    el(
      "button",
      { type: "button", class: "button", id: "draw-mask", disabled: store.details?.inpaint === false, onclick: () => openMaskEditor() },
      icon("brush"),
      el("span", { text: t(mask ? "source.mask.edit" : "source.mask.draw") }),
    ),
    mask && el("button", { type: "button", class: "button quiet", text: t("source.mask.remove"), onclick: () => setMask(null) }),
  );
  return el(
    "div",
    { class: "source-chosen" },
    thumb,
    el("div", { class: "source-about" }, el("p", { class: "source-size", text: `${source.width} × ${source.height}` }), actions),
    iconButton("close", t("source.remove"), clearSource, { id: "source-remove" }),
  );
}

export function sourceFields() {
  const card = el("div", { class: "source-card" });
  const strength = numberField("strength", { min: 0, max: 1, step: 0.01, slider: [0, 1, 0.05], words: strengthWord });
  const fit = selectField("fit", () => ["crop", "pad", "stretch"].map((value) => ({ value, text: t(`fit.${value}`) })), {
    automatic: false,
  });
  const imageGuidance = numberField("image_guidance", { min: 0, max: 100, step: 0.1, slider: [0, 5] });
  const settings = el("div", { class: "two" }, strength, fit, imageGuidance);
  const masked = el(
    "div",
    { class: "group", data: { field: "mask" } },
    el("div", { data: { field: "only_masked" } }, toggleField("only_masked"), el("p", { class: "field-error", hidden: true })),
    el(
      "div",
      { class: "two" },
      numberField("mask_blur", { min: 0, max: 256, step: 0.5, slider: [0, 32] }),
      numberField("mask_padding", { min: 0, max: 4096, slider: [0, 256, 8] }),
    ),
    el("p", { class: "field-error", hidden: true }),
  );
  const note = el("p", { class: "field-hint" });
  const group = el(
    "div",
    { class: "group", data: { field: "init" } },
    el("h3", { text: t("source.title") }),
    card,
    note,
    settings,
    masked,
    el("p", { class: "field-error", hidden: true }),
  );
  const show = () => {
    const able = store.details?.image_to_image !== false;
    card.replaceChildren(source.input ? chosen() : empty());
    settings.hidden = !source.input;
    masked.hidden = !source.mask;
    imageGuidance.hidden = !store.details?.needs_init;
    note.textContent = !able ? t("source.unable") : store.details?.needs_init ? t("source.needed") : "";
    note.hidden = note.textContent === "";
    if (!form.get("fit")) form.set("fit", "crop");
  };
  on("source", () => {
    show();
    clearFieldErrors(["init", "mask"]);
  });
  on("details", show);
  show();
  return group;
}
