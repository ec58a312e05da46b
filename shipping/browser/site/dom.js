/** Build and find elements. Text goes in as text, never as HTML. */

export const $ = (selector) => document.querySelector(selector);

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "htmlFor"]);

/** An element: `on…` keys are listeners, some keys are properties, `class` and `text` mean what they say, the rest are attributes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else if (PROPERTIES.has(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(Boolean));
  return node;
}

/** What the reader set before, in this tab or for good; a browser may refuse both. */
export function remembered(key, storage = "sessionStorage") {
  try {
    return JSON.parse(globalThis[storage].getItem(`diffusette.${key}`));
  } catch {
    return null;
  }
}

export function remember(key, value, storage = "sessionStorage") {
  try {
    globalThis[storage].setItem(`diffusette.${key}`, JSON.stringify(value));
  } catch {
    // full, or not allowed: nothing is kept
  }
}
