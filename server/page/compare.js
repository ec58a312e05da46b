/** Two pictures, one over the other, with a slider; and in words, what differs in their settings. */

import { iconButton } from "./controls.js";
import { el } from "./dom.js";
import { nameOf, shown } from "./details.js";
import { recorded, settingsOf } from "./facts.js";
import { t } from "./i18n.js";

/** What a setting is in a record that leaves it out. Of any other, that is not known, so it is no difference. */
const UNSET = {
  negative: "",
  init: false,
  loras: [],
  embeddings: [],
  hires: 1,
  variation: 0,
  clip_skip: 0,
  rescale: 0,
  rng: "numpy",
  decoder: "vae",
  guidance_interval: [0, 1],
  only_masked: false,
  sampler_options: {},
};

const full = async (image) => ({ ...UNSET, ...recorded(image, await settingsOf(image)) });

async function differences(a, b) {
  const [first, second] = await Promise.all([full(a), full(b)]);
  return Object.keys(first)
    .filter((name) => name in second && JSON.stringify(first[name]) !== JSON.stringify(second[name]))
    .map((name) => [name, first[name], second[name]]);
}

const text = (name, value) => (value === "" || value === null || value?.length === 0 ? "–" : shown(name, value));

export function compareView({ a, b }, show) {
  const top = el("div", { class: "compare-top" }, el("img", { src: a.url, alt: `A: ${a.prompt}` }));
  const handle = el("div", { class: "compare-handle", "aria-hidden": "true" });
  const slider = el("input", {
    type: "range",
    class: "compare-slider",
    id: "compare-slider",
    min: 0,
    max: 100,
    step: 0.5,
    value: 50,
    "aria-label": t("compare.slider"),
  });
  const box = el(
    "div",
    { class: "compare" },
    el("img", { class: "compare-bottom", src: b.url, alt: `B: ${b.prompt}` }),
    top,
    handle,
    el("span", { class: "compare-tag left", text: "A" }),
    el("span", { class: "compare-tag right", text: "B" }),
    slider,
  );
  box.style.setProperty("--w", Math.max(a.width, b.width));
  box.style.setProperty("--h", Math.max(a.height, b.height));
  const place = () => box.style.setProperty("--cut", `${slider.value}%`);
  slider.addEventListener("input", place);
  place();
  const rows = el("tbody", {});
  const table = el(
    "table",
    { class: "compare-table", id: "compare-table" },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col", text: t("compare.setting") }),
        el("th", { scope: "col", text: "A" }),
        el("th", { scope: "col", text: "B" }),
      ),
    ),
    rows,
  );
  const row = (head, ...cells) => el("tr", {}, el("th", { scope: "row", text: head }), ...cells.map((one) => el("td", { text: one })));
  differences(a, b)
    .then((found) =>
      rows.replaceChildren(
        ...(found.length
          ? found.map(([name, first, second]) => row(nameOf(name), text(name, first), text(name, second)))
          : [row(t("compare.same"), "", "")]),
      ),
    )
    .catch(() => {});
  return el(
    "div",
    { class: "compare-view" },
    el(
      "header",
      { class: "view-head" },
      el("h3", { text: t("compare.title") }),
      el("p", { class: "muted", text: t("compare.hint") }),
      iconButton("swap", t("compare.swap"), () => show({ kind: "compare", a: b, b: a })),
      iconButton("close", t("compare.close"), () => show({ kind: "image", image: b }), { id: "compare-close" }),
    ),
    box,
    el("div", { class: "compare-scroll", tabindex: "0", role: "region", "aria-label": t("compare.setting") }, table),
  );
}
