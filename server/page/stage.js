/** The middle of the page: what is being drawn, what was drawn, or what went wrong. */

import { actionBar } from "./actions.js";
import { compareView } from "./compare.js";
import { $, el } from "./dom.js";
import { facts } from "./facts.js";
import { gridView } from "./grid_view.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { explain } from "./notices.js";
import { keep, recall } from "./persistence.js";
import { runningView } from "./progress.js";
import { emit, on, store } from "./store.js";
import { submit } from "./submit.js";
import { welcome } from "./welcome.js";

let subject = null; // { kind: "job" | "image" | "live" | "compare" | "grid", … }
let following = true; // show what starts next
let chosen = 0; // which image of a job
let actual = false; // pixel for pixel

/** The image that actions are about, or null. */
export function currentImage() {
  if (subject?.kind === "image" || subject?.kind === "live") return subject.image;
  if (subject?.kind === "compare") return subject.b;
  const job = subject?.kind === "job" ? store.jobs.get(subject.id) : null;
  return job && job.status !== "running" ? (job.images[chosen] ?? null) : null;
}

export const currentSubject = () => subject;

export function show(next, { follow = false } = {}) {
  subject = next;
  following = follow;
  chosen = 0;
  const kept = next?.kind === "job" || next?.kind === "grid" ? next : next?.kind === "image" ? { kind: "image", image: next.image } : null;
  keep("subject", kept);
  render();
  emit("subject");
}

export const showJob = (job) => show({ kind: "job", id: job.id }, { follow: true });
export const showImage = (image) => show({ kind: "image", image });

export function toggleActual() {
  actual = !actual;
  render();
}

/** Resolves when the browser has the picture, so that showing it does not flicker. */
export function loaded(url) {
  const img = new Image();
  img.src = url;
  return img.decode().catch(() => {});
}

function render() {
  const view = $("#view");
  const job = subject?.kind === "job" ? store.jobs.get(subject.id) : null;
  view.dataset.kind = subject?.kind ?? "empty";
  if (subject?.kind === "compare") view.replaceChildren(compareView(subject, show));
  else if (subject?.kind === "grid") view.replaceChildren(gridView(showImage));
  else if (job?.status === "running" || job?.status === "queued") view.replaceChildren(runningView(job));
  else if (job?.status === "failed") view.replaceChildren(failure(job));
  else if (job?.status === "cancelled" && job.images.length === 0) view.replaceChildren(cancelled(job));
  else if (currentImage()) view.replaceChildren(picture(currentImage(), job));
  else view.replaceChildren(welcome());
  const image = currentImage();
  $("#stage-foot").replaceChildren(
    ...(image && subject.kind !== "compare" ? [facts(image, job ?? store.jobs.get(image.job)), actionBar(image, subject)] : []),
  );
}

function picture(image, job) {
  const img = el("img", {
    src: image.url,
    alt: image.prompt || t("stage.untitled"),
    width: image.width,
    height: image.height,
    class: "result-image",
    id: "result",
    onerror: () => subject?.kind === "image" && show(null, { follow: true }),
  });
  img.style.setProperty("--w", image.width);
  img.style.setProperty("--h", image.height);
  const frame = el(
    "figure",
    { class: `result${actual ? " actual" : ""}` },
    img,
    image.flagged && el("figcaption", { class: "flagged" }, icon("warning"), t("stage.flagged")),
  );
  const strip =
    job &&
    job.images.length > 1 &&
    el(
      "div",
      { class: "strip", role: "group", "aria-label": t("stage.images") },
      ...job.images.map((one, index) =>
        el(
          "button",
          {
            type: "button",
            class: "strip-item",
            "aria-pressed": String(index === chosen),
            "aria-label": t("stage.image", { n: index + 1 }),
            onclick: () => {
              chosen = index;
              render();
              emit("subject");
              document.querySelectorAll(".strip-item")[index]?.focus();
            },
          },
          el("img", { src: one.thumbnail, alt: "" }),
        ),
      ),
    );
  return el("div", { class: "result-box" }, frame, strip);
}

function failure(job) {
  const { heading, message, advice } = explain(job.error ?? { code: "internal", message: "" });
  return el(
    "div",
    { class: "card-error", id: "failure" },
    icon("warning"),
    el("h3", { text: heading }),
    el("p", { text: message }),
    advice && el("p", { class: "advice", text: advice }),
    el("div", { class: "card-buttons" }, retry(job)),
  );
}

function cancelled(job) {
  return el(
    "div",
    { class: "card-quiet" },
    el("h3", { text: t("stage.cancelled") }),
    el("p", { text: job.prompt }),
    el("div", { class: "card-buttons" }, retry(job)),
  );
}

/** The same request again; not for start images that only the server had. */
function retry(job) {
  const possible = job.request && job.request.init !== true && job.request.mask !== true;
  return (
    possible &&
    el(
      "button",
      {
        type: "button",
        class: "button",
        onclick: async () => {
          const again = await submit(job.request, { model: job.model });
          if (again) showJob(again);
        },
      },
      icon("retry"),
      el("span", { text: t("retry") }),
    )
  );
}

/** Take up what was shown before the reload, unless something runs now. */
export function restoreStage() {
  const kept = recall("subject");
  const running = [...store.jobs.values()].find((job) => job.status === "running" && !job.live);
  const last = [...store.jobs.values()].find((job) => job.status === "done" && !job.live && job.images.length);
  if (running) showJob(running);
  else if (kept?.kind === "job" && store.jobs.has(kept.id)) show(kept, { follow: true });
  else if (kept?.kind === "image" || kept?.kind === "grid") show(kept);
  else if (last) showJob(last);
  else show(null, { follow: true });
}

export function watchStage() {
  on("submitted", (job) => {
    following = true;
    const busy = [...store.jobs.values()].some((one) => one.status === "running" && !one.live && one.id !== job.id);
    if (!busy || subject?.kind !== "job" || store.jobs.get(subject.id)?.status !== "running") showJob(store.jobs.get(job.id) ?? job);
  });
  on("job", async ({ job, before }) => {
    if (job.kind === "open") return;
    if (job.status === "done" && job.images[0] && subject?.id === job.id) await loaded(job.images[0].url);
    const starts = job.status === "running" && before?.status !== "running";
    if (starts && following && !job.live && subject?.kind !== "grid") showJob(job);
    else if (subject?.kind === "job" && subject.id === job.id) {
      render();
      emit("subject");
    }
  });
  on("image", ({ job, image }) => {
    if (job && subject?.kind === "job" && subject.id === job.id) render();
    if (subject?.kind === "live" && subject.image.id === image.id) render();
  });
  on("gallery", ({ deleted = [] }) => {
    for (const job of store.jobs.values()) job.images = job.images.filter((image) => !deleted.includes(image.id));
    const shown = subject?.kind === "image" ? [subject.image] : subject?.kind === "compare" ? [subject.a, subject.b] : [];
    if (shown.some((image) => deleted.includes(image.id))) show(null, { follow: true });
    else if (subject?.kind === "job") {
      chosen = 0;
      render();
    }
  });
  on("state", () => subject?.kind !== "compare" && subject?.kind !== "grid" && render());
  on("details", () => subject === null && render());
}
