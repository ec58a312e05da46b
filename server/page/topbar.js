/** The bar at the top: name, model, connection, preferences. */

import { api } from "./api.js";
import { iconButton, toggle } from "./controls.js";
import { $, el } from "./dom.js";
import { form, watch } from "./form.js";
import { bytes, language, t } from "./i18n.js";
import { icon, logo } from "./icons.js";
import { pickForSettings } from "./import.js";
import { toastError } from "./notices.js";
import { popover } from "./popover.js";
import { prefer, preference } from "./preferences.js";
import { openHelp } from "./shortcuts.js";
import { emit, modelName, on, store } from "./store.js";

/** Learn what the chosen model can do. */
async function loadDetails() {
  const known = store.models.some((model) => model.id === form.get("model"));
  const id = known ? form.get("model") : (store.resident ?? store.models[0]?.id);
  if (!id) return;
  if (form.get("model") !== id) form.set("model", id);
  if (store.details?.id === id) return;
  try {
    const details = await api.model(id);
    if (form.get("model") !== id) return;
    store.details = details;
    emit("details");
  } catch (error) {
    if (error.code !== "offline") toastError(error);
  }
}

function modelPicker() {
  const select = el("select", { id: "model", "aria-label": t("model.label") });
  const about = el("span", { class: "model-about" });
  const openButton = el("button", {
    type: "button",
    class: "button quiet small",
    id: "model-open",
    text: t("model.open"),
    onclick: () => api.openModel(form.get("model")).catch(toastError),
  });
  const fill = () => {
    select.replaceChildren(...store.models.map((model) => el("option", { value: model.id, text: modelName(model.id) })));
    select.value = form.get("model") ?? "";
    select.disabled = store.models.length === 0;
    const model = store.models.find((one) => one.id === form.get("model"));
    about.textContent = model ? [bytes(model.size_bytes), model.licence, model.safety === "none" && t("model.unchecked")].filter(Boolean).join(" · ") : t("model.none");
    openButton.hidden = !model || model.resident;
  };
  select.addEventListener("change", () => form.set("model", select.value));
  watch("model", () => {
    fill();
    loadDetails();
  });
  on("models", fill);
  on("state", loadDetails);
  return el("div", { class: "model-picker" }, el("div", { class: "select" }, select), about, openButton);
}

function choice(name, values) {
  const select = el("select", { id: `p-${name}` }, ...values.map((value) => el("option", { value, text: t(`${name}.${value}`) })));
  select.value = preference(name);
  select.addEventListener("change", () => {
    prefer(name, select.value);
    if (name === "language") location.reload();
  });
  return el(
    "div",
    { class: "menu-row" },
    el("label", { htmlFor: `p-${name}`, text: t(`preference.${name}`) }),
    el("div", { class: "select" }, select),
  );
}

function preferences() {
  return popover(
    el(
      "button",
      { type: "button", class: "icon-button", id: "preferences", "aria-label": t("preferences.title"), title: t("preferences.title") },
      icon("settings"),
    ),
    () => [
      choice("theme", ["auto", "light", "dark"]),
      choice("language", ["auto", "en", "de"]),
      toggle(t("preference.previews"), {
        checked: preference("previews"),
        onchange: (value) => prefer("previews", value),
        id: "p-previews",
      }),
      toggle(t("preference.keys"), { checked: preference("keys"), onchange: (value) => prefer("keys", value), id: "p-keys" }),
      el("p", { class: "menu-note", lang: language, text: t("about", { version: store.version }) }),
    ],
    t("preferences.title"),
  );
}

function connection() {
  const node = el("p", { class: "connection", id: "connection", role: "status" });
  const show = () => {
    node.classList.toggle("off", !store.online);
    node.textContent = store.online ? "" : t(store.problem === "unauthorized" ? "connection.token" : "connection.lost");
  };
  on("online", show);
  show();
  return node;
}

export function buildTopbar() {
  $("#topbar").replaceChildren(
    el("h1", { class: "brand" }, logo(), el("span", { text: "Diffusette" })),
    modelPicker(),
    connection(),
    el(
      "div",
      { class: "topbar-tools" },
      iconButton("read", t("import.open"), pickForSettings, { id: "import-open" }),
      iconButton("keyboard", t("keys.title"), openHelp, { id: "keys-help" }),
      preferences(),
    ),
  );
}
