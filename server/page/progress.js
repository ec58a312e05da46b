/** Progress that tells the truth: the phase, the step, the time left from measured steps. */

import { api } from "./api.js";
import { $, el } from "./dom.js";
import { duration, t } from "./i18n.js";
import { icon } from "./icons.js";
import { announce, toastError } from "./notices.js";
import { preference } from "./preferences.js";
import { activeJobs, on, runningJob, store } from "./store.js";

const PHASES = ["opening", "encoding", "denoising", "decoding", "saving"];
const TITLE = "Diffusette";
let shown = null; // { job, parts }
let told = -1;

export async function cancel(job) {
  try {
    await api.cancel(job.id);
  } catch (error) {
    toastError(error);
  }
}

/** The newest job of the queue that can be cancelled. */
export function cancelRunning() {
  const job = activeJobs()[0];
  if (job) cancel(job);
}

/** In words: what is happening now. */
export function phaseText(job) {
  if (job.status === "queued") return t("phase.queued", { n: store.order.indexOf(job.id) + 1 });
  const progress = job.progress;
  if (!progress) return t("phase.waiting");
  const text =
    progress.phase === "denoising" && progress.steps
      ? t("phase.step", { step: progress.step, steps: progress.steps })
      : t(`phase.${progress.phase}`);
  return progress.count > 1 ? t("phase.of", { n: progress.image + 1, count: String(progress.count), text }) : text;
}

export function timeLeft(job) {
  const eta = job.progress?.eta;
  return eta === null || eta === undefined || eta < 0.5 ? "" : t("phase.left", { time: duration(eta) });
}

export const share = (job) => job.progress?.done ?? 0;

/** A bar for `job`; `.update()` follows it. */
export function progressBar(job, label) {
  const fill = el("div", { class: "bar-fill" });
  const bar = el("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  bar.update = () => {
    const unknown = job.status === "running" && (!job.progress || (job.progress.phase !== "denoising" && share(job) === 0));
    bar.classList.toggle("unknown", unknown);
    if (unknown) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", String(Math.round(share(job) * 100)));
    fill.style.width = unknown ? "" : `${share(job) * 100}%`;
  };
  bar.update();
  return bar;
}

/** The stage while a job runs or waits. */
export function runningView(job) {
  const size = job.resolved ?? { width: job.request?.width, height: job.request?.height };
  const width = size.width ?? store.details?.defaults?.width ?? 512;
  const height = size.height ?? store.details?.defaults?.height ?? 512;
  const img = el("img", { class: "preview-image", alt: t("stage.preview"), hidden: true });
  const frame = el("div", { class: "result preview" }, el("div", { class: "noise" }), img);
  for (const node of [frame, img]) {
    node.style.setProperty("--w", width);
    node.style.setProperty("--h", height);
  }
  const phases = el("ol", { class: "phases" }, ...PHASES.map((name) => el("li", { data: { phase: name }, text: t(`phases.${name}`) })));
  const text = el("p", { class: "progress-text" });
  const left = el("p", { class: "progress-left" });
  const bar = progressBar(job, t("stage.progress"));
  const panel = el(
    "div",
    { class: "progress", id: "progress" },
    phases,
    bar,
    el(
      "div",
      { class: "progress-row" },
      text,
      left,
      el(
        "button",
        { type: "button", class: "button", id: "cancel", onclick: () => cancel(job) },
        icon("stop"),
        el("span", { text: t(job.status === "queued" ? "queue.remove" : "cancel") }),
      ),
    ),
  );
  const done =
    job.images.length > 0 &&
    el(
      "div",
      { class: "strip" },
      ...job.images.map((one) => el("span", { class: "strip-item" }, el("img", { src: one.thumbnail, alt: "" }))),
    );
  shown = { job, img, phases, text, left, bar };
  follow(job);
  picture(job);
  return el("div", { class: "result-box running" }, frame, done, panel);
}

function follow(job) {
  if (shown?.job.id !== job.id) return;
  shown.text.textContent = phaseText(job);
  shown.left.textContent = timeLeft(job);
  shown.bar.update();
  const now = PHASES.indexOf(job.progress?.phase);
  for (const [index, item] of [...shown.phases.children].entries()) {
    item.classList.toggle("done", now > index);
    item.classList.toggle("now", now === index);
  }
}

function picture(job) {
  const preview = store.previews.get(job.id);
  if (shown?.job.id !== job.id || !preview || !preference("previews")) return;
  shown.img.src = preview.url;
  shown.img.hidden = false;
}

function title() {
  const job = runningJob();
  document.title = job && !job.live ? `${Math.round(share(job) * 100)} % · ${TITLE}` : TITLE;
  const bar = $("#foot-progress");
  if (bar) bar.style.width = job && !job.live ? `${share(job) * 100}%` : "0";
}

/** Quarters are worth saying; every step is not. */
function tell(job) {
  const quarter = Math.floor(share(job) * 4);
  if (job.live || quarter === told || quarter === 0 || quarter === 4) return;
  told = quarter;
  announce(t("announce.progress", { percent: quarter * 25, left: timeLeft(job) }));
}

export function watchProgress() {
  on("progress", (job) => {
    follow(job);
    title();
    tell(job);
  });
  on("preview", picture);
  on("jobs", () => {
    title();
    const job = store.jobs.get(shown?.job.id);
    if (job?.status === "queued") follow(job); // its place may have changed
  });
  on("job", ({ job, before }) => {
    if (job.live || job.kind === "open" || job.status === before?.status) return;
    if (job.status === "running") {
      told = -1;
      announce(t("announce.started"));
    }
    if (job.status === "done") announce(t("announce.done", { count: job.images.length }));
    if (job.status === "failed") announce(t("announce.failed", { message: job.error?.message ?? "" }), true);
    if (job.status === "cancelled") announce(t("announce.cancelled"));
  });
}
