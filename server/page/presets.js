/** Settings under a name, prompt included. */

import { iconButton } from "./controls.js";
import { el } from "./dom.js";
import { form, INITIAL } from "./form.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { toast } from "./notices.js";
import { keep, recall } from "./persistence.js";
import { popover } from "./popover.js";

const MOST = 40;
const LEFT_OUT = new Set(["live"]);

/** Only what differs from a fresh form, so that many presets fit. */
function difference() {
  const values = form.all();
  return Object.fromEntries(
    Object.entries(values).filter(([name, value]) => !LEFT_OUT.has(name) && JSON.stringify(value) !== JSON.stringify(INITIAL[name])),
  );
}

function save(name) {
  const presets = (recall("presets") ?? []).filter((one) => one.name !== name);
  keep("presets", [...presets, { name, values: difference() }].sort((a, b) => a.name.localeCompare(b.name)).slice(0, MOST));
  toast(t("presets.saved", { name }));
}

function apply(preset) {
  const before = form.all();
  form.assign({ ...INITIAL, live: before.live, model: before.model, ...preset.values });
  toast(t("presets.applied", { name: preset.name }), { action: t("undo"), onAction: () => form.assign(before) });
}

function content(close) {
  const presets = recall("presets") ?? [];
  const name = el("input", { type: "text", id: "preset-name", maxlength: "60", placeholder: t("presets.name") });
  const store = () => {
    if (!name.value.trim()) {
      name.focus();
      return;
    }
    save(name.value.trim());
    close();
  };
  name.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    store();
  });
  const rows = presets.map((preset) =>
    el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          class: "menu-item",
          onclick: () => {
            apply(preset);
            close();
          },
        },
        el("span", { text: preset.name }),
        el("small", { text: preset.values.prompt ?? "" }),
      ),
      iconButton("trash", t("presets.delete", { name: preset.name }), (event) => {
        keep(
          "presets",
          presets.filter((one) => one !== preset),
        );
        event.currentTarget.closest("li").remove();
      }),
    ),
  );
  return [
    rows.length ? el("ul", { class: "menu-list" }, ...rows) : el("p", { class: "menu-note", text: t("presets.empty") }),
    el(
      "div",
      { class: "menu-form" },
      el("label", { htmlFor: "preset-name", class: "visually-hidden", text: t("presets.name") }),
      name,
      el("button", { type: "button", class: "button", text: t("presets.save"), onclick: store }),
    ),
  ];
}

export function presetsMenu() {
  return popover(
    el("button", { type: "button", class: "button quiet", id: "presets" }, icon("keep"), el("span", { text: t("presets.title") })),
    content,
    t("presets.title"),
  );
}
