/** The empty stage: what to do first, with a few prompts to try. */

import { el } from "./dom.js";
import { form } from "./form.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { store } from "./store.js";
import { generate } from "./submit.js";

const DEMO = [
  "red apple, flat style, blue background",
  "fox, noto style, teal background",
  "rocket, flat style, purple background",
  "octopus, noto style, yellow background",
  "cactus, flat style, pink background",
];
const PHOTO = [
  "a lighthouse in a storm, oil painting",
  "portrait of a fox in a raincoat, soft light",
  "isometric tiny library, pastel colours",
  "misty pine forest at dawn, 35 mm photograph",
];

/** The demo model knows emoji and few words; others know the world. */
const isDemo = () => (store.details?.defaults?.width ?? 512) <= 128;

export function welcome() {
  const examples = isDemo() ? DEMO : PHOTO;
  return el(
    "div",
    { class: "welcome", id: "welcome" },
    el("div", { class: "welcome-art", "aria-hidden": "true" }, el("i"), el("i"), el("i"), el("i"), el("i")),
    el("h3", { text: t("welcome.title") }),
    el("p", { text: t(isDemo() ? "welcome.demo" : "welcome.text") }),
    el(
      "ul",
      { class: "examples", "aria-label": t("welcome.examples") },
      ...examples.map((text) =>
        el(
          "li",
          {},
          el("button", {
            type: "button",
            class: "chip",
            lang: "en",
            text,
            onclick: () => {
              form.set("prompt", text);
              generate();
            },
          }),
        ),
      ),
    ),
    el("p", { class: "welcome-hint" }, icon("image"), t("welcome.drop")),
  );
}
