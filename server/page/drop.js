/** Pictures dropped or pasted: to start from, or to read their settings. */

import { el, typing } from "./dom.js";
import { IMAGE_TYPE } from "./gallery.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { importSettings } from "./import.js";
import { toast, toastError } from "./notices.js";
import { takeFile } from "./source_card.js";
import { useGalleryImage } from "./source.js";

const JOB_TYPE = "application/x-diffusette-job";
let overlay = null;
let depth = 0;

const isPicture = (file) => file && file.type.startsWith("image/");

function zone(name, title, text, take) {
  const node = el(
    "div",
    { class: "drop-zone", id: `drop-${name}` },
    icon(name === "source" ? "image" : "read"),
    el("strong", { text: title }),
    el("p", { text }),
  );
  node.addEventListener("dragover", (event) => {
    event.preventDefault();
    node.classList.add("over");
  });
  node.addEventListener("dragleave", () => node.classList.remove("over"));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    hide();
    const id = event.dataTransfer.getData(IMAGE_TYPE);
    const file = [...event.dataTransfer.files].find(isPicture);
    if (id && name === "source")
      useGalleryImage(id)
        .then(() => toast(t("source.taken")))
        .catch(toastError);
    else if (file) take(file);
    else toast(t("drop.nothing"), { kind: "error" });
  });
  return node;
}

function reveal(own) {
  if (overlay) return;
  overlay = el(
    "div",
    { class: "drop-overlay" },
    zone("source", t("drop.source"), t("drop.source.text"), takeFile),
    own ? null : zone("settings", t("drop.settings"), t("drop.settings.text"), importSettings),
  );
  document.body.append(overlay);
}

function hide() {
  overlay?.remove();
  overlay = null;
  depth = 0;
}

const wanted = (event) => {
  const types = event.dataTransfer?.types ?? [];
  return !types.includes(JOB_TYPE) && (types.includes("Files") || types.includes(IMAGE_TYPE));
};

export function watchDrops() {
  window.addEventListener("dragenter", (event) => {
    if (!wanted(event) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    depth += 1;
    reveal(event.dataTransfer.types.includes(IMAGE_TYPE));
  });
  window.addEventListener("dragover", (event) => wanted(event) && event.preventDefault());
  window.addEventListener("dragleave", (event) => {
    if (!wanted(event)) return;
    depth -= 1;
    if (depth <= 0) hide();
  });
  window.addEventListener("drop", (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    hide();
  });
  window.addEventListener("dragend", hide);
  window.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(isPicture);
    const text = event.clipboardData?.getData("text/plain");
    if (!file || (text && typing(event.target)) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    takeFile(file).then(() => toast(t("drop.pasted"), { action: t("drop.pasted.settings"), onAction: () => importSettings(file) }));
  });
}
