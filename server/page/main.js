/** Start here: texts, what was kept, the parts of the page, then the server's state and its events. */

import { buildCompose } from "./compose.js";
import { refresh, watchWaking } from "./events.js";
import { buildFooter } from "./footer.js";
import { loadForm } from "./form.js";
import { buildGallery, toggleWide } from "./gallery.js";
import { restoreGrid } from "./grid.js";
import { loadLanguage, translate } from "./i18n.js";
import { watchDrops } from "./drop.js";
import { watchLive } from "./live.js";
import { flush, merge } from "./persistence.js";
import { loadPreferences, preference } from "./preferences.js";
import { watchProgress } from "./progress.js";
import { buildQueue } from "./queue.js";
import { watchKeys } from "./shortcuts.js";
import { restoreSource } from "./source.js";
import { currentImage, currentSubject, restoreStage, show, showImage, showJob, watchStage } from "./stage.js";
import { buildTopbar } from "./topbar.js";

/** A click in the gallery shows the picture; while two are compared, it changes one of them. */
function choose(image, event) {
  toggleWide(false);
  const subject = currentSubject();
  if (subject?.kind === "compare") show(event.shiftKey ? { ...subject, a: image } : { ...subject, b: image });
  else showImage(image);
}

async function start() {
  loadPreferences();
  const first = refresh().catch(() => null);
  const state = await first;
  merge(state?.settings);
  loadPreferences();
  loadForm();
  await loadLanguage(preference("language"));
  translate();
  watchProgress();
  buildTopbar();
  buildCompose();
  buildFooter();
  buildQueue(showJob);
  watchStage();
  await Promise.all([restoreSource(), restoreGrid(), buildGallery(choose, () => currentImage()?.id)]);
  restoreStage();
  watchLive();
  watchDrops();
  watchKeys();
  watchWaking();
  window.addEventListener("pagehide", flush);
  document.documentElement.dataset.ready = "true";
}

start();
