/** What the server says, as it was last heard. Everything shown comes from here; nothing here is made up by the page. */

const listeners = new Map();

export function on(topic, listener) {
  if (!listeners.has(topic)) listeners.set(topic, new Set());
  listeners.get(topic).add(listener);
}

export function emit(topic, value) {
  for (const listener of listeners.get(topic) ?? []) listener(value);
}

export const store = {
  version: "",
  event: 0,
  online: true,
  problem: null, // why not: an error code
  models: [],
  resident: null,
  details: null, // of the chosen model
  limits: { queue: 1000, pixels: 4096 * 4096, steps: 10000, count: 1000, prompt: 10000, body: 32 << 20 },
  jobs: new Map(),
  order: [], // ids of queued jobs
  previews: new Map(), // job id → { image, url }
};

/** A model's name; where two share one, with its hash, as A1111 writes it. */
export function modelName(id) {
  const model = store.models.find((one) => one.id === id);
  if (!model) return id ?? "";
  return store.models.some((one) => one.id !== id && one.name === model.name) ? model.title : model.name;
}

/** Take over a whole state, as after a start or a reset. */
export function replace(state) {
  store.version = state.version;
  store.event = state.event;
  store.models = state.models;
  store.resident = state.resident;
  store.limits = { ...store.limits, ...state.limits };
  store.jobs = new Map(state.jobs.map((job) => [job.id, job]));
  store.order = state.jobs.filter((job) => job.status === "queued").map((job) => job.id);
  for (const id of store.previews.keys()) if (store.jobs.get(id)?.status !== "running") store.previews.delete(id);
  emit("models");
  emit("jobs");
  emit("state", state);
}

const ORDER = { queued: 0, running: 1 };
const rank = (job) => ORDER[job.status] ?? 2;

/** News of a job. An answer may come after the event that overtook it: a job never goes back. */
export function putJob(job) {
  const before = store.jobs.get(job.id);
  if (before && rank(before) > rank(job)) return;
  store.jobs.set(job.id, job);
  store.order = store.order.filter((id) => id !== job.id);
  if (job.status === "queued") {
    const place = job.position ?? store.order.length;
    store.order.splice(Math.min(place, store.order.length), 0, job.id);
  }
  if (job.status !== "running") store.previews.delete(job.id);
  forgetOld();
  emit("jobs");
  emit("job", { job, before });
}

function forgetOld() {
  const ended = [...store.jobs.values()].filter((job) => job.ended);
  if (ended.length <= 200) return;
  ended.sort((a, b) => a.ended - b.ended);
  for (const job of ended.slice(0, ended.length - 150)) store.jobs.delete(job.id);
}

export function putOrder(order) {
  store.order = order.filter((id) => store.jobs.has(id));
  emit("jobs");
}

export function putProgress(progress) {
  const job = store.jobs.get(progress.job);
  if (!job || job.ended) return;
  job.progress = progress;
  emit("progress", job);
}

export function putPreview(preview) {
  const job = store.jobs.get(preview.job);
  if (!job || job.ended) return;
  store.previews.set(preview.job, preview);
  emit("preview", job);
}

export function putImage(id, image) {
  const job = store.jobs.get(id);
  if (job && !job.images.some((one) => one.id === image.id)) job.images.push(image);
  emit("image", { job, image });
}

export function setOnline(online, problem = null) {
  if (store.online === online && store.problem === problem) return;
  store.online = online;
  store.problem = problem;
  emit("online", online);
}

/** Running and queued jobs in order, live ones left out: they come and go with every key. */
export function activeJobs() {
  const running = [...store.jobs.values()].filter((job) => job.status === "running");
  const queued = store.order.map((id) => store.jobs.get(id)).filter(Boolean);
  return [...running, ...queued].filter((job) => !job.live);
}

export function runningJob() {
  return [...store.jobs.values()].find((job) => job.status === "running") ?? null;
}
