/** A prompt becomes states of the text encoder: parsed, split into chunks, encoded chunk by chunk, weighted, joined. */

import { atStep, changes, parse } from "./grammar.js";

const MAX_CHUNKS = 32;
const COMMA_REACH = 20;
const MAX_VERSIONS = 256;
const MAX_RESTORED = 10;

/** Chunks {ids, weights} of the tokenizer's length for the `sections` of a text, and the number of symbols that were left out. */
export function chunk(sections, tokenizer) {
  const room = tokenizer.length - 2;
  const packs = [];
  let unknown = 0;
  sections.forEach((section, index) => {
    const tokens = section.flatMap(({ text, weight }) => {
      const found = tokenizer.encode(text);
      unknown += found.unknown;
      return found.ids.map((id) => [id, weight]);
    });
    const found = pack(tokens, room, tokenizer.comma);
    if (!found.length && (index < sections.length - 1 || !packs.length)) packs.push([]);
    packs.push(...found);
  });
  return { chunks: packs.slice(0, MAX_CHUNKS).map((one) => close(one, tokenizer)), unknown, cut: Math.max(0, packs.length - MAX_CHUNKS) };
}

/** Distribute tokens over packs; a full pack is split after its last comma, if that is near. */
function pack(tokens, room, comma) {
  const packs = [];
  let own = [];
  let afterComma = 0;
  for (const token of tokens) {
    if (comma !== undefined && token[0] === comma) afterComma = own.length + 1;
    else if (own.length === room && afterComma && room - afterComma < COMMA_REACH) {
      packs.push(own.slice(0, afterComma));
      [own, afterComma] = [own.slice(afterComma), 0];
    }
    if (own.length + 1 > room) {
      packs.push(own);
      [own, afterComma] = [[], 0];
    }
    own.push(token);
  }
  return own.length ? [...packs, own] : packs;
}

function close(pack, tokenizer) {
  const weights = [1, ...pack.map(([, weight]) => weight)];
  return {
    ids: tokenizer.chunk(pack.map(([id]) => id)),
    weights: [...weights, ...Array(tokenizer.length - weights.length).fill(1)],
  };
}

/** Multiply `states` (length × width) by the weights of the tokens, and restore their mean where that does not blow them up. */
export function weighted(states, weights) {
  if (weights.every((weight) => weight === 1)) return states;
  const width = states.length / weights.length;
  const changed = Float64Array.from(states, (value, index) => value * weights[Math.floor(index / width)]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [before, after] = [mean(Float64Array.from(states)), mean(changed)];
  const factor = after === 0 ? 0 : before / after;
  return Float32Array.from(factor >= 1 / MAX_RESTORED && factor <= MAX_RESTORED ? changed.map((value) => value * factor) : changed);
}

/** The step that `sigma` is in, from 0. */
export function stepOf(sigma, sigmas) {
  const begun = sigmas.slice(0, -1).filter((level) => level >= sigma * (1 - 1e-5)).length;
  return Math.max(0, begun - 1);
}

/**
 * Encode prompt and negative prompt for the steps of `sigmas`.
 *
 * `run(ids)` gives the states of one chunk. Returns {positive, negative} as functions sigma → [{weight, states, tokens}], and notes.
 * Without a `negative` text (null) there is no second function.
 */
export async function encode(prompt, negative, { tokenizer, run, sigmas, zeroEmptyNegative = false }) {
  const steps = Math.max(1, sigmas.length - 1);
  const texts = [parse(prompt), ...(negative === null ? [] : [parse(negative, false)])];
  const timelines = texts.map((parts) =>
    parts.map(({ weight, nodes }) => ({
      weight,
      versions: Array.from({ length: changes(nodes) ? steps : 1 }, (_, step) => JSON.stringify(atStep(nodes, step, steps))),
    })),
  );
  const versions = new Set(timelines.flat().flatMap((part) => part.versions));
  if (versions.size > MAX_VERSIONS) throw new RangeError(`prompt: ${versions.size} different texts over the steps, expected at most ${MAX_VERSIONS}`);
  const rows = new Map([...versions].map((key) => [key, chunk(JSON.parse(key), tokenizer)]));
  const length = Math.max(...[...rows.values()].map((row) => row.chunks.length));
  const [cells, ready] = [new Map(), new Map()];
  for (const [key, row] of rows) {
    const states = [];
    for (const one of Array.from({ length }, (_, index) => row.chunks[index] ?? close([], tokenizer))) {
      const name = one.ids.join();
      if (!cells.has(name)) cells.set(name, await run(one.ids));
      states.push(weighted(cells.get(name), one.weights));
    }
    ready.set(key, joined(states));
  }
  const at = (parts, zero) => (sigma) =>
    parts.map(({ weight, versions: own }) => {
      const states = ready.get(own[own.length === 1 ? 0 : stepOf(sigma, sigmas)]);
      return { weight, states: zero ? new Float32Array(states.length) : states, tokens: length * tokenizer.length };
    });
  const sum = (name) => [...rows.values()].reduce((total, row) => total + row[name], 0);
  return {
    positive: at(timelines[0], false),
    negative: negative === null ? null : at(timelines[1], zeroEmptyNegative && !negative.trim()),
    unknown: sum("unknown"),
    cut: sum("cut"),
  };
}

function joined(parts) {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
