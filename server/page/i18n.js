/** Texts in the reader's language. Changing it reloads the page, which loses nothing. */

const LANGUAGES = ["en", "de"];
let texts = {};
let fallback = {};
let plural = new Intl.PluralRules("en");
export let language = "en";

async function read(name) {
  const answer = await fetch(`/assets/${name}.json`);
  if (!answer.ok) throw new Error(`/assets/${name}.json: ${answer.status}`);
  return answer.json();
}

/** Load the texts of `wanted`, or of the first of the browser's languages that there is. */
export async function loadLanguage(wanted) {
  const own = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => LANGUAGES.includes(tag));
  language = LANGUAGES.includes(wanted) ? wanted : (own ?? "en");
  [fallback, texts] = await Promise.all([read("en"), read(language)]);
  plural = new Intl.PluralRules(language);
  document.documentElement.lang = language;
}

const touch = matchMedia("(hover: none)").matches; // most likely without a keyboard
const KEY = / \((?:(?:Ctrl|Strg|Alt|Shift|Umschalt)\+)*(?:[A-Z\d+↑↓-]|Del|Entf|Enter)\)$/;

/** The text of `key`, with {name} filled in; a `count` chooses between `key.one` and `key.other`. Touch screens have `key.touch`, and no keys in brackets. */
export function t(key, values = {}) {
  const plain = "count" in values && has(`${key}.other`) ? `${key}.${plural.select(values.count) === "one" ? "one" : "other"}` : key;
  const full = touch && has(`${plain}.touch`) ? `${plain}.touch` : plain;
  const whole = texts[full] ?? fallback[full] ?? full;
  const text = touch ? whole.replace(KEY, "") : whole;
  return text.replace(/\{(\w+)\}/g, (hole, name) => (name in values ? format(values[name]) : hole));
}

export const has = (key) => key in texts || key in fallback;

function format(value) {
  return typeof value === "number" ? number(value) : String(value);
}

export function number(value, digits = 2) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

/** Seconds in words that suit their size. */
export function duration(seconds) {
  if (seconds < 0.95) return t("time.seconds", { n: number(seconds, 2) });
  if (seconds < 10) return t("time.seconds", { n: number(seconds, 1) });
  if (seconds < 90) return t("time.seconds", { n: number(seconds, 0) });
  return t("time.minutes", { m: Math.floor(seconds / 60), s: String(Math.floor(seconds % 60)).padStart(2, "0") });
}

export function bytes(size) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let step = 0;
  let value = size;
  while (value >= 1000 && step < units.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${number(value, value < 10 ? 1 : 0)} ${units[step]}`;
}

export function moment(seconds) {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(seconds * 1000));
}

/** Fill `data-t` (text) and `data-t-label` (accessible name) below `root`. */
export function translate(root = document) {
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of root.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
}
