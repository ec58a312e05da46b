/** What a file says about its image: the record, AUTOMATIC1111's text, and XMP with IPTC's mark that AI made it. As Python writes them. */

import { SAMPLERS } from "./samplers.js";
import { SCHEDULES } from "./schedules.js";

const AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
const SMALLEST_MARKED = 256; // pixels of the shorter side; smaller images have no watermark in Python either

/** The record of a finished image, as JSON. `model` is {name, hash}, `tool` the program's name and version. */
export function record(request, model, tool, extra) {
  const values = {
    prompt: request.prompt,
    ...(request.negative ? { negative: request.negative } : {}),
    seed: request.seed,
    steps: request.steps,
    guidance: request.guidance,
    sampler: request.sampler,
    schedule: request.schedule,
    width: request.width,
    height: request.height,
    model: model.name,
    model_hash: model.hash,
    extra,
    ...(Math.min(request.width, request.height) < SMALLEST_MARKED ? {} : { watermark: "off" }),
    version: tool,
  };
  const fields = Object.entries(values).map(([name, value]) => {
    const json = typeof value === "bigint" ? value.toString() : JSON.stringify(value); // seeds have up to 64 bits
    return `${JSON.stringify(name)}:${json}`;
  });
  return `{${fields.join(",")}}`;
}

/** AUTOMATIC1111's text. */
export function infotext(request, model, tool) {
  const values = {
    Steps: request.steps,
    Sampler: SAMPLERS[request.sampler].label,
    "Schedule type": SCHEDULES[request.schedule].label,
    "CFG scale": request.guidance,
    Seed: request.seed,
    Size: `${request.width}x${request.height}`,
    "Model hash": model.hash.slice(0, 10),
    Model: model.name,
    Version: tool,
  };
  const quoted = (value) => (/[,:\n\r"]/u.test(value) || value !== value.trim() ? JSON.stringify(value) : value);
  const last = Object.entries(values)
    .filter(([, value]) => value !== "")
    .map(([label, value]) => `${label}: ${quoted(String(value))}`);
  const negative = request.negative ? `\nNegative prompt: ${request.negative}` : "";
  return `${request.prompt}${negative}\n${last.join(", ")}`.replaceAll("\0", "\ufffd");
}

const escaped = (text) =>
  text.replace(/[&<>"']/gu, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" })[letter]);

/** The XMP packet: made by AI, and by which system. */
export function xmp(tool) {
  const [system, ...version] = tool.split(" ");
  const attributes = {
    "xmlns:Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmlns:xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt:DigitalSourceType": AI_MADE,
    "xmp:CreatorTool": tool,
    "Iptc4xmpExt:AISystemUsed": system,
    ...(version.length ? { "Iptc4xmpExt:AISystemVersionUsed": version.join(" ") } : {}),
  };
  const written = Object.entries(attributes).map(([name, value]) => `${name}="${escaped(value)}"`);
  return (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">' +
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">' +
    `<rdf:Description rdf:about="" ${written.join(" ")}></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>`
  );
}

/** The text chunks of a PNG file, for `encodePng`. */
export function texts(request, model, tool, extra) {
  return [
    { key: "parameters", value: infotext(request, model, tool) },
    { key: "diffusette", value: record(request, model, tool, extra), international: true },
    { key: "XML:com.adobe.xmp", value: xmp(tool), international: true },
  ];
}
