/** The image to start from and its mask: from a file, the clipboard or the gallery; kept over a reload. */

import { api } from "./api.js";
import { keep, keepPicture, recall, recallPicture } from "./persistence.js";
import { emit, store } from "./store.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const MAX_SIDE = 4096;

export const source = {
  input: null, // { image: gallery id } or { blob }
  url: null, // to show it
  width: 0,
  height: 0,
  mask: null, // PNG blob, white where the image is drawn again
  maskUrl: null,
};

export async function restoreSource() {
  const kept = recall("source");
  if (!kept) return;
  try {
    const input = kept.image ? { image: kept.image } : { blob: await recallPicture("init") };
    if (input.image || input.blob) await putSource({ input, mask: await recallPicture("mask") });
  } catch {
    clearSource();
  }
}

/** The start image and its mask as they are now, for `putSource`. */
export const sourceNow = () => ({ input: source.input, mask: source.mask });

/** Take up an earlier start image with its mask, or none. */
export async function putSource({ input, mask }) {
  if (!input) return clearSource();
  if (input.image) await useGalleryImage(input.image, { keepMask: true });
  else await useBlob(input.blob, { keepMask: true });
  return setMask(mask ?? null);
}

/** Use a picture file. Other formats than PNG, JPEG and WebP, and huge pictures, become PNG or smaller first. */
export async function useBlob(file, { keepMask = false } = {}) {
  const bitmap = await createImageBitmap(file);
  const large = Math.max(bitmap.width, bitmap.height) > MAX_SIDE || file.size * 1.4 > store.limits.body;
  const blob = large || !TYPES.includes(file.type) ? await redraw(bitmap, file.type === "image/jpeg" ? file.type : "image/png") : file;
  const scale = large ? Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height)) : 1;
  const [width, height] = [Math.round(bitmap.width * scale), Math.round(bitmap.height * scale)];
  bitmap.close();
  await keepPicture("init", blob); // what is shown is safe
  keep("source", { blob: true });
  await set({ blob }, URL.createObjectURL(blob), width, height, keepMask);
}

export async function useGalleryImage(id, { keepMask = false } = {}) {
  const image = await api.image(id);
  await set({ image: id }, image.url, image.width, image.height, keepMask);
  keep("source", { image: id });
}

async function set(input, url, width, height, keepMask) {
  if (source.url?.startsWith("blob:")) URL.revokeObjectURL(source.url);
  Object.assign(source, { input, url, width, height });
  if (!keepMask) await setMask(null);
  emit("source");
  emit("source-chosen", keepMask);
}

export function clearSource() {
  if (source.url?.startsWith("blob:")) URL.revokeObjectURL(source.url);
  Object.assign(source, { input: null, url: null, width: 0, height: 0 });
  keep("source", null);
  keepPicture("init", null);
  emit("source-cleared");
  return setMask(null);
}

export async function setMask(blob) {
  await keepPicture("mask", blob);
  if (source.maskUrl) URL.revokeObjectURL(source.maskUrl);
  source.mask = blob;
  source.maskUrl = blob ? URL.createObjectURL(blob) : null;
  emit("source");
}

async function redraw(bitmap, type) {
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.95));
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export const sourceAsInput = () => (source.input.image ? { image: source.input.image } : dataUrl(source.input.blob));
export const maskAsDataUrl = () => dataUrl(source.mask);
