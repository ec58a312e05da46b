/** Generate forever: when one job ends, the next begins, with what the form says then. A click, Escape or a cancelled job ends it. */

import { form } from "./form.js";
import { t } from "./i18n.js";
import { announce, toast } from "./notices.js";
import { emit, on, store } from "./store.js";
import { generate } from "./submit.js";

let repeating = false;
let last = null; // id of the newest job

export const isRepeating = () => repeating;

export function stopRepeating() {
  if (!repeating) return false;
  repeating = false;
  last = null;
  emit("forever", false);
  announce(t("forever.stopped"));
  return true;
}

export async function startRepeating() {
  if (repeating) return;
  repeating = true;
  emit("forever", true);
  if (form.get("seedLocked"))
    toast(t("forever.seed"), { action: t("forever.seed.free"), onAction: () => form.assign({ seed: null, seedLocked: false }) });
  await next();
}

async function next() {
  last = null;
  const job = await generate();
  if (!repeating) return;
  if (!job) stopRepeating();
  else if (store.jobs.get(job.id)?.ended) follow(store.jobs.get(job.id));
  else last = job.id;
}

function follow(job) {
  if (job.status === "done") next();
  else stopRepeating();
}

export function watchForever() {
  on("job", ({ job }) => {
    if (repeating && job.id === last && job.ended) follow(job);
  });
  on("state", () => {
    const job = store.jobs.get(last);
    if (repeating && last && (!job || job.ended)) follow(job ?? { status: "done" });
  });
}
