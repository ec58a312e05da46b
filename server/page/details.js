/** Everything that an image's file says about it. */

import { api } from "./api.js";
import { openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { samplerTitle } from "./controls.js";
import { recorded } from "./facts.js";
import { has, moment, t } from "./i18n.js";
import { icon } from "./icons.js";
import { marksOf } from "./marks.js";
import { toast, toastError } from "./notices.js";

export const nameOf = (name) => (has(`field.${name}`) ? t(`field.${name}`) : name);

export function shown(name, value) {
  if (typeof value === "boolean") return t(value ? "yes" : "no");
  if (name === "speed" && has(`speed.${value}`)) return t(`speed.${value}`);
  if (name === "sampler") return samplerTitle(value);
  if (name === "schedule" && has(`schedule.${value}`)) return t(`schedule.${value}`);
  if (name === "loras" && Array.isArray(value))
    return value.map((one) => (one.name ? `${one.name} × ${one.weight ?? 1}` : JSON.stringify(one))).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export function settingsTable(settings) {
  const rows = Object.entries(settings).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el(
    "table",
    { class: "settings-table" },
    el(
      "tbody",
      {},
      ...rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row", text: nameOf(name) }), el("td", { text: shown(name, value) }))),
    ),
  );
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    toast(t("copy.failed"), { kind: "error" });
  }
}

export async function openDetails(image) {
  let full;
  try {
    full = await api.image(image.id);
  } catch (error) {
    toastError(error);
    return;
  }
  const text = full.metadata ? (full.metadata.text ?? JSON.stringify({ ...full.metadata, marks: undefined }, null, 2)) : null;
  openDialog(
    t("details.title"),
    [
      el(
        "div",
        { class: "details" },
        el("img", { src: image.thumbnail, alt: "" }),
        el(
          "div",
          {},
          el("p", { text: moment(image.created) }),
          el("p", { class: "muted", text: full.metadata?.tool ?? "" }),
        ),
      ),
      settingsTable(recorded(image, full.settings)),
      marksOf(full.metadata?.marks),
      text && el("details", { class: "raw" }, el("summary", { text: t("details.raw") }), el("pre", { tabindex: "0", text })),
    ].filter(Boolean),
    {
      buttons: [
        el(
          "button",
          { type: "button", class: "button", onclick: () => copyText(full.settings?.prompt ?? image.prompt) },
          icon("copy"),
          el("span", { text: t("details.copy.prompt") }),
        ),
        text &&
          el(
            "button",
            { type: "button", class: "button", onclick: () => copyText(text) },
            icon("copy"),
            el("span", { text: t("details.copy.all") }),
          ),
        el(
          "a",
          { class: "button", href: `${image.url}?download=1`, download: "" },
          icon("download"),
          el("span", { text: t("action.download") }),
        ),
      ].filter(Boolean),
    },
  );
}
