/** A button with a panel that opens below it; closed by Escape, by a click elsewhere, or when focus leaves. */

import { el, unique } from "./dom.js";

/** `fill(close)` gives what the panel holds, each time it opens. */
export function popover(button, fill, label) {
  const panel = el("div", { class: "popover", id: unique("panel"), role: "dialog", "aria-label": label, hidden: true });
  const box = el("div", { class: "popover-box" }, button, panel);
  const close = (refocus = true) => {
    if (panel.hidden) return;
    panel.hidden = true;
    button.setAttribute("aria-expanded", "false");
    if (refocus && panel.contains(document.activeElement)) button.focus();
    panel.replaceChildren();
  };
  const open = () => {
    panel.replaceChildren(...fill(close));
    panel.hidden = false;
    button.setAttribute("aria-expanded", "true");
    panel.querySelector("button, input, select")?.focus();
  };
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", panel.id);
  button.addEventListener("click", () => (panel.hidden ? open() : close()));
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || panel.hidden) return;
    event.stopPropagation();
    button.focus();
    close();
  });
  box.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !box.contains(event.relatedTarget)) close(false);
  });
  document.addEventListener("pointerdown", (event) => {
    if (!box.contains(event.target)) close(false);
  });
  return box;
}
