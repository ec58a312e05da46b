/** What can be done with an image: one click each. */

import { api } from "./api.js";
import { iconButton } from "./controls.js";
import { el } from "./dom.js";
import { openDetails } from "./details.js";
import { settingsOf } from "./facts.js";
import { form } from "./form.js";
import { focusedImage, galleryImages, neighbour } from "./gallery.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { openMaskEditor } from "./mask.js";
import { toast, toastError } from "./notices.js";
import { applySettings } from "./request.js";
import { holdSeed } from "./seed.js";
import { putSource, sourceNow, useGalleryImage } from "./source.js";
import { currentImage, currentSubject, show, showImage, toggleActual } from "./stage.js";
import { emit, on, store } from "./store.js";
import { submit } from "./submit.js";

/** The request that made `image`, as far as it is known: its own settings, and the start image if the gallery has it. */
async function requestBehind(image) {
  const settings = await settingsOf(image);
  const asked = store.jobs.get(image.job)?.request ?? {};
  const request = { ...settings, seed: String(image.seed) };
  delete request.count;
  for (const name of ["init", "mask"]) {
    if (asked[name]?.image) request[name] = asked[name];
    else if (asked[name] || settings[name]) {
      delete request[name];
      toast(t("action.without", { what: t(`action.without.${name}`) }));
    }
  }
  return request;
}

async function again(image, changes) {
  try {
    const job = await submit({ ...(await requestBehind(image)), ...changes }, { model: image.model });
    if (job) emit("submitted", job);
  } catch (error) {
    toastError(error);
  }
}

export const variations = (image) => again(image, { variation: 0.2, count: 4 });
export const enlarge = (image) => again(image, { hires: 2 });

let taking = false; // a second click while the first one still loads

/** Start from `image`; with `mask`, paint one first: who leaves the editor without it has the form back as it was. */
export async function toSource(image, mask = false) {
  if (taking) return;
  taking = true;
  const [before, start] = [form.all(), sourceNow()];
  const back = () => {
    form.assign(before);
    putSource(start).catch(toastError);
  };
  try {
    await useGalleryImage(image.id);
    if (mask) await openMaskEditor(back);
    else toast(t("source.taken"));
  } catch (error) {
    toastError(error);
  } finally {
    taking = false;
  }
}

export function useSeed(image) {
  holdSeed(image.seed);
  toast(t("action.seed.done", { seed: String(image.seed) }));
}

export async function useAll(image) {
  try {
    const settings = await settingsOf(image);
    const before = form.all();
    applySettings({ ...settings, seed: String(image.seed) });
    if (store.models.some((model) => model.id === image.model)) form.set("model", image.model);
    toast(t("action.all.done"), { action: t("undo"), onAction: () => form.assign(before) });
  } catch (error) {
    toastError(error);
  }
}

async function restore(image) {
  try {
    const data = await api.restore(image.id);
    emit("gallery", { restored: [data?.image ?? { ...image, deleted: false }] });
    showImage(image);
  } catch (error) {
    toastError(error);
  }
}

/** Delete softly; the next picture takes its place on the stage. */
export async function remove(image) {
  const next = neighbour(image.id, 1) ?? neighbour(image.id, -1);
  const shown = currentImage()?.id === image.id;
  try {
    kept.delete(image.id);
    await api.remove(image.id);
    emit("gallery", { deleted: [image.id] });
    if (shown && next && next.id !== image.id) showImage(next);
    toast(t("action.deleted"), { action: t("undo"), onAction: () => restore(image) });
  } catch (error) {
    toastError(error);
  }
}

export function compare(image) {
  const others = galleryImages().filter((one) => one.id !== image.id);
  const place = galleryImages().findIndex((one) => one.id === image.id);
  const other = others[Math.max(0, place)] ?? others.at(-1);
  if (other) show({ kind: "compare", a: other, b: image });
  else toast(t("compare.alone"));
}

export function download(image) {
  const link = el("a", { href: `${image.url}?download=1`, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

const kept = new Set();

/** Keep a live picture. Of a burst of them, the server keeps the last one alone and moves the others to the trash: this one comes back. */
function keepLive(image) {
  kept.add(image.id);
  toast(t("live.kept"));
}

on("gallery", ({ deleted = [] }) => {
  for (const id of deleted) if (kept.delete(id)) api.restore(id).catch(toastError);
});

const labelled = (name, label, onclick, props = {}) =>
  el(
    "button",
    { type: "button", class: "button quiet", "aria-label": label, title: label, onclick, ...props },
    icon(name),
    el("span", { text: label }),
  );

export function actionBar(image, subject) {
  const live = subject.kind === "live";
  const able = store.details ?? {};
  return el(
    "div",
    { class: "actions", role: "toolbar", "aria-label": t("action.title") },
    live && labelled("keep", t("live.keep"), () => keepLive(image), { id: "keep-live", class: "button accent" }),
    !live && labelled("variations", t("action.variations"), () => variations(image), { id: "act-variations" }),
    !live && labelled("upscale", t("action.enlarge"), () => enlarge(image), { id: "act-enlarge" }),
    able.image_to_image !== false && labelled("image", t("action.source"), () => toSource(image), { id: "act-source" }),
    able.inpaint !== false && labelled("brush", t("action.inpaint"), () => toSource(image, true), { id: "act-inpaint" }),
    el("span", { class: "actions-gap" }),
    iconButton("seed", t("action.seed"), () => useSeed(image), { id: "act-seed" }),
    iconButton("settings", t("action.all"), () => useAll(image), { id: "act-all" }),
    iconButton("compare", t("action.compare"), () => compare(image), { id: "act-compare" }),
    iconButton("fit", t("action.actual"), toggleActual, { id: "act-actual" }),
    iconButton("info", t("action.details"), () => openDetails(image), { id: "act-details" }),
    iconButton("download", t("action.download"), () => download(image), { id: "act-download" }),
    !live && iconButton("trash", t("action.delete"), () => remove(image), { id: "act-delete", class: "icon-button danger" }),
  );
}

/** Run `action` on the image that has the focus in the gallery, or else on the one that is shown. */
export function onCurrent(action) {
  const image = focusedImage() ?? (document.body.classList.contains("gallery-wide") ? null : currentImage());
  if (image) action(image, currentSubject());
}
