/** Width and height: shapes to choose from, swap, snapping to the model's multiple, sizes of one's own. */

import { iconButton, numberField } from "./controls.js";
import { el } from "./dom.js";
import { form, watch } from "./form.js";
import { number, t } from "./i18n.js";
import { keep, recall } from "./persistence.js";
import { source } from "./source.js";
import { on, store } from "./store.js";

const SHAPES = [
  [1, 1],
  [4, 3],
  [3, 2],
  [16, 9],
  [3, 4],
  [2, 3],
  [9, 16],
];

const multiple = () => store.details?.multiple ?? 8;
const snap = (value) => Math.max(multiple(), Math.round(value / multiple()) * multiple());

/** Width and height of a shape with the area that the model was made for. */
function sizeOf([across, down]) {
  const { width = 512, height = 512 } = store.details?.defaults ?? {};
  const unit = Math.sqrt((width * height) / (across * down));
  return [snap(across * unit), snap(down * unit)];
}

const current = () => [form.effective("width"), form.effective("height")];

function setSize(width, height) {
  form.assign({ width, height });
}

function shapes() {
  const row = el("div", { class: "shapes", role: "group", "aria-label": t("size.shapes") });
  const fill = () => {
    const now = String(current());
    row.replaceChildren(
      ...SHAPES.map((shape) => {
        const [width, height] = sizeOf(shape);
        const picture = el("span", { class: "shape-icon", "aria-hidden": "true" });
        const side = 17 / Math.max(...shape);
        picture.style.width = `${shape[0] * side}px`;
        picture.style.height = `${shape[1] * side}px`;
        return el(
          "button",
          {
            type: "button",
            class: "shape",
            "aria-pressed": String(String([width, height]) === now),
            title: `${width} × ${height}`,
            onclick: () => setSize(width, height),
          },
          picture,
          el("span", { text: shape.join(":") }),
        );
      }),
    );
  };
  watch(["width", "height"], fill);
  on("details", fill);
  return row;
}

function ownSizes() {
  const row = el("div", { class: "own-sizes" });
  const fill = () => {
    const kept = recall("sizes") ?? [];
    const [width, height] = current();
    const isKept = kept.some(([w, h]) => w === width && h === height);
    const custom = width && !SHAPES.some((shape) => String(sizeOf(shape)) === String([width, height]));
    row.replaceChildren(
      ...kept.map(([w, h]) =>
        el(
          "span",
          { class: "chip-pair" },
          el("button", {
            type: "button",
            class: "chip",
            text: `${w} × ${h}`,
            "aria-pressed": String(w === width && h === height),
            onclick: () => setSize(w, h),
          }),
          iconButton("close", t("size.forget", { size: `${w} × ${h}` }), () => save(kept.filter(([a, b]) => a !== w || b !== h)), {
            class: "icon-button tiny",
          }),
        ),
      ),
      ...(custom && !isKept
        ? [el("button", { type: "button", class: "chip quiet", text: t("size.keep"), onclick: () => save([...kept, [width, height]]) })]
        : []),
      ...(source.input
        ? [
            el("button", {
              type: "button",
              class: "chip quiet",
              text: t("size.match"),
              title: `${source.width} × ${source.height}`,
              onclick: matchSource,
            }),
          ]
        : []),
    );
    row.hidden = row.children.length === 0;
  };
  const save = (sizes) => {
    keep("sizes", sizes.slice(-8));
    fill();
  };
  watch(["width", "height"], fill);
  on("details", fill);
  on("source", fill);
  return row;
}

/** The start image's own size if the model can draw it well, or else its shape with the area that the model was made for. */
function matching() {
  const { width = 512, height = 512 } = store.details?.defaults ?? {};
  const part = (width * height) / (source.width * source.height);
  const scale = part > 0.5 && part < 2 ? 1 : Math.sqrt(part);
  return [snap(source.width * scale), snap(source.height * scale)];
}

const matchSource = () => setSize(...matching());

/** A new start image sets the size, unless the user has; without it the size is automatic again. */
function followSource() {
  let matched = null;
  const free = () => form.get("width") === null && form.get("height") === null;
  const untouched = () => free() || (matched && String(current()) === matched);
  on("source-chosen", (restored) => {
    if (restored) matched = String(current()) === String(matching()) ? String(current()) : null;
    if (restored || !untouched()) return;
    matchSource();
    matched = String(current());
  });
  on("source-cleared", () => {
    if (matched && untouched()) setSize(null, null);
    matched = null;
  });
}

export function sizeFields() {
  followSource();
  const note = el("span", { class: "field-word" });
  const hint = el("p", { class: "field-hint", id: "size-hint", role: "status", hidden: true });
  watch(["width", "height"], () => {
    showNote(note);
    hint.textContent = "";
    hint.hidden = true;
  });
  on("details", () => showNote(note));
  const sides = ["width", "height"].map((name) => {
    const field = numberField(name, { min: 8, max: 4096, step: 1 });
    field.querySelector("input").addEventListener("change", () => {
      const typed = form.get(name);
      if (typed === null) return;
      form.set(name, snap(typed));
      if (snap(typed) !== typed) hint.textContent = t(`size.snapped.${name}`, { value: String(snap(typed)), multiple: multiple() });
      hint.hidden = hint.textContent === "";
    });
    return field;
  });
  const swap = iconButton("swap", t("size.swap"), () => {
    const [width, height] = current();
    if (width && height) setSize(height, width);
  });
  return el(
    "div",
    { class: "group", role: "group", "aria-labelledby": "size-title" },
    el("div", { class: "group-head" }, el("h3", { id: "size-title", text: t("size.title") }), note),
    shapes(),
    el("div", { class: "size-row" }, sides[0], swap, sides[1]),
    hint,
    ownSizes(),
  );
}

function showNote(note) {
  const [width, height] = current();
  if (!width || !height) return;
  const pixels = width * height;
  const large = pixels > store.limits.pixels;
  note.classList.toggle("bad", large);
  const text = pixels < 100_000 ? t("size.pixels", { n: number(pixels, 0) }) : t("size.megapixels", { n: number(pixels / 1e6, 2) });
  note.textContent = large ? t("size.large", { n: number(store.limits.pixels / 1e6, 1) }) : text;
}
