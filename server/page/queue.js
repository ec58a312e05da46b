/** The queue: what runs, what waits, what failed; moved by mouse or keys. */

import { api } from "./api.js";
import { iconButton } from "./controls.js";
import { $, el, nextFrame } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { announce, explain, toastError } from "./notices.js";
import { keep, recall } from "./persistence.js";
import { cancel, phaseText, progressBar, timeLeft } from "./progress.js";
import { activeJobs, modelName, on, putOrder, store } from "./store.js";

const TYPE = "application/x-diffusette-job";
const KEPT = 300; // more than the server tells of jobs that ended
const dismissed = new Set();
let open = () => {};
let bars = new Map();

const guard = (promise) => promise.catch(toastError);

/** Put a waiting job before another (null: at the end). */
async function move(job, before) {
  const order = store.order.filter((id) => id !== job.id);
  order.splice(before ? order.indexOf(before) : order.length, 0, job.id);
  putOrder(order);
  await guard(api.move(job.id, before));
  announce(t("queue.moved", { n: store.order.indexOf(job.id) + 1 }));
}

function step(job, direction) {
  const place = store.order.indexOf(job.id);
  const target = place + direction;
  if (target < 0 || target >= store.order.length) return;
  move(job, direction < 0 ? store.order[target] : (store.order[target + 1] ?? null)).then(() =>
    document.querySelector(`[data-job="${CSS.escape(job.id)}"]`)?.focus(),
  );
}

function title(job) {
  if (job.kind !== "open") return job.prompt;
  return t("queue.open", { model: modelName(job.model) });
}

function dismiss(jobs) {
  for (const job of jobs) dismissed.add(job.id);
  keep("dismissed", [...dismissed].slice(-KEPT));
  render();
}

function buttons(job) {
  if (job.status === "running") return [iconButton("stop", t("cancel"), () => cancel(job), { class: "icon-button small" })];
  if (job.status === "failed")
    return [
      iconButton(
        "close",
        t("queue.dismiss"),
        () => dismiss([job]),
        { class: "icon-button small" },
      ),
    ];
  const place = store.order.indexOf(job.id);
  return [
    iconButton("up", t("queue.up"), () => step(job, -1), { class: "icon-button small", disabled: place === 0 }),
    iconButton("down", t("queue.down"), () => step(job, 1), { class: "icon-button small", disabled: place === store.order.length - 1 }),
    iconButton("now", t("queue.now"), () => guard(api.now(job.id)), { class: "icon-button small" }),
    iconButton("close", t("queue.remove"), () => cancel(job), { class: "icon-button small" }),
  ];
}

function dragging(node, job) {
  node.draggable = true;
  node.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData(TYPE, job.id);
    event.dataTransfer.effectAllowed = "move";
    node.classList.add("dragged");
  });
  node.addEventListener("dragend", () => node.classList.remove("dragged"));
  node.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes(TYPE)) return;
    event.preventDefault();
    node.classList.add("target");
  });
  node.addEventListener("dragleave", () => node.classList.remove("target"));
  node.addEventListener("drop", (event) => {
    const moved = store.jobs.get(event.dataTransfer.getData(TYPE));
    node.classList.remove("target");
    if (!moved || moved.id === job.id) return;
    event.preventDefault();
    const down = store.order.indexOf(moved.id) < store.order.indexOf(job.id);
    move(moved, down ? (store.order[store.order.indexOf(job.id) + 1] ?? null) : job.id);
  });
}

function item(job) {
  const preview = store.previews.get(job.id);
  const picture = preview
    ? el("img", { src: preview.url, alt: "" })
    : icon(job.kind === "open" ? "bolt" : job.status === "failed" ? "warning" : "image");
  const text = job.status === "failed" ? explain(job.error ?? {}).heading : [phaseText(job), timeLeft(job)].filter(Boolean).join(" · ");
  const node = el(
    "li",
    { class: `job ${job.status}`, data: { job: job.id }, tabindex: "-1", "aria-label": `${title(job)}, ${text}` },
    el(
      "button",
      { type: "button", class: "job-open", onclick: () => open(job), "aria-label": t("queue.show", { title: title(job) }) },
      el("span", { class: "job-picture" }, picture),
    ),
    el(
      "div",
      { class: "job-text" },
      el("p", { class: "job-title", text: title(job), title: title(job) }),
      el("p", { class: "job-phase", text }),
    ),
    el("div", { class: "job-buttons" }, ...buttons(job)),
  );
  if (job.status === "running") {
    const bar = progressBar(job, t("stage.progress"));
    bars.set(job.id, { bar, phase: node.querySelector(".job-phase"), picture: node.querySelector(".job-picture") });
    node.append(bar);
  }
  if (job.status === "queued") {
    dragging(node, job);
    node.addEventListener("keydown", (event) => {
      if (!event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
      event.preventDefault();
      step(job, event.key === "ArrowUp" ? -1 : 1);
    });
  }
  return node;
}

function render() {
  const box = $("#queue");
  const active = activeJobs();
  const failed = [...store.jobs.values()].filter((job) => job.status === "failed" && !job.live && !dismissed.has(job.id));
  const inside = box.contains(document.activeElement) ? document.activeElement : null;
  const focusJob = inside?.closest("[data-job]")?.dataset.job;
  const focusLabel = inside?.getAttribute("aria-label");
  bars = new Map();
  box.replaceChildren(
    el(
      "header",
      { class: "side-head" },
      el("h2", { id: "queue-title", text: t("queue.title") }),
      el("span", { class: "count", text: active.length ? String(active.length) : "" }),
      failed.length > 1 &&
        el("button", {
          type: "button",
          class: "button quiet small",
          id: "queue-dismiss",
          text: t("queue.dismiss.all"),
          onclick: () => dismiss(failed),
        }),
      store.order.length > 1 &&
        el("button", {
          type: "button",
          class: "button quiet small",
          id: "queue-clear",
          text: t("queue.clear"),
          onclick: () => guard(api.clear()),
        }),
    ),
    active.length + failed.length
      ? el("ul", { class: "jobs", id: "jobs", "aria-label": t("queue.title") }, ...active.map(item), ...failed.slice(0, 3).map(item))
      : el("p", { class: "side-empty", text: t("queue.empty") }),
  );
  if (!focusJob) return;
  const row = box.querySelector(`[data-job="${CSS.escape(focusJob)}"]`);
  const same =
    row && [...row.querySelectorAll("button")].find((button) => button.getAttribute("aria-label") === focusLabel && !button.disabled);
  (same ?? row ?? box.querySelector("button"))?.focus();
}

export function buildQueue(onOpen) {
  open = onOpen;
  for (const id of recall("dismissed") ?? []) dismissed.add(id);
  const soon = nextFrame(render);
  on("jobs", soon);
  on("models", soon);
  on("progress", (job) => {
    const parts = bars.get(job.id);
    if (!parts) return;
    parts.bar.update();
    parts.phase.textContent = [phaseText(job), timeLeft(job)].filter(Boolean).join(" · ");
  });
  on("preview", (job) => {
    const parts = bars.get(job.id);
    if (!parts) return;
    let img = parts.picture.querySelector("img");
    if (!img) parts.picture.replaceChildren((img = el("img", { alt: "" })));
    img.src = store.previews.get(job.id).url;
  });
  render();
}
