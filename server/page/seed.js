/** The seed: a dice that throws a new one, a lock that holds it. Unlocked, each request gets a new seed. */

import { frame, iconButton, numberField } from "./controls.js";
import { el } from "./dom.js";
import { form, watch } from "./form.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { announce } from "./notices.js";
import { on } from "./store.js";

let last = null; // the newest image's
on("image", ({ image }) => {
  last = String(image.seed);
});

export const randomSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

export function throwDice() {
  form.assign({ seed: randomSeed(), seedLocked: true });
  announce(t("seed.now", { seed: form.get("seed") }));
}

export function holdSeed(seed) {
  form.assign({ seed: String(seed), seedLocked: true });
}

function seedField() {
  const input = el("input", {
    type: "text",
    class: "number",
    id: "f-seed",
    inputmode: "numeric",
    pattern: "[0-9]*",
    maxlength: "19",
    placeholder: t("seed.random"),
  });
  input.addEventListener("input", () => {
    const digits = input.value.replace(/\D/g, "");
    if (digits !== input.value) input.value = digits;
    form.assign({ seed: digits || null, seedLocked: digits !== "" });
  });
  const lock = el("button", {
    type: "button",
    class: "icon-button",
    id: "seed-lock",
    onclick: () => {
      const locked = !form.get("seedLocked");
      form.assign({ seedLocked: locked, seed: locked ? (last ?? randomSeed()) : null });
    },
  });
  watch(["seed", "seedLocked"], () => {
    const { seed, seedLocked } = form.all();
    if (input.value !== (seed ?? "")) input.value = seed ?? "";
    lock.setAttribute("aria-pressed", String(seedLocked));
    lock.setAttribute("aria-label", t("seed.lock"));
    lock.title = t(seedLocked ? "seed.locked" : "seed.unlocked");
    lock.replaceChildren(icon(seedLocked ? "lock" : "unlock"));
  });
  const row = el("div", { class: "input-row" }, input, iconButton("dice", t("seed.dice"), throwDice), lock);
  return frame("seed", t("field.seed"), row, { input });
}

export function seedFields() {
  return el("div", { class: "group two seed-group" }, seedField(), numberField("count", { min: 1, max: 1000 }));
}
