/** The mask editor: paint where the picture is drawn again. Mouse, pen, touch with two-finger zoom, or keys alone. */

import { fillTrack, iconButton } from "./controls.js";
import { openDialog } from "./dialog.js";
import { clamp, el } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { MaskPaint } from "./mask_paint.js";
import { MaskView } from "./mask_view.js";
import { announce, toastError } from "./notices.js";
import { keep, recall } from "./persistence.js";
import { setMask, source } from "./source.js";

function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(t("source.unreadable", { name: t("source.picture") })));
    image.src = url;
  });
}

/** Paint the mask; `onCancel` is called if the editor is left without using it. */
export async function openMaskEditor(onCancel = null) {
  try {
    const picture = await load(source.url);
    const before = source.maskUrl ? await load(source.maskUrl) : null;
    new Editor(picture, new MaskPaint(source.width, source.height, before), onCancel);
  } catch (error) {
    onCancel?.();
    toastError(error);
  }
}

class Editor {
  constructor(picture, paint, onCancel) {
    this.paint = paint;
    this.onCancel = onCancel;
    const base = Math.max(4, Math.round(Math.min(paint.canvas.width, paint.canvas.height) / 8));
    this.sizes = { brush: base, eraser: base, ...this.remembered(base) };
    this.tool = "brush";
    this.pointers = new Map();
    this.cursor = [paint.canvas.width / 2, paint.canvas.height / 2];
    this.keyboard = false;
    this.build(picture);
  }

  /** Sizes of brush and eraser, as shares of the picture, so that they suit each one. */
  remembered(base) {
    const kept = recall("brushes");
    return kept ? { brush: Math.max(1, Math.round(kept.brush * base)), eraser: Math.max(1, Math.round(kept.eraser * base)) } : {};
  }

  build(picture) {
    this.canvas = el("canvas", {
      class: "mask-canvas",
      id: "mask-canvas",
      tabindex: "0",
      role: "application",
      "aria-label": t("mask.canvas"),
    });
    this.view = new MaskView(picture, this.paint, this.canvas);
    this.box = el("div", { class: "mask-box" }, this.canvas);
    const { dialog, close } = openDialog(
      t("mask.title"),
      [this.toolbar(), this.box, el("p", { class: "mask-hint", text: t("mask.hint") })],
      {
        kind: "mask-dialog",
        buttons: [
          el("button", { type: "button", class: "button", text: t("close.without"), onclick: () => close() }),
          el(
            "button",
            { type: "button", class: "button accent", id: "mask-done", onclick: () => this.done(close) },
            icon("check"),
            el("span", { text: t("mask.done") }),
          ),
        ],
        onClose: () => {
          this.observer.disconnect();
          if (!this.used) this.onCancel?.();
        },
      },
    );
    this.dialog = dialog;
    dialog.addEventListener("keydown", (event) => this.keys(event));
    this.listen();
    this.observer = new ResizeObserver(() => this.view.fit());
    this.observer.observe(this.box);
    this.canvas.focus();
    this.show();
  }

  toolbar() {
    this.tools = Object.fromEntries(
      ["brush", "eraser"].map((name) => [name, iconButton(name, t(`mask.${name}`), () => this.choose(name), { id: `mask-${name}` })]),
    );
    this.slider = el("input", {
      type: "range",
      id: "mask-size",
      min: 1,
      max: Math.max(8, Math.round(Math.min(this.paint.canvas.width, this.paint.canvas.height) / 2)),
      oninput: () => this.resize(Number(this.slider.value)),
    });
    this.undoButton = iconButton("undo", t("mask.undo"), () => this.step("undo"), { id: "mask-undo" });
    this.redoButton = iconButton("redo", t("mask.redo"), () => this.step("redo"), { id: "mask-redo" });
    return el(
      "div",
      { class: "mask-tools", role: "toolbar", "aria-label": t("mask.tools") },
      this.tools.brush,
      this.tools.eraser,
      el("label", { class: "mask-size" }, el("span", { text: t("mask.size") }), this.slider),
      this.undoButton,
      this.redoButton,
      iconButton("invert", t("mask.invert"), () => this.whole("invert"), { id: "mask-invert" }),
      iconButton("trash", t("mask.clear"), () => this.whole("clear"), { id: "mask-clear" }),
      el("span", { class: "actions-gap" }),
      iconButton("minus", t("mask.out"), () => this.view.zoom(1 / 1.25)),
      iconButton("plus", t("mask.in"), () => this.view.zoom(1.25)),
      iconButton("fit", t("mask.fit"), () => this.view.fit()),
    );
  }

  choose(tool) {
    this.tool = tool;
    this.show();
  }

  resize(size) {
    this.sizes[this.tool] = clamp(Math.round(size), 1, Number(this.slider.max));
    const base = Math.max(4, Math.min(this.paint.canvas.width, this.paint.canvas.height) / 8);
    keep("brushes", { brush: this.sizes.brush / base, eraser: this.sizes.eraser / base });
    this.show();
  }

  step(kind) {
    this.paint[kind]();
    this.show();
  }

  whole(kind) {
    this.paint.do(kind);
    this.show();
  }

  show() {
    for (const [name, button] of Object.entries(this.tools)) button.setAttribute("aria-pressed", String(name === this.tool));
    this.slider.value = this.sizes[this.tool];
    fillTrack(this.slider);
    this.undoButton.disabled = !this.paint.canUndo;
    this.redoButton.disabled = !this.paint.canRedo;
    this.draw();
  }

  draw() {
    const point = this.keyboard ? this.cursor : this.hover;
    this.view.outline = point ? { point, size: this.sizes[this.tool] } : null;
    this.view.draw();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      this.draw();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        if (event.shiftKey) this.resize(this.sizes[this.tool] * (event.deltaY + event.deltaX < 0 ? 1.15 : 1 / 1.15));
        else this.view.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, this.view.device(event));
      },
      { passive: false },
    );
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.keyboard = false;
    this.pointers.set(event.pointerId, this.view.device(event));
    if (this.pointers.size === 2) {
      if (this.stroking) this.paint.undo();
      this.stroking = false;
      this.pinch = this.spread();
    } else if (this.pointers.size === 1) {
      this.panning = event.button === 1;
      this.stroking = !this.panning;
      if (this.stroking)
        this.paint.begin(event.button === 2 || event.buttons === 32 ? "eraser" : this.tool, this.sizes[this.tool], this.view.point(event));
    }
    this.show();
  }

  spread() {
    const [a, b] = [...this.pointers.values()];
    return { middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], apart: Math.hypot(a[0] - b[0], a[1] - b[1]) };
  }

  moved(event) {
    const here = this.view.device(event);
    const before = this.pointers.get(event.pointerId);
    this.hover = event.pointerType === "touch" ? null : this.view.point(event);
    if (before) this.pointers.set(event.pointerId, here);
    if (before && this.pointers.size === 2) {
      const now = this.spread();
      this.view.pan(now.middle[0] - this.pinch.middle[0], now.middle[1] - this.pinch.middle[1]);
      this.view.zoom(now.apart / Math.max(1, this.pinch.apart), now.middle);
      this.pinch = now;
    } else if (before && this.panning) this.view.pan(here[0] - before[0], here[1] - before[1]);
    else if (before && this.stroking) for (const one of event.getCoalescedEvents?.() ?? [event]) this.paint.extend(this.view.point(one));
    this.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.pointers.size === 0) this.stroking = this.panning = false;
    this.show();
  }

  keys(event) {
    const control = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    const action = control
      ? { z: () => this.step(event.shiftKey ? "redo" : "undo"), y: () => this.step("redo") }[key]
      : {
          b: () => this.choose("brush"),
          e: () => this.choose("eraser"),
          i: () => this.whole("invert"),
          "[": () => this.resize(this.sizes[this.tool] / 1.2),
          "]": () => this.resize(this.sizes[this.tool] * 1.2 + 1),
          "+": () => this.view.zoom(1.25),
          "-": () => this.view.zoom(1 / 1.25),
          0: () => this.view.fit(),
        }[key];
    if (action) {
      event.preventDefault();
      event.stopPropagation();
      action();
    } else if (event.target === this.canvas && !control) this.keyPaint(event);
  }

  /** Arrows move a cursor, Space dabs, Shift with arrows paints. */
  keyPaint(event) {
    const step = Math.max(1, this.sizes[this.tool] / 2);
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    const dab = event.key === " " || event.key === "Enter";
    if (!move && !dab) return;
    event.preventDefault();
    this.keyboard = true;
    if (move)
      this.cursor = [
        clamp(this.cursor[0] + move[0], 0, this.paint.canvas.width),
        clamp(this.cursor[1] + move[1], 0, this.paint.canvas.height),
      ];
    if (dab || event.shiftKey) {
      this.paint.begin(this.tool, this.sizes[this.tool], [...this.cursor]);
      announce(t("mask.painted"));
    }
    this.show();
  }

  async done(close) {
    this.used = true;
    await setMask(this.paint.empty ? null : await this.paint.toBlob());
    close();
  }
}
