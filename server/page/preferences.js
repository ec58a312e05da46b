/** Theme, language and habits. */

import { keep, recall } from "./persistence.js";
import { emit } from "./store.js";

const INITIAL = { theme: "auto", language: "auto", previews: true, keys: true };
let values = { ...INITIAL };

export function loadPreferences() {
  values = { ...INITIAL, ...recall("preferences") };
  applyTheme();
}

export const preference = (name) => values[name];

export function prefer(name, value) {
  values = { ...values, [name]: value };
  keep("preferences", values);
  if (name === "theme") applyTheme();
  emit("preferences", name);
}

function applyTheme() {
  document.documentElement.dataset.theme = values.theme;
}
