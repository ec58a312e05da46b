/** Nothing typed is ever lost: each change is in localStorage at once, and on the server a moment later. Pictures go to IndexedDB. */

import { api } from "./api.js";
import { debounce } from "./dom.js";
import { emit } from "./store.js";

const PREFIX = "diffusette.";
const SYNC = 1000;
const ROOM = 60_000; // the server keeps 64 KB
const SYNCED = ["form", "preferences", "presets", "sizes", "grid"];
const OWN = ["form", "subject", "source"]; // each tab goes on with its own; a new tab takes the last one's
const memory = {}; // stands in where the browser gives no storage

export function recall(name) {
  try {
    const text = (OWN.includes(name) ? sessionStorage.getItem(PREFIX + name) : null) ?? localStorage.getItem(PREFIX + name);
    return text === null ? null : JSON.parse(text);
  } catch {
    return memory[name] ?? null;
  }
}

function write(name, value) {
  memory[name] = value;
  try {
    const text = JSON.stringify(value);
    if (OWN.includes(name)) sessionStorage.setItem(PREFIX + name, text);
    localStorage.setItem(PREFIX + name, text);
  } catch {
    // A full or forbidden storage: memory has it, and the server gets it.
  }
}

/** Keep `value` under `name`, in the browser at once and on the server soon. */
export function keep(name, value) {
  write(name, value);
  if (!SYNCED.includes(name)) return;
  write("saved", Date.now());
  push();
}

const push = debounce(async () => {
  const settings = { saved: recall("saved") ?? Date.now() };
  for (const name of SYNCED) {
    const value = recall(name);
    if (value !== null) settings[name] = value;
  }
  if (JSON.stringify(settings).length > ROOM) delete settings.presets;
  try {
    await api.saveSettings(settings);
    emit("saved", true);
  } catch {
    emit("saved", false);
  }
}, SYNC);

/** Take what the server knows where it is newer, as on another device or after the browser's storage was cleared. */
export function merge(settings) {
  if (!settings || typeof settings !== "object" || (settings.saved ?? 0) <= (recall("saved") ?? 0)) return;
  for (const name of SYNCED) if (settings[name] !== undefined) write(name, settings[name]);
  write("saved", settings.saved);
}

export const flush = () => push.flush();

/** This browser's name in the queue, for fairness. */
export function clientName() {
  let name = recall("client");
  if (!name) {
    name = `page-${Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
    keep("client", name);
  }
  return name;
}

// ---- pictures -------------------------------------------------------------------------------------------------------------------

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("diffusette", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function picture(mode, action) {
  const db = await database();
  return new Promise((resolve, reject) => {
    const request = action(db.transaction("pictures", mode).objectStore("pictures"));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export const recallPicture = (name) => picture("readonly", (all) => all.get(name)).catch(() => null);
export const keepPicture = (name, blob) => picture("readwrite", (all) => (blob ? all.put(blob, name) : all.delete(name))).catch(() => null);
