/** Texts, numbers and sizes in the reader's language. */

import { json } from "./place.js";

export const LANGUAGES = ["en", "de"];
let texts = {};
export let language = "en";

export async function loadLanguage(wanted) {
  const own = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => LANGUAGES.includes(tag));
  language = LANGUAGES.includes(wanted) ? wanted : (own ?? "en");
  texts = await json(`app/${language}.json`);
  document.documentElement.lang = language;
}

/** The text of `key`, with {name} filled in. */
export function t(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/gu, (hole, name) => (name in values ? String(values[name]) : hole));
}

export const number = (value, digits = 1) => new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);

export function bytes(size) {
  const [value, unit] = size >= 1e9 ? [size / 1e9, "GB"] : size >= 1e6 ? [size / 1e6, "MB"] : [size / 1e3, "KB"];
  return `${number(value, value < 10 ? 1 : 0)}\u00a0${unit}`;
}

export const seconds = (value) => t("seconds", { n: number(value, value < 10 ? 1 : 0) });

/** Fill the elements that name their text in `data-t`. */
export function translate(root = document) {
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
}
