/** Weights of words: Ctrl+Up makes `word` into `(word:1.1)`, Ctrl+Down takes it back. Pure text in, text out. */

const STEP = 0.1;
const WEIGHTED = /^\((.*):(-?\d+(?:\.\d+)?)\)$/s;
const BREAK = /[\s,.()[\]:;!?]/;

/** The range of the word around `place`, or of the weighted group that it is in. */
function around(text, place) {
  const group = enclosing(text, place, place);
  if (group) return group;
  let start = place;
  let end = place;
  while (start > 0 && !BREAK.test(text[start - 1])) start -= 1;
  while (end < text.length && !BREAK.test(text[end])) end += 1;
  return [start, end];
}

/** The innermost `(…:number)` that covers start…end. */
function enclosing(text, start, end) {
  let depth = 0;
  for (let open = start - 1; open >= 0; open -= 1) {
    if (text[open] === ")" && open !== start - 1) depth += 1;
    else if (text[open] === "(") {
      if (depth === 0) {
        const close = matching(text, open);
        if (close >= end - 1 && WEIGHTED.test(text.slice(open, close + 1))) return [open, close + 1];
        return null;
      }
      depth -= 1;
    }
  }
  return null;
}

function matching(text, open) {
  let depth = 0;
  for (let place = open; place < text.length; place += 1) {
    if (text[place] === "(") depth += 1;
    if (text[place] === ")") {
      depth -= 1;
      if (depth === 0) return place;
    }
  }
  return -1;
}

/** What to replace, by what, and what to select after it; null if there is no word. `direction` is 1 or -1. */
export function reweigh(text, start, end, direction) {
  let from = start;
  let to = end;
  if (from === to) [from, to] = around(text, from);
  else {
    while (from < to && /\s/.test(text[from])) from += 1;
    while (to > from && /\s/.test(text[to - 1])) to -= 1;
    const outer = enclosing(text, from, to);
    if (outer && outer[0] === from - 1) [from, to] = outer;
  }
  if (from === to) return null;
  const piece = text.slice(from, to);
  const found = WEIGHTED.exec(piece);
  const inner = found ? found[1] : piece;
  const weight = Math.round(((found ? Number(found[2]) : 1) + direction * STEP) * 100) / 100;
  if (weight < 0) return null;
  const next = weight === 1 ? inner : `(${inner}:${weight})`;
  const shift = weight === 1 ? 0 : 1;
  return { from, to, text: next, select: [from + shift, from + shift + inner.length], weight };
}
