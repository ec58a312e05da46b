/** The grid as a table of pictures, filled as they come. */

import { iconButton } from "./controls.js";
import { el, nextFrame } from "./dom.js";
import { currentGrid } from "./grid.js";
import { has, t } from "./i18n.js";
import { toastError } from "./notices.js";
import { phaseText } from "./progress.js";
import { currentSubject, show } from "./stage.js";
import { on, store } from "./store.js";

const label = (name, value) => `${has(`field.${name}`) ? t(`field.${name}`) : name}: ${value}`;

/** What a cell shows, as text: it is only built again when this changes. */
function stateOf({ job: id, image }) {
  if (image) return image.id;
  const job = store.jobs.get(id);
  if (!id) return t("phase.waiting");
  if (job?.status === "failed") return job.error?.message ?? t("error.internal");
  return !job ? "" : job.status === "cancelled" ? t("stage.cancelled") : phaseText(job);
}

function content(cell, state, choose, name) {
  if (!cell.image) return el("div", { class: `grid-wait ${store.jobs.get(cell.job)?.status ?? ""}`, text: state });
  const open = () => choose(cell.image);
  return el(
    "button",
    { type: "button", class: "grid-picture", "aria-label": name, onclick: open },
    el("img", { src: cell.image.url, alt: "" }),
  );
}

/** The table's cells, and a function that brings them up to date. */
function build(grid, choose) {
  const { x, y } = grid;
  const boxes = y.values.map(() => x.values.map(() => el("td")));
  const update = () => {
    for (const [row, cells] of currentGrid().cells.entries()) {
      for (const [column, cell] of cells.entries()) {
        const box = boxes[row]?.[column];
        const state = stateOf(cell);
        if (!box || box.dataset.state === state) continue;
        box.dataset.state = state;
        box.replaceChildren(content(cell, state, choose, `${label(x.name, x.values[column])}, ${label(y.name, y.values[row])}`));
      }
    }
  };
  const head = el(
    "tr",
    {},
    el("td", { class: "grid-corner" }),
    ...x.values.map((value) => el("th", { scope: "col", text: label(x.name, value) })),
  );
  const rows = y.values.map((value, row) => el("tr", {}, el("th", { scope: "row", text: label(y.name, value) }), ...boxes[row]));
  const table = el("table", { class: "grid-table", id: "grid" }, el("thead", {}, head), el("tbody", {}, ...rows));
  table.style.setProperty("--columns", x.values.length);
  table.update = update;
  update();
  return table;
}

let watched = null;

export function gridView(choose) {
  const grid = currentGrid();
  if (!grid) return el("p", { class: "side-empty", text: t("grid.none") });
  const table = build(grid, choose);
  const update = nextFrame(() => currentSubject()?.kind === "grid" && watched.isConnected && watched.update());
  if (!watched) for (const topic of ["grid", "jobs", "progress"]) on(topic, update);
  watched = table;
  return el(
    "div",
    { class: "grid-view" },
    el(
      "header",
      { class: "view-head" },
      el("h3", { text: grid.prompt }),
      el("p", { class: "muted", text: t("fact.seed", { n: grid.seed }) }),
      iconButton("download", t("grid.download"), () => save(grid).catch(toastError), { id: "grid-download" }),
      iconButton("close", t("close"), () => show(null, { follow: true })),
    ),
    el("div", { class: "grid-scroll", tabindex: "0", role: "region", "aria-label": t("grid.title") }, table),
  );
}

/** The whole grid as one PNG. */
async function save(grid) {
  const images = await Promise.all(
    grid.cells.flat().map(
      ({ image }) =>
        image &&
        new Promise((resolve) => {
          const img = new Image();
          img.onload = () => resolve(img);
          img.onerror = () => resolve(null);
          img.src = image.url;
        }),
    ),
  );
  const side = Math.max(64, ...images.filter(Boolean).map((img) => img.width));
  const tall = Math.max(64, ...images.filter(Boolean).map((img) => img.height));
  const [left, top, gap] = [150, 40, 6];
  const canvas = Object.assign(document.createElement("canvas"), {
    width: left + grid.x.values.length * (side + gap),
    height: top + grid.y.values.length * (tall + gap),
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#1d1b19";
  context.font = "14px system-ui, sans-serif";
  context.textBaseline = "middle";
  grid.x.values.forEach((value, column) => context.fillText(label(grid.x.name, value), left + column * (side + gap), top / 2, side));
  grid.y.values.forEach((value, row) => context.fillText(label(grid.y.name, value), 8, top + row * (tall + gap) + tall / 2, left - 16));
  images.forEach(
    (img, place) =>
      img &&
      context.drawImage(
        img,
        left + (place % grid.x.values.length) * (side + gap),
        top + Math.floor(place / grid.x.values.length) * (tall + gap),
      ),
  );
  const url = URL.createObjectURL(await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
  const link = el("a", { href: url, download: `grid-${grid.seed}.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
