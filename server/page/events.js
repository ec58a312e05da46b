/** The stream of events: replayed after a gap, and the whole state again when the gap is too long. */

import { api, decode } from "./api.js";
import { emit, putImage, putJob, putOrder, putPreview, putProgress, replace, setOnline, store } from "./store.js";

const HANDLERS = {
  job: (data) => putJob(data.job),
  progress: putProgress,
  preview: putPreview,
  image: (data) => putImage(data.job, data.image),
  note: (data) => {
    const job = store.jobs.get(data.job);
    if (job && !job.notes.includes(data.text)) job.notes.push(data.text);
    emit("note", data);
  },
  gallery: (data) => emit("gallery", data),
  model: (data) => {
    store.resident = data.resident;
    for (const model of store.models) model.resident = model.id === data.resident;
    emit("models");
  },
  queue: (data) => putOrder(data.order),
  reset: () => refresh(),
};
const RETRY = 2000;
const SILENCE = 45_000;

let source = null;
let heard = 0;
let retry = null;

/** Fetch the whole state, then listen from there. */
export async function refresh() {
  clearTimeout(retry);
  try {
    const state = await api.state();
    replace(state);
    setOnline(true);
    listen();
    return state;
  } catch (error) {
    setOnline(false, error.code);
    source?.close();
    source = null;
    retry = setTimeout(() => refresh().catch(() => {}), RETRY);
    throw error;
  }
}

function listen() {
  source?.close();
  source = new EventSource(api.eventsUrl(store.event));
  const mine = source;
  source.onopen = () => {
    heard = Date.now();
    setOnline(true);
  };
  source.onerror = () => {
    if (mine !== source) return;
    setOnline(false);
    if (mine.readyState === EventSource.CLOSED) retry = setTimeout(() => refresh().catch(() => {}), RETRY);
  };
  for (const [kind, handle] of Object.entries(HANDLERS)) {
    source.addEventListener(kind, (event) => {
      heard = Date.now();
      const number = Number(event.lastEventId);
      if (number > store.event) store.event = number;
      handle(event.data ? decode(event.data) : {});
    });
  }
}

/** After sleep, in another tab, or without a network, events may be missing: ask again. */
export function watchWaking() {
  const wake = () => {
    if (document.visibilityState !== "visible") return;
    const dead = !source || source.readyState !== EventSource.OPEN;
    if (dead || Date.now() - heard > SILENCE) refresh().catch(() => {});
  };
  document.addEventListener("visibilitychange", wake);
  window.addEventListener("focus", wake);
  window.addEventListener("online", wake);
  window.addEventListener("unreachable", () => {
    if (store.online) refresh().catch(() => {});
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) refresh().catch(() => {});
  });
}
