/** Where an image comes from: each mark in its file, what it proves and what it does not. */

import { el } from "./dom.js";
import { t } from "./i18n.js";

/** A finding's own sentences come from the server, in English. */
const said = (label, text) => text && el("p", { class: "muted" }, el("span", { text: `${t(label)}: ` }), el("span", { lang: "en", text }));

function item(finding) {
  return el(
    "li",
    {},
    el("strong", { text: t(`marks.${finding.mark}`) }),
    el("span", { lang: "en", text: ` – ${finding.says}` }),
    said("marks.proves", finding.proves),
    said("marks.limits", finding.limits),
  );
}

/** The verdict on `marks`, the `marks` of an image's metadata, and its findings behind it; null without them. */
export function marksOf(marks) {
  if (!marks) return null;
  return el(
    "details",
    { class: "marks" },
    el("summary", {}, el("span", { text: t(`marks.verdict.${marks.verdict}`) })),
    el("ul", {}, ...marks.findings.map(item)),
  );
}
