/** The mask as a list of strokes on a bitmap: undo and redo are a place in the list. No interface here. */

const KEPT = 60; // strokes between two saved bitmaps

export class MaskPaint {
  constructor(width, height, start = null) {
    this.canvas = Object.assign(document.createElement("canvas"), { width, height });
    this.context = this.canvas.getContext("2d");
    this.base = start; // an image: white where painted
    this.actions = [];
    this.place = 0;
    this.saved = [];
    this.redrawAll();
  }

  /** Begin a stroke; `extend` lengthens it. */
  begin(kind, size, point) {
    this.actions.length = this.place;
    this.saved = this.saved.filter((one) => one.place <= this.place);
    this.actions.push({ kind, size, points: [point] });
    this.place += 1;
    this.drawPart(this.actions.at(-1), 0);
  }

  extend(point) {
    const action = this.actions.at(-1);
    action.points.push(point);
    this.drawPart(action, action.points.length - 2);
  }

  /** "invert" or "clear". */
  do(kind) {
    this.actions.length = this.place;
    this.actions.push({ kind });
    this.place += 1;
    this.draw(this.actions.at(-1));
  }

  get canUndo() {
    return this.place > 0;
  }

  get canRedo() {
    return this.place < this.actions.length;
  }

  undo() {
    if (!this.canUndo) return;
    this.place -= 1;
    this.redrawAll();
  }

  redo() {
    if (!this.canRedo) return;
    this.draw(this.actions[this.place]);
    this.place += 1;
  }

  redrawAll() {
    const { context, canvas } = this;
    const from = this.saved.findLast((one) => one.place <= this.place);
    context.globalCompositeOperation = "copy";
    if (from) context.drawImage(from.bitmap, 0, 0);
    else if (this.base) context.drawImage(alphaOf(this.base, canvas.width, canvas.height), 0, 0);
    else context.clearRect(0, 0, canvas.width, canvas.height);
    for (let place = from?.place ?? 0; place < this.place; place += 1) {
      this.draw(this.actions[place]);
      if ((place + 1) % KEPT === 0 && !this.saved.some((one) => one.place === place + 1)) this.save(place + 1);
    }
  }

  save(place) {
    const bitmap = Object.assign(document.createElement("canvas"), { width: this.canvas.width, height: this.canvas.height });
    bitmap.getContext("2d").drawImage(this.canvas, 0, 0);
    this.saved.push({ place, bitmap });
  }

  draw(action) {
    const { context, canvas } = this;
    if (action.kind === "clear") context.clearRect(0, 0, canvas.width, canvas.height);
    else if (action.kind === "invert") {
      context.globalCompositeOperation = "source-out";
      context.fillStyle = "#fff";
      context.fillRect(0, 0, canvas.width, canvas.height);
    } else this.drawPart(action, 0);
  }

  drawPart({ kind, size, points }, from) {
    const { context } = this;
    context.globalCompositeOperation = kind === "eraser" ? "destination-out" : "source-over";
    context.strokeStyle = context.fillStyle = "#fff";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = size;
    context.beginPath();
    if (points.length === 1) context.arc(points[0][0], points[0][1], size / 2, 0, 2 * Math.PI);
    else {
      context.moveTo(...points[Math.max(0, from)]);
      for (const point of points.slice(Math.max(0, from) + 1)) context.lineTo(...point);
    }
    if (points.length === 1) context.fill();
    else context.stroke();
  }

  /** Whether anything is painted. */
  get empty() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let place = 3; place < data.length; place += 4) if (data[place] > 0) return false;
    return true;
  }

  /** White on black, as a PNG blob. */
  toBlob() {
    const out = Object.assign(document.createElement("canvas"), { width: this.canvas.width, height: this.canvas.height });
    const context = out.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, out.width, out.height);
    context.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => out.toBlob(resolve, "image/png"));
  }
}

/** A white-on-black image as white with alpha. */
function alphaOf(image, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let place = 0; place < pixels.data.length; place += 4) {
    pixels.data[place + 3] = pixels.data[place];
    pixels.data[place] = pixels.data[place + 1] = pixels.data[place + 2] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
