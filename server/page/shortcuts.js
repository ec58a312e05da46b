/** Keys for everything. `event.key`, so that they are where each layout prints them. Single letters can be switched off. */

import { compare, download, onCurrent, remove, toSource, useAll, useSeed, variations } from "./actions.js";
import { openDetails } from "./details.js";
import { openDialog } from "./dialog.js";
import { $, el, typing } from "./dom.js";
import { stopRepeating } from "./forever.js";
import { form } from "./form.js";
import { neighbour, toggleWide } from "./gallery.js";
import { openGridDialog } from "./grid.js";
import { t } from "./i18n.js";
import { takeOffer } from "./notices.js";
import { preference } from "./preferences.js";
import { cancelRunning } from "./progress.js";
import { throwDice } from "./seed.js";
import { currentImage, currentSubject, showImage, toggleActual } from "./stage.js";
import { generate } from "./submit.js";

function walk(direction) {
  const image = currentImage();
  const next = neighbour(image?.id, direction);
  if (next) showImage(next);
}

const SINGLE = {
  s: ["key.seed", () => onCurrent(useSeed)],
  a: ["key.all", () => onCurrent(useAll)],
  i: ["key.source", () => onCurrent((image) => toSource(image))],
  m: ["key.mask", () => onCurrent((image) => toSource(image, true))],
  v: ["key.variations", () => onCurrent(variations)],
  c: ["key.compare", () => onCurrent(compare)],
  d: ["key.download", () => onCurrent(download)],
  o: ["key.details", () => onCurrent(openDetails)],
  z: ["key.actual", () => onCurrent(toggleActual)],
  r: ["key.dice", throwDice],
  l: ["key.live", () => form.set("live", !form.get("live"))],
  x: ["key.grid", openGridDialog],
  g: ["key.gallery", () => toggleWide()],
  "/": ["key.search", () => $("#gallery-search").focus()],
  "?": ["key.help", openHelp],
  Delete: ["key.delete", () => onCurrent(remove)],
  ArrowLeft: ["key.before", () => walk(-1)],
  ArrowRight: ["key.after", () => walk(1)],
};
const shown = (key) => ({ Delete: t("key.del"), ArrowLeft: "←", ArrowRight: "→" })[key] ?? key.toUpperCase();

export function openHelp() {
  const row = (keys, text) => el("tr", {}, el("td", {}, ...keys.map((key) => el("kbd", { text: key }))), el("td", { text }));
  openDialog(
    t("keys.title"),
    el(
      "table",
      { class: "keys-table" },
      el(
        "tbody",
        {},
        row([t("key.ctrl"), "↵"], t("key.generate")),
        row([t("key.ctrl"), "⇧", "↵"], t("key.front")),
        row(["⇧", "X"], t("key.cancel")),
        row(["Alt", "P"], t("key.prompt")),
        row([t("key.esc")], t("key.escape")),
        row([t("key.ctrl"), "Z"], t("key.undo")),
        row([t("key.ctrl"), "↑ ↓"], t("key.weight")),
        row(["Alt", "↑ ↓"], t("key.reorder")),
        ...Object.entries(SINGLE).map(([key, [text]]) => row([shown(key)], t(text))),
      ),
    ),
  );
}

function escape() {
  if (stopRepeating()) return;
  if (document.body.classList.contains("gallery-wide")) toggleWide(false);
  else if (currentSubject()?.kind === "compare") showImage(currentSubject().b);
}

function pressed(event) {
  if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key === "Enter") {
    event.preventDefault();
    generate({ front: event.shiftKey });
  } else if (control && event.key.toLowerCase() === "z" && !event.shiftKey && !typing(event.target)) {
    if (takeOffer()) event.preventDefault();
  } else if (event.altKey && !control && event.key.toLowerCase() === "p") {
    event.preventDefault();
    $("#prompt").focus();
  } else if (event.key === "Escape") escape();
  else if (!typing(event.target) && !control && !event.altKey && preference("keys")) single(event);
}

function single(event) {
  if (event.shiftKey && event.key.toLowerCase() === "x") {
    event.preventDefault();
    cancelRunning();
    return;
  }
  const inWidget = event.target instanceof Element && event.target.closest("input, [role=radiogroup], .compare-scroll, .grid-scroll");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(key in SINGLE) || (inWidget && key.startsWith("Arrow"))) return;
  event.preventDefault();
  SINGLE[key][1]();
}

export function watchKeys() {
  document.addEventListener("keydown", pressed);
}
