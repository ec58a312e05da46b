/** Every picture, newest first: searched on the server, loaded as one scrolls. */

import { api } from "./api.js";
import { iconButton } from "./controls.js";
import { $, debounce, el } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { toastError } from "./notices.js";
import { on } from "./store.js";

const PAGE = 60;
export const IMAGE_TYPE = "application/x-diffusette-image";
let images = [];
let more = true;
let busy = null;
let query = "";
let parts = null;
let choose = () => {};
let current = () => null;

export const galleryImages = () => images;

/** The picture whose tile has the focus. */
export const focusedImage = () => images.find((one) => one.id === document.activeElement?.dataset?.id) ?? null;

/** The picture before (-1) or after (1) `id`. */
export function neighbour(id, direction) {
  const place = images.findIndex((one) => one.id === id);
  return place < 0 ? (images[0] ?? null) : (images[place + direction] ?? null);
}

async function load(fresh = false) {
  if (busy && !fresh) return busy;
  const asked = query;
  busy = (async () => {
    try {
      const answer = await api.images({ q: asked, limit: PAGE, ...(fresh || images.length === 0 ? {} : { before: images.at(-1).id }) });
      if (asked !== query) return;
      const known = new Set(fresh ? [] : images.map((one) => one.id));
      images = [...(fresh ? [] : images), ...answer.images.filter((one) => !known.has(one.id))];
      more = answer.more;
      fill();
    } catch (error) {
      if (error.code !== "offline") toastError(error);
    } finally {
      busy = null;
    }
  })();
  return busy;
}

function tile(image) {
  const node = el(
    "button",
    {
      type: "button",
      class: "tile",
      data: { id: image.id },
      tabindex: "-1",
      draggable: "true",
      title: image.prompt,
      "aria-label": image.prompt || t("stage.untitled"),
      onclick: (event) => choose(image, event),
      ondragstart: (event) => {
        event.dataTransfer.setData(IMAGE_TYPE, image.id);
        event.dataTransfer.setData("text/uri-list", new URL(image.url, location.href).href);
        event.dataTransfer.effectAllowed = "copy";
      },
    },
    el("img", { src: image.thumbnail, alt: "", loading: "lazy", decoding: "async", draggable: "false" }),
    image.flagged && icon("warning"),
  );
  return el("li", {}, node);
}

function fill() {
  const { list, count, empty } = parts;
  const have = new Map([...list.children].map((node) => [node.firstChild.dataset.id, node]));
  const nodes = images.map((image) => have.get(image.id) ?? tile(image));
  const place = [...list.children].findIndex((node) => node.contains(document.activeElement));
  const focused = document.activeElement?.dataset?.id;
  if (nodes.length !== list.children.length || nodes.some((node, place) => node !== list.children[place])) list.replaceChildren(...nodes);
  if (place >= 0)
    (list.querySelector(`[data-id="${CSS.escape(focused)}"]`) ?? nodes[Math.min(place, nodes.length - 1)]?.firstChild)?.focus();
  count.textContent = images.length
    ? t("gallery.count", { count: images.length, n: more ? `${images.length}+` : String(images.length) })
    : "";
  empty.hidden = images.length > 0;
  empty.textContent = query ? t("gallery.nothing", { query }) : t("gallery.empty");
  mark();
}

function mark() {
  const id = current();
  const tiles = [...parts.list.querySelectorAll(".tile")];
  for (const node of tiles) {
    const here = node.dataset.id === id;
    node.tabIndex = here ? 0 : -1;
    if (here) node.setAttribute("aria-current", "true");
    else node.removeAttribute("aria-current");
  }
  if (tiles.length && !tiles.some((node) => node.tabIndex === 0)) tiles[0].tabIndex = 0;
}

function keys(event) {
  const tiles = [...parts.list.querySelectorAll(".tile")];
  const place = tiles.indexOf(document.activeElement);
  if (place < 0) return;
  const across = tiles.filter((node) => node.offsetTop === tiles[0].offsetTop).length || 1;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -place, End: tiles.length - 1 - place };
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
  const next = tiles[place + moves[event.key]];
  event.preventDefault();
  event.stopPropagation();
  if (!next) return;
  tiles[place].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

export function toggleWide(wide = !document.body.classList.contains("gallery-wide")) {
  document.body.classList.toggle("gallery-wide", wide);
  const button = $("#gallery-wide");
  button.setAttribute("aria-pressed", String(wide));
  button.replaceChildren(icon(wide ? "shrink" : "enlarge"));
}

/** `onChoose(image, event)` when one is clicked; `currentId()` tells which one is shown. */
export function buildGallery(onChoose, currentId) {
  choose = onChoose;
  current = currentId;
  const search = el("input", { type: "search", id: "gallery-search", placeholder: t("gallery.search"), "aria-label": t("gallery.search") });
  search.addEventListener(
    "input",
    debounce(() => {
      query = search.value.trim();
      load(true);
    }, 200),
  );
  const list = el("ul", { class: "tiles", id: "tiles", "aria-label": t("gallery.title"), onkeydown: keys });
  const count = el("span", { class: "count" });
  const empty = el("p", { class: "side-empty", hidden: true });
  const end = el("div", { class: "tiles-end" });
  parts = { list, count, empty };
  $("#gallery").replaceChildren(
    el(
      "header",
      { class: "side-head" },
      el("h2", { id: "gallery-title", text: t("gallery.title") }),
      count,
      iconButton("enlarge", t("gallery.wide"), () => toggleWide(), { id: "gallery-wide", "aria-pressed": "false" }),
    ),
    el("div", { class: "search" }, icon("search"), search),
    el("div", { class: "tiles-scroll" }, empty, list, end),
  );
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more && images.length && load(), {
    root: $(".tiles-scroll"),
    rootMargin: "400px",
  }).observe(end);
  on("image", ({ job, image }) => {
    if (images.some((one) => one.id === image.id)) return;
    if (query) {
      load(true);
      return;
    }
    images = [image, ...images];
    fill();
  });
  on("gallery", ({ deleted = [], restored = [] }) => {
    images = images.filter((one) => !deleted.includes(one.id));
    const fresh = restored.filter((one) => !images.some((other) => other.id === one.id));
    images = [...images, ...fresh].sort((a, b) => b.created - a.created || (a.id < b.id ? 1 : -1));
    fill();
  });
  on("subject", mark);
  on("state", () => load(true));
  return load(true);
}
