/** Live: the picture is drawn again while one types, as long as the model answers within half a second. */

import { $, debounce } from "./dom.js";
import { form } from "./form.js";
import { t } from "./i18n.js";
import { explain, toast } from "./notices.js";
import { requestOf } from "./request.js";
import { randomSeed } from "./seed.js";
import { currentSubject, loaded, show } from "./stage.js";
import { on } from "./store.js";
import { submit } from "./submit.js";

const WAIT = 120;
const QUICK = 0.5; // seconds
const SHAPING = new Set([
  "prompt",
  "negative",
  "model",
  "width",
  "height",
  "steps",
  "guidance",
  "sampler",
  "schedule",
  "seed",
  "seedLocked",
  "speed",
  "strength",
  "fit",
  "loras",
  "rescale",
  "clip_skip",
  "variation",
  "variation_seed",
  "decoder",
  "mask_blur",
  "only_masked",
  "mask_padding",
  "image_guidance",
  "guidance_start",
  "guidance_end",
  "timesteps",
  "sigmas",
]);
const seed = randomSeed();
const asked = new Map(); // job id → its number
let slow = 0; // redraws in a row that took too long
let forced = false;
const opening = new Set(); // live jobs that had to open the model
let last = "";
let sent = 0;
let drawn = 0; // an older picture that loads later is not shown

/** What is wrong, all of it also as a tooltip; an empty text takes it away. */
function note(text) {
  const place = $("#live-note");
  place.textContent = text;
  place.title = text;
}

const redraw = debounce(async () => {
  if (!form.get("live") || !form.get("prompt").trim()) return;
  const request = { ...(await requestOf()), count: 1 };
  delete request.hires;
  if (request.seed === undefined) request.seed = seed;
  const key = JSON.stringify(request);
  if (key === last) return;
  last = key;
  sent += 1;
  const number = sent;
  try {
    const job = await submit(request, { live: true, quiet: true });
    asked.set(job.id, number);
    if (asked.size > 40) asked.delete(asked.keys().next().value);
    ready(job.id);
  } catch (error) {
    if (number !== sent) return; // a newer one is on its way
    last = "";
    const { heading, message } = explain(error);
    note(error.code === "offline" ? heading : message);
  }
}, WAIT);

const waiting = new Map(); // job id → finished job that came before the answer to its request

function ready(id) {
  const job = waiting.get(id);
  if (job) finish(job);
}

async function finish(job) {
  waiting.delete(job.id);
  const number = asked.get(job.id);
  if (number === undefined) return;
  if (job.status === "failed" && number === sent && form.get("live")) note(job.error?.message ?? t("error.internal"));
  if (job.status !== "done" || !job.images[0]) return;
  note("");
  const wanted = form.get("live");
  measure(job);
  await loaded(job.images[0].url);
  if (number < drawn) return;
  drawn = number;
  const front = currentSubject();
  if (wanted && (!front || front.kind !== "compare")) show({ kind: "live", image: job.images[0] }, { follow: true });
}

/** A very slow picture ends it, or three slow ones in a row. One for which the model was opened does not count. */
function measure(job) {
  const took = job.ended - job.started;
  if (opening.delete(job.id) || forced) return;
  slow = took > QUICK ? slow + 1 : 0;
  if (slow < 3 && took < 4 * QUICK) return;
  slow = 0;
  form.set("live", false);
  toast(t("live.slow", { time: took }), {
    action: t("live.anyway"),
    onAction: () => {
      forced = true;
      form.set("live", true);
    },
  });
}

export function watchLive() {
  on("online", () => note(""));
  on("form", (changed) => {
    if (changed.some((name) => name === "live" || SHAPING.has(name))) note("");
    if (changed.includes("live")) last = "";
    if (changed.includes("live") && form.get("live")) redraw();
    else if (form.get("live") && changed.some((name) => SHAPING.has(name))) redraw();
  });
  on("source", () => form.get("live") && redraw());
  on("progress", (job) => job.live && job.progress.phase === "opening" && opening.add(job.id));
  on("job", ({ job }) => {
    if (!job.live || !job.ended) return;
    if (asked.has(job.id)) finish(job);
    else {
      waiting.set(job.id, job);
      if (waiting.size > 20) waiting.delete(waiting.keys().next().value);
    }
  });
}
