/** A grid over two settings: every combination is an ordinary job with one seed. */

import { api } from "./api.js";
import { openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { form } from "./form.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { announce, toastError } from "./notices.js";
import { keep, recall } from "./persistence.js";
import { requestOf } from "./request.js";
import { randomSeed } from "./seed.js";
import { show } from "./stage.js";
import { emit, on, store } from "./store.js";
import { submit } from "./submit.js";

const MOST = 100;
const NUMBERS = {
  steps: "10, 20, 30",
  guidance: "2, 4, 7",
  seed: "1, 2, 3",
  strength: "0.3, 0.5, 0.7",
  clip_skip: "0, 1, 2",
  rescale: "0, 0.5",
  variation: "0, 0.2, 0.4",
  hires: "1, 1.5, 2",
};
const WHOLE = new Set(["steps", "seed", "clip_skip"]);
let grid = null; // { x, y, seed, prompt, cells: [[{ job, image }]] }

export const currentGrid = () => grid;

const listOf = (name) =>
  ({
    sampler: (store.details?.samplers ?? []).map((one) => one.name),
    schedule: store.details?.schedules ?? [],
    speed: store.details?.speeds ?? [],
  })[name];
const names = () => [
  "steps",
  "guidance",
  "sampler",
  "schedule",
  "speed",
  "prompt",
  "seed",
  "strength",
  "variation",
  "rescale",
  "clip_skip",
  "hires",
];

/** `10, 20`, `10-40:10` or `fox, cat` as values; throws a sentence if they are not of their kind. */
function parseValues(name, text) {
  const parts = text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean);
  if (!(name in NUMBERS)) return parts;
  const values = [];
  for (const part of parts) {
    const range = /^(-?\d+(?:\.\d+)?)\s*(?:-|–|\.\.)\s*(\d+(?:\.\d+)?)(?:\s*:\s*(\d+(?:\.\d+)?))?$/.exec(part);
    if (range) {
      const [from, to, step] = [Number(range[1]), Number(range[2]), Number(range[3] ?? 1)];
      if (step > 0)
        for (let value = from; value <= to + 1e-9 && values.length <= MOST; value += step) values.push(Math.round(value * 1e6) / 1e6);
    } else if (name === "seed" && /^\d+$/.test(part)) values.push(part);
    else if (Number.isNaN(Number(part))) throw new Error(t("grid.number", { value: part }));
    else values.push(WHOLE.has(name) ? Math.round(Number(part)) : Number(part));
  }
  return values;
}

function axis(key, kept) {
  const select = el("select", { id: `grid-${key}` }, ...names().map((name) => el("option", { value: name, text: t(`field.${name}`) })));
  select.value = kept.name;
  const values = el("input", {
    type: "text",
    id: `grid-${key}-values`,
    value: kept.values,
    "aria-label": t("grid.values", { axis: t(`grid.${key}`) }),
  });
  const hint = el("p", { class: "field-hint" });
  const offer = el("div", { class: "words" });
  const fill = () => {
    const list = listOf(select.value);
    hint.textContent = list ? t("grid.hint.list") : select.value === "prompt" ? t("grid.hint.prompt") : t("grid.hint.numbers");
    offer.replaceChildren(
      ...(list ?? []).map((name) =>
        el("button", {
          type: "button",
          class: "chip",
          text: name,
          onclick: () => {
            const now = parseValues(select.value, values.value);
            values.value = (now.includes(name) ? now.filter((one) => one !== name) : [...now, name]).join(", ");
          },
        }),
      ),
    );
  };
  select.addEventListener("change", () => {
    const list = listOf(select.value);
    values.value = list ? list.slice(0, 3).join(", ") : select.value === "prompt" ? "" : NUMBERS[select.value];
    fill();
  });
  fill();
  return {
    node: el(
      "fieldset",
      { class: "grid-axis" },
      el("legend", { text: t(`grid.${key}`) }),
      el("div", { class: "select" }, select),
      values,
      hint,
      offer,
    ),
    name: () => select.value,
    values,
    select,
  };
}

export function openGridDialog() {
  const kept = recall("grid") ?? { x: { name: "steps", values: NUMBERS.steps }, y: { name: "guidance", values: NUMBERS.guidance } };
  const [x, y] = ["x", "y"].map((key) => axis(key, kept[key]));
  for (const [key, one] of [
    ["x", x],
    ["y", y],
  ])
    one.select.setAttribute("aria-label", t(`grid.${key}`));
  const problem = el("p", { class: "field-error", role: "alert", hidden: true });
  const start = async () => {
    try {
      const [across, down] = [x, y].map((one) => parseValues(one.name(), one.values.value));
      if (!across.length || !down.length) throw new Error(t("grid.empty"));
      if (across.length * down.length > MOST) throw new Error(t("grid.large", { n: across.length * down.length, most: MOST }));
      if (x.name() === y.name()) throw new Error(t("grid.same"));
      if (!form.get("prompt").trim()) throw new Error(t("prompt.missing"));
      keep("grid", { x: { name: x.name(), values: x.values.value }, y: { name: y.name(), values: y.values.value } });
      close();
      await run({ name: x.name(), values: across }, { name: y.name(), values: down });
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  };
  const { close } = openDialog(
    t("grid.title"),
    [el("p", { class: "muted", text: t("grid.about") }), el("div", { class: "grid-axes" }, x.node, y.node), problem],
    {
      buttons: [
        el(
          "button",
          { type: "button", class: "button accent", id: "grid-start", onclick: start },
          icon("grid"),
          el("span", { text: t("grid.start") }),
        ),
      ],
    },
  );
}

function change(request, { name, values }, value) {
  if (name !== "prompt") return { ...request, [name]: value };
  return { ...request, prompt: value === values[0] ? request.prompt : request.prompt.replaceAll(values[0], value) };
}

async function run(x, y) {
  const base = { ...(await requestOf()), count: 1 };
  base.seed ??= randomSeed();
  grid = {
    x,
    y,
    seed: String(base.seed),
    prompt: base.prompt,
    cells: y.values.map(() => x.values.map(() => ({ job: null, image: null }))),
  };
  remember();
  show({ kind: "grid" });
  announce(t("grid.started", { count: x.values.length * y.values.length }));
  for (const [row, down] of y.values.entries()) {
    for (const [column, across] of x.values.entries()) {
      try {
        const job = await submit(change(change(base, y, down), x, across), { quiet: true });
        grid.cells[row][column].job = job.id;
        remember();
        const done = store.jobs.get(job.id);
        if (done?.images.length) place(done, done.images[0]);
      } catch (error) {
        toastError(error);
        return;
      }
    }
  }
}

const remember = () => {
  keep("grid-now", grid);
  emit("grid");
};

function place(job, image) {
  for (const cell of grid?.cells.flat() ?? []) {
    if (cell.job === job.id && !cell.image) {
      cell.image = image;
      remember();
    }
  }
}

/** The grid from before the reload, with what was drawn meanwhile. */
export async function restoreGrid() {
  grid = recall("grid-now");
  on("image", ({ job, image }) => job && place(job, image));
  on("job", ({ job }) => job.ended && grid?.cells.flat().some((cell) => cell.job === job.id) && emit("grid"));
  for (const cell of grid?.cells.flat() ?? []) {
    if (!cell.job || cell.image) continue;
    const job = store.jobs.get(cell.job) ?? (await api.job(cell.job).catch(() => null));
    if (job?.images[0]) cell.image = job.images[0];
  }
  if (grid) remember();
}
