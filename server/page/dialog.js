/** A modal dialog: native, so that focus stays inside and returns, and Escape closes it. */

import { iconButton } from "./controls.js";
import { el, unique } from "./dom.js";
import { t } from "./i18n.js";

export function openDialog(title, content, { kind = "", buttons = [], onClose = null } = {}) {
  const id = unique("dialog");
  const close = () => dialog.close();
  const dialog = el(
    "dialog",
    { class: `dialog ${kind}`, "aria-labelledby": id },
    el("div", { class: "dialog-head" }, el("h2", { id, text: title }), iconButton("close", t("close"), close)),
    el("div", { class: "dialog-body", tabindex: "0" }, content),
    buttons.length > 0 && el("div", { class: "dialog-foot" }, ...buttons),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose?.();
  });
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target === dialog) close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, close };
}
