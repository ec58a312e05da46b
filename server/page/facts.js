/** Below a picture: its prompt, and every setting it was made with, the automatic ones marked. */

import { api } from "./api.js";
import { samplerTitle } from "./controls.js";
import { el } from "./dom.js";
import { duration, has, number, t } from "./i18n.js";
import { modelName, store } from "./store.js";

const cache = new Map();

/** The settings of an image, as its file has them. */
export async function settingsOf(image) {
  if (!cache.has(image.id)) {
    const found = await api.image(image.id);
    cache.set(image.id, { ...found.settings, seed: found.settings?.seed ?? image.seed });
    if (cache.size > 300) cache.delete(cache.keys().next().value);
  }
  return cache.get(image.id);
}

const UNSAID = new Set(["count", "version", "model_hash"]);

/** The settings that details and comparing show, from those that the image's record has. */
export function recorded(image, settings) {
  const found = Object.fromEntries(Object.entries(settings ?? {}).filter(([name, value]) => !UNSAID.has(name) && value !== null));
  if (found.strength !== undefined) found.init = true; // a record has a strength only then
  return { ...found, speed: found.speed ?? "exact", seed: String(image.seed), model: modelName(image.model) };
}

const scheduleTitle = (name) => (has(`schedule.${name}`) ? t(`schedule.${name}`) : name);

/** Seconds that `image` took: its part of a job with several, null where that is not known. */
function took(image, job) {
  if (!job?.started || !job.ended) return null;
  const place = job.images.findIndex((one) => one.id === image.id);
  const several = Math.max(job.request?.count ?? 1, job.images.length) > 1;
  if (!several) return job.ended - job.started;
  if (place < 0 || job.images.length < (job.request?.count ?? 1)) return null; // some are deleted or were never made
  return image.created - (place > 0 ? job.images[place - 1].created : job.started);
}

/** [name, text, whether the page's user left it open] */
function entries(values, request, image, job) {
  const open = (...names) => Boolean(request) && names.every((name) => request[name] === undefined || request[name] === null);
  const list = [
    ...(store.models.length > 1 ? [["model", modelName(image.model), null]] : []),
    ["size", `${image.width} × ${image.height}`, open("width", "height")],
  ];
  if (values.steps) list.push(["steps", t("fact.steps", { n: values.steps }), open("steps")]);
  if (values.sampler)
    list.push([
      "sampler",
      [samplerTitle(values.sampler), values.schedule === "model" ? "" : scheduleTitle(values.schedule ?? "")].filter(Boolean).join(" · "),
      open("sampler", "schedule"),
    ]);
  if (values.guidance !== undefined && values.guidance !== null)
    list.push(["guidance", t("fact.guidance", { n: number(values.guidance) }), open("guidance")]);
  list.push(["seed", t("fact.seed", { n: String(image.seed) }), open("seed")]);
  const loras = (request?.loras ?? values.loras ?? []).map((one) => one.name).filter(Boolean);
  if (loras.length) list.push(["loras", loras.join(", "), false]);
  const speed = request?.speed ?? values.speed;
  if (speed && speed !== "exact") list.push(["speed", t(`speed.${speed}`), false]);
  if (values.provider)
    list.push([
      "provider",
      values.provider.toUpperCase() + (values.plan && has(`plan.${values.plan}`) ? ` · ${t(`plan.${values.plan}`)}` : ""),
      true,
    ]);
  const seconds = took(image, job);
  if (seconds !== null) list.push(["time", duration(seconds), null]);
  return list;
}

export function facts(image, job) {
  const chips = el("ul", { class: "facts", "aria-label": t("facts.title") });
  const fill = (values) =>
    chips.replaceChildren(
      ...entries(values, job?.request, image, job).map(([name, text, open]) =>
        el(
          "li",
          { class: open ? "auto" : "", data: { fact: name }, title: open ? t("fact.auto") : null },
          text,
          open && el("span", { class: "visually-hidden", text: ` (${t("fact.auto")})` }),
        ),
      ),
    );
  if (job?.resolved) fill(job.resolved);
  else {
    fill({});
    settingsOf(image)
      .then(fill)
      .catch(() => {});
  }
  const notes = job?.notes?.length > 0 && el("ul", { class: "notes" }, ...job.notes.map((text) => el("li", { text })));
  return el("div", { class: "caption" }, el("p", { class: "caption-prompt", title: image.prompt, text: image.prompt }), chips, notes);
}
