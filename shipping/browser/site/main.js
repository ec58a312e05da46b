/** The page: loads what it has to know, builds the form, and talks with the worker that draws. */

import { $, el, remember, remembered } from "./dom.js";
import { buildForm, request, set } from "./form.js";
import { bytes, language, loadLanguage, t, translate } from "./i18n.js";
import { resolve } from "./model.js";
import { base, json, packed } from "./place.js";
import { announce, hideProgress, showError, showProgress } from "./progress.js";
import { addImage, restore, showPreview, welcome } from "./stage.js";
import { threads } from "./threads.js";

const LIMIT = 4 * 2 ** 30; // WebAssembly's address space
const PATIENCE = 4000; // milliseconds for a cancel to be heard before the worker is ended

const wish = Object.fromEntries(new URLSearchParams(location.search)); // ?provider=wasm, ?threads=2

let site;
let manifest;
let worker;
let drawing = null; // the request on its way
let still = null; // timer of a cancel
let ready = null; // {provider, threads} once the model is open
let download = null; // bytes to come before the first image
let wanted = null; // the size of the image, for previews

/** The service worker, so that the page works without a network. Wait a little for it: then it has checked the worker's files too. */
async function register() {
  if (packed || !navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register(new URL("sw.js", base), { scope: base.pathname });
    if (navigator.serviceWorker.controller) return;
    const controlled = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));
    await Promise.race([controlled, new Promise((resolve) => setTimeout(resolve, 5000))]);
  } catch {
    // not allowed here, such as in a private window: the page works all the same, but not offline
  }
}

function startWorker() {
  worker = packed ? packed.worker() : new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => events[data.type]?.(data);
  worker.onerror = (event) => {
    event.preventDefault();
    events.failed({ code: "internal", message: event.message || "worker" });
  };
  ready = null;
  worker.postMessage({ type: "start", site, wish });
}

const peak = (pixels) => site.memory.open + Math.max(site.memory.largest, site.memory.pixel * pixels);

/** The small print below the button: what will be loaded, how much memory, how many threads. */
function smallPrint() {
  const said = [];
  if (download) said.push(t("first", { size: bytes(download.total), model: bytes(download.model), runtime: bytes(download.runtime) }));
  else if (download !== null && !ready) said.push(t(packed ? "packed" : "kept"));
  const need = peak(manifest.defaults.width * manifest.defaults.height);
  said.push(t("memory", { size: bytes(need) }));
  if ($("#first")) $("#first").textContent = said.join(" "); // on phones the small print is further down
  const given = navigator.deviceMemory; // in GB, at most 8; few browsers say it
  if (given && need > 0.6 * given * 2 ** 30) said.push(t("memory.scarce", { given, size: bytes(need) }));
  const count = (isolated) => threads(isolated, navigator.hardwareConcurrency, wish.threads);
  const now = count(self.crossOriginIsolated);
  if (ready?.provider === "webgpu") said.push(t("gpu"));
  else if (now > 1) said.push(t("threads", { count: now }));
  else said.push(t(navigator.serviceWorker?.controller && count(true) > 1 ? "thread.reload" : "thread", { count: count(true) }));
  said.push(t("private"));
  $("#small").textContent = said.join(" ");
}

const events = {
  started({ download: size, model, runtime }) {
    download = size ? { total: size, model, runtime } : 0;
    $("#generate").disabled = Boolean(drawing);
    document.body.dataset.state = "idle";
    smallPrint();
  },
  loading({ done, total }) {
    showProgress(t("loading", { done: bytes(done), total: bytes(total) }), done / total);
  },
  opening({ component, done }) {
    showProgress(t(`opening.${component}`), done);
  },
  ready(facts) {
    ready = facts;
    download = 0;
    smallPrint();
    showProgress(t("encoding"));
  },
  step({ step, steps, preview }) {
    showPreview(preview, wanted.width, wanted.height);
    showProgress(step < steps ? t("step", { step, steps }) : t("decoding"), step / steps);
  },
  image({ png, facts }) {
    finish();
    addImage(png, facts, (seed) => set({ seed }));
    Object.assign(document.body.dataset, { calls: JSON.stringify(facts.calls.map(Math.round)), seconds: facts.seconds, opening: facts.opening });
    announce(t("done"));
  },
  failed({ code, message }) {
    finish();
    restore(site.title);
    if (code === "cancelled") return announce(t("cancelled"));
    const text = t(`error.${code}`, { message });
    showError(text);
    return undefined;
  },
};

function finish() {
  clearTimeout(still);
  drawing = null;
  hideProgress();
  $("#generate").disabled = false;
  $("#cancel").hidden = true;
  document.body.dataset.state = "idle";
}

function generate(event) {
  event?.preventDefault();
  if (drawing || $("#generate").disabled) return;
  showError("");
  let asked;
  try {
    asked = request();
    resolve(asked, manifest);
  } catch (error) {
    showError(wrong(error));
    return;
  }
  const need = peak(asked.width * asked.height);
  if (need > LIMIT) {
    showError(t("error.large", { size: bytes(need), limit: bytes(LIMIT) }));
    return;
  }
  drawing = asked;
  wanted = { width: asked.width, height: asked.height };
  $("#generate").disabled = true;
  $("#cancel").hidden = false;
  document.body.dataset.state = "drawing";
  showPreview(null, asked.width, asked.height);
  showProgress(t("starting"));
  announce(t("started"));
  worker.postMessage({ type: "draw", request: asked });
}

/** What is wrong with a request, in the reader's language where the field at its start is one of the form. */
function wrong(error) {
  const field = /^(\w+): /u.exec(error.message)?.[1];
  const key = { width: "size", height: "size", steps: "steps", guidance: "guidance", seed: "seed" }[field];
  const values = { grain: manifest.latent.downscale, most: manifest.noise.train_timesteps };
  return key ? t(`error.${key}`, values) : t("error.request", { message: error.message });
}

/** Ask the worker to stop; one that is in a long call is ended, and a new one reads the model from the browser's store. */
function cancel() {
  if (!drawing) return;
  worker.postMessage({ type: "cancel" });
  showProgress(t("cancelling"));
  still = setTimeout(() => {
    worker.terminate();
    events.failed({ code: "cancelled" });
    $("#generate").disabled = true;
    startWorker();
  }, PATIENCE);
}

function preferences() {
  const theme = remembered("theme", "localStorage") ?? "auto";
  document.documentElement.dataset.theme = theme;
  $("#theme").value = theme;
  $("#theme").addEventListener("change", ({ target }) => {
    document.documentElement.dataset.theme = target.value;
    remember("theme", target.value, "localStorage");
  });
  $("#language").value = language;
  $("#language").addEventListener("change", ({ target }) => {
    remember("language", target.value, "localStorage");
    location.reload();
  });
}

async function start() {
  await loadLanguage(remembered("language", "localStorage"));
  [site, manifest] = await Promise.all([json("site.json"), json("model/manifest.json")]);
  translate();
  preferences();
  const { model } = site;
  const paper = packed ? null : model.papers.find((name) => /^licen[cs]e/iu.test(name));
  const licence = paper ? el("a", { href: new URL(`model/${paper}`, base).href, text: model.licence }) : model.licence;
  $("#about").replaceChildren(model.name === site.title ? "" : `${model.name} · `, licence);
  buildForm(manifest, site.examples);
  welcome(site.title);
  smallPrint();
  $("#form").addEventListener("submit", generate);
  $("#cancel").addEventListener("click", cancel);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
    if (event.key === "Escape" && drawing) cancel();
  });
  await register();
  startWorker();
}

start().catch((error) => {
  showError(t("error.start", { message: error.message }));
});
