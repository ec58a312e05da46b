/** The image: its preview while it is drawn, what was drawn before, and saving it. */

import { $, el } from "./dom.js";
import { number, seconds, t } from "./i18n.js";

const KEPT = 24; // images of this visit
const images = [];

/** Show the welcome. */
export function welcome(title) {
  const art = el("div", { class: "art", "aria-hidden": "true" }, ...[1, 2, 3, 4].map(() => el("i")));
  $("#view").replaceChildren(el("div", { class: "welcome" }, art, el("p", { class: "big", text: title }), el("p", { text: t("welcome") }), el("p", { id: "first", class: "narrow" })));
}

/** Show a small unfinished image, {pixels, width, height}, in the shape of the finished one. */
export function showPreview(small, width, height) {
  let canvas = $("#preview");
  if (!canvas) {
    canvas = el("canvas", { id: "preview", class: "image", role: "img", "aria-label": t("preview") });
    $("#view").replaceChildren(canvas);
    $("#caption").replaceChildren();
  }
  shape(canvas, width, height);
  if (!small) return;
  [canvas.width, canvas.height] = [small.width, small.height];
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(small.pixels), small.width, small.height), 0, 0);
}

function shape(node, width, height) {
  node.style.setProperty("--w", width);
  node.style.setProperty("--h", height);
}

/** Add a finished image and show it. `facts` are its settings and times. */
export function addImage(png, facts, onseed) {
  const image = { url: URL.createObjectURL(new Blob([png], { type: "image/png" })), facts, onseed };
  images.unshift(image);
  for (const old of images.splice(KEPT)) URL.revokeObjectURL(old.url);
  showImage(image);
  strip(image);
}

function showImage(image) {
  const { facts, url } = image;
  const node = el("img", { id: "result", class: "image", src: url, alt: t("alt", { prompt: facts.prompt }), width: facts.width, height: facts.height });
  shape(node, facts.width, facts.height);
  $("#view").replaceChildren(node);
  const said = [
    `${facts.width} × ${facts.height}`,
    t("fact.seed", { seed: facts.seed }),
    t("fact.steps", { steps: facts.steps }),
    t("fact.guidance", { guidance: number(facts.guidance) }),
    seconds(facts.seconds),
  ];
  const notes = [facts.unknown ? t("note.unknown", { count: facts.unknown }) : "", facts.cut ? t("note.cut") : ""].filter(Boolean);
  $("#caption").replaceChildren(
    el("p", { class: "prompt", text: facts.prompt }),
    el("p", { class: "facts", text: said.join(" · ") }),
    ...notes.map((text) => el("p", { class: "facts", text })),
    el(
      "div",
      { class: "buttons" },
      el("a", { class: "button", id: "save", href: url, download: nameOf(facts), text: t("save") }),
      el("button", { type: "button", class: "button", id: "keep-seed", text: t("seed.keep"), onclick: () => image.onseed(String(facts.seed)) }),
    ),
  );
}

/** A file name from the first words of the prompt and the seed. */
function nameOf({ prompt, seed }) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/gu, "");
  return `${[...words].slice(0, 40).join("").replace(/-$/u, "") || "image"}-${seed}.png`;
}

function strip(chosen) {
  const items = images.map((image) =>
    el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          "aria-pressed": String(image === chosen),
          "aria-label": t("show", { prompt: image.facts.prompt, seed: image.facts.seed }),
          onclick: () => {
            showImage(image);
            strip(image);
          },
        },
        el("img", { src: image.url, alt: "" }),
      ),
    ),
  );
  $("#strip").replaceChildren(...(images.length > 1 ? items : []));
}

/** Show the image before the one that was cancelled or failed, or the welcome. */
export function restore(title) {
  if (images.length) {
    showImage(images[0]);
    strip(images[0]);
  } else welcome(title);
}
