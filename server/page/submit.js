/** Sending work to the server, and saying beside the field what it did not like. */

import { api } from "./api.js";
import { clearFieldErrors, showFieldError } from "./controls.js";
import { form } from "./form.js";
import { t } from "./i18n.js";
import { announce, explain, toastError } from "./notices.js";
import { clientName, flush } from "./persistence.js";
import { requestOf } from "./request.js";
import { source } from "./source.js";
import { emit, on, putJob, store } from "./store.js";

/** Tell an error where it belongs: beside its field if there is one, else in a toast. */
export function tell(error) {
  const { heading, message } = explain(error);
  const text = error.field ? message.replace(new RegExp(`^${error.field}: `), "") : message;
  if (error.field && showFieldError(error.field, text)) announce(`${heading}: ${text}`, true);
  else toastError(error);
}

/** Submit `request`; gives the job, or null after telling what went wrong. */
export async function submit(request, { model = form.get("model"), live = false, front = false, quiet = false } = {}) {
  try {
    const job = await api.submit({
      model: model ?? undefined,
      request,
      client: clientName(),
      live: live || undefined,
      front: front || undefined,
      format: form.get("format") ?? undefined,
    });
    putJob(job);
    return job;
  } catch (error) {
    if (quiet) throw error;
    tell(error);
    return null;
  }
}

/** A job of this page that failed for one field says so beside it as well. */
on("job", ({ job, before }) => {
  if (job.status !== "failed" || before?.status === "failed" || job.live || job.client !== clientName() || !job.error?.field) return;
  showFieldError(job.error.field, job.error.message.replace(new RegExp(`^${job.error.field}: `), ""), false);
});

/** Submit what the form says. */
export async function generate({ front = false } = {}) {
  clearFieldErrors();
  flush();
  const lacking = !form.get("prompt").trim()
    ? ["prompt", t("prompt.missing")]
    : store.details?.needs_init && !source.input
      ? ["init", t("source.needed")]
      : null;
  if (lacking) {
    showFieldError(...lacking);
    announce(lacking[1], true);
    return null;
  }
  const job = await submit(await requestOf(), { front });
  if (job) {
    emit("submitted", job);
    announce(t("queue.added"));
  }
  return job;
}
