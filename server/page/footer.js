/** Under the form: generate, its menu, cancel, live, grid. */

import { iconButton, toggleField } from "./controls.js";
import { $, el } from "./dom.js";
import { isRepeating, startRepeating, stopRepeating, watchForever } from "./forever.js";
import { openGridDialog } from "./grid.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { popover } from "./popover.js";
import { cancelRunning } from "./progress.js";
import { activeJobs, on, store } from "./store.js";
import { generate } from "./submit.js";

/** The main button; while images are generated forever, it ends that. */
function generateButton() {
  const button = el("button", { type: "submit", class: "button accent generate", id: "generate" });
  const show = () => {
    const repeating = isRepeating();
    button.classList.toggle("repeating", repeating);
    button.replaceChildren(
      icon(repeating ? "forever" : "sparkle"),
      el("span", { text: t(repeating ? "forever.stop" : "generate") }),
      el("kbd", { text: repeating ? t("key.esc") : t("generate.key"), "aria-hidden": "true" }),
    );
  };
  show();
  on("forever", show);
  on("online", () => button.classList.toggle("offline", !store.online));
  return button;
}

function generateMenu() {
  const item = (id, name, title, hint, run, close) =>
    el(
      "button",
      {
        type: "button",
        class: "menu-item with-icon",
        id,
        onclick: () => {
          close();
          run();
        },
      },
      icon(name),
      el("span", { text: title }),
      el("small", { text: hint }),
    );
  const button = iconButton("chevron", t("generate.more"), () => {}, { id: "generate-menu", class: "button accent generate-more" });
  return popover(
    button,
    (close) => [
      item("generate-front", "up", t("generate.front"), t("generate.front.hint"), () => generate({ front: true }), close),
      item("generate-forever", "forever", t("forever.start"), t("forever.hint"), startRepeating, close),
    ],
    t("generate.more"),
  );
}

function cancelButton() {
  const stop = el(
    "button",
    {
      type: "button",
      class: "button",
      id: "cancel-running",
      "aria-label": t("cancel.running"),
      title: t("cancel.running"),
      hidden: true,
      onclick: cancelRunning,
    },
    icon("stop"),
  );
  const show = () => {
    stop.hidden = activeJobs().length === 0;
  };
  show(); // after a reload, something may be running
  on("jobs", show);
  return stop;
}

function gridButton() {
  return el(
    "button",
    { type: "button", class: "button quiet", id: "grid-open", "aria-label": t("grid.title"), title: t("grid.title"), onclick: openGridDialog },
    icon("grid"),
    el("span", { text: t("grid.open") }),
  );
}

export function buildFooter() {
  const live = toggleField("live", t("live.title"));
  live.title = t("live.hint");
  $("#compose-foot").replaceChildren(
    el("div", { class: "foot-bar", "aria-hidden": "true" }, el("div", { id: "foot-progress" })),
    el("div", { class: "foot-row" }, el("div", { class: "generate-pair" }, generateButton(), generateMenu()), cancelButton()),
    el("div", { class: "foot-row small" }, live, el("p", { class: "live-note", id: "live-note", role: "status" }), gridButton()),
  );
  $("#compose").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!stopRepeating()) generate();
  });
  watchForever();
}
