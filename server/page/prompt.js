/** The prompt and the negative prompt: they grow with their text, count tokens and weigh words. */

import { api } from "./api.js";
import { frame, iconButton } from "./controls.js";
import { debounce, el } from "./dom.js";
import { form, watch } from "./form.js";
import { number, t } from "./i18n.js";
import { announce } from "./notices.js";
import { on, store } from "./store.js";
import { reweigh } from "./weights.js";

const COUNT_WAIT = 250;
const boxes = {};

/** Replace text the way typing does, so that the browser's own undo takes it back. */
function insert(area, from, to, text) {
  area.focus();
  area.setSelectionRange(from, to);
  if (!document.execCommand("insertText", false, text)) {
    area.setRangeText(text, from, to, "end");
    area.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

function weigh(area, direction) {
  const change = reweigh(area.value, area.selectionStart, area.selectionEnd, direction);
  if (!change) return;
  insert(area, change.from, change.to, change.text);
  area.setSelectionRange(...change.select);
  announce(t("prompt.weight", { weight: number(change.weight) }));
}

function area(name, rows) {
  const box = el("textarea", {
    id: name === "prompt" ? "prompt" : "negative",
    rows,
    spellcheck: "false",
    autocapitalize: "off",
    placeholder: t(`${name}.placeholder`),
    maxlength: "100000",
  });
  box.addEventListener("input", () => form.set(name, box.value));
  box.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    weigh(box, event.key === "ArrowUp" ? 1 : -1);
  });
  const grow = () => {
    if (CSS.supports("field-sizing", "content")) return;
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + 2}px`;
  };
  watch(name, () => {
    if (box.value !== form.get(name)) box.value = form.get(name);
    grow();
  });
  boxes[name] = box;
  return box;
}

function counter(name) {
  return el("span", { class: "tokens", id: `${name}-tokens` });
}

function showCount(node, box, count) {
  const room = count.chunk * Math.max(1, count.chunks);
  node.textContent = t("prompt.tokens", { tokens: count.tokens, room });
  node.title = count.chunks > 1 ? t("prompt.chunks", { n: count.chunks }) : t("prompt.tokens.title");
  node.classList.toggle("over", count.chunks > 1);
  const place = box.closest(".field").querySelector(".field-error");
  const faulty = count.errors?.length > 0;
  const another = !place.hidden && !place.dataset.counted; // what stands there is another's error
  if (another || (!faulty && !place.dataset.counted)) return;
  place.dataset.counted = faulty ? "true" : "";
  place.textContent = faulty ? count.errors.join(" ") : "";
  place.hidden = !faulty;
  if (faulty) box.setAttribute("aria-invalid", "true");
  else box.removeAttribute("aria-invalid");
}

const count = debounce(async () => {
  try {
    const found = await api.tokens({ model: form.get("model") ?? undefined, prompt: form.get("prompt"), negative: form.get("negative") });
    for (const name of ["prompt", "negative"])
      if (found[name]) showCount(document.getElementById(`${name}-tokens`), boxes[name], found[name]);
  } catch {
    // The count comes back with the connection.
  }
}, COUNT_WAIT);

function embeddings() {
  const list = el("div", { class: "words", role: "group", "aria-label": t("prompt.embeddings") });
  const fill = () => {
    const names = store.details?.embeddings ?? [];
    list.hidden = names.length === 0;
    list.replaceChildren(
      ...names.map(({ name }) =>
        el("button", {
          type: "button",
          class: "chip",
          text: name,
          title: t("prompt.embedding.title"),
          onclick: () => {
            const box = boxes.negative;
            insert(box, box.value.length, box.value.length, `${box.value.trim() ? ", " : ""}${name}`);
          },
        }),
      ),
    );
  };
  on("details", fill);
  return list;
}

export function promptFields() {
  const main = area("prompt", 4);
  const weights = el(
    "span",
    { class: "weights", role: "group", "aria-label": t("prompt.weights") },
    iconButton("minus", t("prompt.weaker"), () => weigh(main, -1), { class: "icon-button small" }),
    iconButton("plus", t("prompt.stronger"), () => weigh(main, 1), { class: "icon-button small" }),
  );
  for (const button of weights.children) button.addEventListener("pointerdown", (event) => event.preventDefault());
  const negative = area("negative", 2);
  watch(["prompt", "negative", "model"], count);
  on("details", count);
  return el(
    "div",
    { class: "group prompt-group" },
    frame("prompt", t("prompt.label"), main, { wide: true, extra: el("span", { class: "field-extra" }, weights, counter("prompt")) }),
    frame("negative", t("negative.label"), negative, { wide: true, extra: el("span", { class: "field-extra" }, counter("negative")) }),
    embeddings(),
  );
}
