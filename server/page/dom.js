/** Small helpers to build and find elements. Text always goes in as text, never as HTML. */

export const $ = (selector, root = document) => root.querySelector(selector);

const PROPERTIES = new Set([
  "value",
  "checked",
  "disabled",
  "hidden",
  "open",
  "selected",
  "indeterminate",
  "readOnly",
  "htmlFor",
  "multiple",
]);

/** An element: `on…` keys are listeners, some keys are properties, `class`, `text` and `data` mean what they say, the rest are attributes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else if (key === "data") Object.assign(node.dataset, value);
    else if (PROPERTIES.has(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** `fn`, called once, `wait` milliseconds after the last call. `.flush()` calls it now if it is due. */
export function debounce(fn, wait) {
  let timer = null;
  let due = null;
  const run = () => {
    clearTimeout(timer);
    timer = null;
    const args = due;
    due = null;
    if (args) fn(...args);
  };
  const later = (...args) => {
    due = args;
    clearTimeout(timer);
    timer = setTimeout(run, wait);
  };
  later.flush = run;
  later.cancel = () => {
    clearTimeout(timer);
    due = null;
  };
  return later;
}

/** `fn`, once for all calls until the next frame; a hidden page has no frames, so at the latest after a moment. */
export function nextFrame(fn) {
  let due = false;
  const run = () => {
    if (!due) return;
    due = false;
    fn();
  };
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(run);
    setTimeout(run, 200);
  };
}

/** Whether keys typed now belong to a text field. */
export function typing(target) {
  return (
    target instanceof Element &&
    Boolean(target.closest("input:not([type=checkbox]):not([type=radio]):not([type=range]), textarea, select, [contenteditable]"))
  );
}

export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

let counter = 0;
export const unique = (prefix) => `${prefix}-${(counter += 1)}`;
