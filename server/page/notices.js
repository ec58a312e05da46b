/** Toasts for the eyes and live regions for screen readers. */

import { $, el } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { on } from "./store.js";

const SHOWN = 6000;
const MOST = 2;

/** Do what the newest message offers, such as undo. False if none does. */
export function takeOffer() {
  const button = [...document.querySelectorAll(".toast-action")].at(-1);
  button?.click();
  return Boolean(button);
}

/** Say `text` to screen readers: politely, or at once if it is urgent. */
export function announce(text, urgent = false) {
  const region = $(urgent ? "#alert" : "#announce");
  region.textContent = "";
  setTimeout(() => {
    region.textContent = text;
  }, 50);
}

on("online", (online) => {
  if (online) for (const node of document.querySelectorAll(".toast.offline")) node.remove();
});

/** A short message with an optional action, such as undo. Errors stay until they are closed. */
export function toast(text, { kind = "plain", action = null, onAction = null } = {}) {
  const box = $("#toasts");
  const failed = kind.startsWith("error");
  const close = () => {
    clearTimeout(timer);
    node.remove();
  };
  const button =
    action &&
    el("button", {
      type: "button",
      class: "toast-action",
      text: action,
      onclick: () => {
        close();
        onAction();
      },
    });
  const node = el(
    "div",
    { class: `toast ${kind}` },
    failed ? icon("warning") : null,
    el("p", { text }),
    button,
    el("button", { type: "button", class: "toast-close", "aria-label": t("close"), onclick: close }, icon("close")),
  );
  let timer = null;
  const start = () => {
    if (!failed) timer = setTimeout(close, action ? SHOWN * 1.5 : SHOWN);
  };
  for (const over of ["pointerenter", "focusin"]) node.addEventListener(over, () => clearTimeout(timer));
  for (const out of ["pointerleave", "focusout"]) node.addEventListener(out, start);
  if (!action) [...box.children].find((one) => one.className === node.className && one.querySelector("p").textContent === text)?.remove();
  while (box.children.length >= MOST) ([...box.children].find((one) => !one.classList.contains("error")) ?? box.firstChild).remove();
  box.append(node);
  announce(text, failed);
  start();
  return close;
}

/** What went wrong, in words, with what to do next. */
export function explain(error) {
  const known = t(`error.${error.code ?? "internal"}`);
  const heading = known.startsWith("error.") ? t("error.internal") : known;
  return { heading, message: error.code === "offline" ? t("error.offline.text") : error.message, advice: adviceFor(error.code) };
}

function adviceFor(code) {
  const text = t(`advice.${code}`);
  return text.startsWith("advice.") ? "" : text;
}

export function toastError(error) {
  const { heading, message } = explain(error);
  toast(message ? `${heading}: ${message}` : heading, { kind: error.code === "offline" ? "error offline" : "error" });
}
