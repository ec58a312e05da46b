/** The bar, its text, and what is said aloud. */

import { $ } from "./dom.js";

/** Show `text` and a fraction of 0 … 1, or without one a bar that only moves. */
export function showProgress(text, fraction = null) {
  const bar = $("#bar");
  $("#progress").hidden = false;
  $("#progress-text").textContent = text;
  bar.classList.toggle("unknown", fraction === null);
  const percent = fraction === null ? null : Math.round(100 * fraction);
  if (percent === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", percent);
  bar.firstElementChild.style.width = percent === null ? "" : `${percent}%`;
}

export const hideProgress = () => {
  $("#progress").hidden = true;
};

export const announce = (text) => {
  $("#announce").textContent = text;
};

export function showError(text) {
  $("#error").textContent = text;
  $("#error").hidden = !text;
}
