/** The mask editor's view: the picture, the mask in stripes over it, the brush's outline; fitted, zoomed and moved. */

import { clamp } from "./dom.js";

const TINT = 0.62;
const LARGEST = 32;

function stripes(context) {
  const side = 12 * (window.devicePixelRatio || 1);
  const tile = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const pen = tile.getContext("2d");
  pen.fillStyle = "#d6246e";
  pen.fillRect(0, 0, side, side);
  pen.strokeStyle = "#fff";
  pen.lineWidth = side / 4;
  pen.beginPath();
  for (const shift of [-side, 0, side]) {
    pen.moveTo(shift - 2, side + 2);
    pen.lineTo(shift + side + 2, -2);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

export class MaskView {
  constructor(picture, paint, canvas) {
    this.picture = picture;
    this.paint = paint;
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.fitted = 1;
    this.scale = 1;
    this.offset = [0, 0];
    this.outline = null; // { point, size } of the brush
  }

  /** The whole picture, as large as it goes. */
  fit() {
    const { width, height } = this.canvas.parentElement.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    const mask = this.paint.canvas;
    this.fitted = 0.94 * Math.min(this.canvas.width / mask.width, this.canvas.height / mask.height);
    this.scale = this.fitted;
    this.offset = [(this.canvas.width - mask.width * this.scale) / 2, (this.canvas.height - mask.height * this.scale) / 2];
    this.draw();
  }

  /** Zoom by `factor` around a point of the canvas. */
  zoom(factor, [x, y] = [this.canvas.width / 2, this.canvas.height / 2]) {
    const next = clamp(this.scale * factor, this.fitted / 2, this.fitted * LARGEST);
    const part = next / this.scale;
    this.offset = [x - (x - this.offset[0]) * part, y - (y - this.offset[1]) * part];
    this.scale = next;
    this.draw();
  }

  draw() {
    const { context, canvas, scale, offset, paint } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(scale, 0, 0, scale, ...offset);
    context.imageSmoothingEnabled = scale < 6;
    context.drawImage(this.picture, 0, 0, paint.canvas.width, paint.canvas.height);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = TINT;
    context.drawImage(this.tinted(), 0, 0);
    context.globalAlpha = 1;
    context.setTransform(scale, 0, 0, scale, ...offset);
    if (this.outline) this.ring(this.outline);
  }

  /** The mask as it lies on the screen, filled with stripes that show on any picture. */
  tinted() {
    this.tint ??= document.createElement("canvas");
    const { width, height } = this.canvas;
    if (this.tint.width !== width || this.tint.height !== height) Object.assign(this.tint, { width, height });
    const context = this.tint.getContext("2d");
    context.setTransform(this.scale, 0, 0, this.scale, ...this.offset);
    context.globalCompositeOperation = "copy";
    context.drawImage(this.paint.canvas, 0, 0);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = stripes(context);
    context.fillRect(0, 0, width, height);
    return this.tint;
  }

  ring({ point, size }) {
    const { context } = this;
    for (const [color, width] of [
      ["#000", 3],
      ["#fff", 1.5],
    ]) {
      context.strokeStyle = color;
      context.lineWidth = width / this.scale;
      context.beginPath();
      context.arc(point[0], point[1], size / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  pan(x, y) {
    this.offset = [this.offset[0] + x, this.offset[1] + y];
  }

  /** An event's place on the canvas, in device pixels. */
  device(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * this.canvas.width) / box.width, ((event.clientY - box.top) * this.canvas.height) / box.height];
  }

  /** An event's place on the picture. */
  point(event) {
    const [x, y] = this.device(event);
    return [(x - this.offset[0]) / this.scale, (y - this.offset[1]) / this.scale];
  }
}
