/** The settings that a picture carries: shown before they are applied, and what cannot be applied is said. */

import { api } from "./api.js";
import { settingsTable } from "./details.js";
import { openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { form } from "./form.js";
import { has, t } from "./i18n.js";
import { icon } from "./icons.js";
import { marksOf } from "./marks.js";
import { toast, toastError } from "./notices.js";
import { applySettings } from "./request.js";
import { takeFile } from "./source_card.js";

const nameOf = (name) => (has(`field.${name}`) ? t(`field.${name}`) : name);

export function pickForSettings() {
  const input = el("input", {
    type: "file",
    accept: "image/png,image/jpeg,image/webp",
    onchange: () => input.files[0] && importSettings(input.files[0]),
  });
  input.click();
}

function missing(unapplied) {
  if (!unapplied.length) return null;
  return el(
    "div",
    { class: "unapplied", id: "unapplied" },
    el("h3", {}, icon("warning"), t("import.unapplied", { count: unapplied.length })),
    el(
      "ul",
      {},
      ...unapplied.map(({ key, value, reason }) =>
        el(
          "li",
          {},
          el("strong", { text: nameOf(key) }),
          value ? `: ${typeof value === "object" ? JSON.stringify(value) : value}` : "",
          el("span", { class: "muted", text: ` – ${reason}` }),
        ),
      ),
    ),
  );
}

export async function importSettings(file) {
  let found;
  try {
    found = await api.metadata(file);
  } catch (error) {
    toastError(error);
    return;
  }
  const url = URL.createObjectURL(file);
  const settings = found.settings ?? {};
  const any = Object.keys(settings).length > 0;
  const apply = (seed) => {
    const before = form.all();
    const left = applySettings(settings, { seed });
    close();
    toast(left.length ? t("import.partly", { names: left.map(nameOf).join(", ") }) : t("import.done"), {
      action: t("undo"),
      onAction: () => form.assign(before),
    });
  };
  const body = [
    el(
      "div",
      { class: "details" },
      el("img", { src: url, alt: "" }),
      el(
        "div",
        {},
        el("p", { text: any ? t("import.from", { tool: found.tool ?? t("import.unknown") }) : t("import.nothing") }),
        found.model &&
          el("p", {
            class: "muted",
            text: t("import.model", {
              model: typeof found.model === "object" ? (found.model.name ?? found.model.title ?? "") : found.model,
            }),
          }),
      ),
    ),
    any && settingsTable(settings),
    missing(found.unapplied ?? []),
    marksOf(found.marks),
    found.text &&
      el("details", { class: "raw" }, el("summary", { text: t("details.raw") }), el("pre", { tabindex: "0", text: found.text })),
  ].filter(Boolean);
  const { close } = openDialog(t("import.title"), body, {
    kind: "import-dialog",
    onClose: () => URL.revokeObjectURL(url),
    buttons: [
      el(
        "button",
        {
          type: "button",
          class: "button quiet",
          onclick: () => {
            close();
            takeFile(file);
          },
        },
        icon("image"),
        el("span", { text: t("import.source") }),
      ),
      any &&
        settings.seed !== undefined &&
        el("button", { type: "button", class: "button", text: t("import.noseed"), onclick: () => apply(false) }),
      any &&
        el(
          "button",
          { type: "button", class: "button accent", id: "import-apply", onclick: () => apply(true) },
          icon("check"),
          el("span", { text: t("import.apply") }),
        ),
    ].filter(Boolean),
  });
}
