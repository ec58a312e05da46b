/**
 * The grammar of prompts, AUTOMATIC1111's as Python's `runtime/prompt/grammar.py` reads it: weights, [from:to:when], [a|b], AND, BREAK.
 *
 * A node is a text {text}, {nodes, factor}, {before, after, when, fraction}, {options} or {break: true}.
 */

const MAX_DEPTH = 100;
const MAX_WEIGHT = 10_000;
const MAX_PARTS = 16;
const MAX_CHARACTERS = 20_000;
const NUMBER = "[+-]?(?:[0-9]{1,18}(?:\\.[0-9]{0,18})?|\\.[0-9]{1,18})";
const TOKEN = /\\[()[\]\\:|]|[()[\]:|]|(?:[^()[\]\\:|]|\\(?![()[\]\\:|]))+/gu;
const ONLY_A_NUMBER = new RegExp(`^\\s*(${NUMBER})\\s*$`, "u");
const word = (text) => new RegExp(`(?<![\\p{L}\\p{N}_])${text}(?![\\p{L}\\p{N}_])`, "gu");

/** `text`, cut to 20,000 characters, with lone surrogates replaced. */
export function clean(text) {
  const letters = [...text];
  return (letters.length > MAX_CHARACTERS ? letters.slice(0, MAX_CHARACTERS).join("") : text).replace(/\p{Surrogate}/gu, "\ufffd");
}

/** The parts of a prompt joined by AND, [{weight, nodes}]; with `joined` off, AND is an ordinary word. */
export function parse(text, joined = true) {
  const rest = clean(text).replace(/<lora:[^<>]*>/gu, "");
  const whole = new Tree(rest.match(TOKEN) ?? []);
  if (!joined) return [{ weight: 1, nodes: whole.nodes(0, whole.tokens.length) }];
  const outside = new Set(whole.outer(0, whole.tokens.length).filter((index) => !whole.partners.has(index)));
  const parts = [[]];
  whole.tokens.forEach((token, index) => {
    const [first, ...more] = outside.has(index) ? token.split(word("AND")) : [token];
    parts.at(-1).push(first);
    for (const piece of more) parts.push([piece]);
  });
  if (parts.length > MAX_PARTS) throw new RangeError(`prompt: ${parts.length} parts joined by AND, expected at most ${MAX_PARTS}`);
  return parts.map((tokens) => part(new Tree(tokens), parts.length > 1));
}

function part(tree, weighted) {
  const stop = tree.tokens.length;
  const [last] = tree.split(0, stop, ":").at(-1);
  const number = weighted && last > 0 ? tree.number(last, stop) : null;
  if (number === null) return { weight: 1, nodes: tree.nodes(0, stop) };
  if (Math.abs(number) > MAX_WEIGHT) throw new RangeError(`prompt: AND with weight ${number}, expected at most ${MAX_WEIGHT}`);
  return { weight: Number(number), nodes: tree.nodes(0, last - 1) };
}

/** Opening bracket → its closing one, in one pass; brackets without a partner are text. */
function partnersOf(tokens) {
  const opening = { ")": "(", "]": "[" };
  const count = { "(": 0, "[": 0 };
  const [waiting, height, partners] = [[], [], new Map()];
  tokens.forEach((token, index) => {
    if (token in count) {
      waiting.push(index);
      height.push(0);
      count[token] += 1;
    } else if (token in opening && count[opening[token]]) {
      let inside = 0;
      let start;
      do {
        start = waiting.pop();
        inside = Math.max(inside, height.pop());
        count[tokens[start]] -= 1;
      } while (tokens[start] !== opening[token]);
      if (inside === MAX_DEPTH) throw new RangeError(`prompt: brackets nested deeper than ${MAX_DEPTH}; write (text:1.5) instead`);
      partners.set(start, index);
      if (height.length) height[height.length - 1] = Math.max(height.at(-1), inside + 1);
    }
  });
  return partners;
}

class Tree {
  constructor(tokens) {
    this.tokens = tokens;
    this.partners = partnersOf(tokens);
  }

  nodes(start, stop) {
    return this.outer(start, stop).flatMap((index) => {
      const token = this.tokens[index];
      const close = this.partners.get(index);
      if (close !== undefined) return [token === "(" ? this.round(index + 1, close) : this.square(index + 1, close)];
      return token.length === 2 && token[0] === "\\" ? [{ text: token[1] }] : words(token);
    });
  }

  /** The indices from start to stop outside brackets; a pair counts once, at its opening bracket. */
  outer(start, stop) {
    const found = [];
    for (let index = start; index < stop; index = (this.partners.get(index) ?? index) + 1) found.push(index);
    return found;
  }

  split(start, stop, separator) {
    const cuts = this.outer(start, stop).filter((index) => this.tokens[index] === separator);
    return [start, ...cuts.map((cut) => cut + 1)].map((begin, index) => [begin, [...cuts, stop][index]]);
  }

  number(start, stop) {
    return stop - start === 1 ? (this.tokens[start].match(ONLY_A_NUMBER)?.[1] ?? null) : null;
  }

  round(start, stop) {
    const [last] = this.split(start, stop, ":").at(-1);
    const number = last > start ? this.number(last, stop) : null;
    return number === null ? { nodes: this.nodes(start, stop), factor: 1.1 } : { nodes: this.nodes(start, last - 1), factor: Number(number) };
  }

  square(start, stop) {
    const fields = this.split(start, stop, ":");
    const when = this.number(...fields.at(-1));
    if (when !== null && (fields.length === 2 || fields.length === 3)) {
      const before = fields.length === 3 ? this.nodes(...fields[0]) : [];
      return { before, after: this.nodes(...fields.at(-2)), when: Number(when), fraction: when.includes(".") };
    }
    const options = this.split(start, stop, "|");
    if (options.length > 1) return { options: options.map((option) => this.nodes(...option)) };
    return { nodes: this.nodes(start, stop), factor: 1 / 1.1 };
  }
}

/** Split at BREAK, without the white space around it. */
function words(text) {
  const pieces = text.split(word("BREAK"));
  return pieces.flatMap((piece, index) => {
    let own = index ? piece.trimStart() : piece;
    own = index < pieces.length - 1 ? own.trimEnd() : own;
    return [...(index ? [{ break: true }] : []), ...(own ? [{ text: own }] : [])];
  });
}

/** Whether the text of `nodes` can differ between steps. */
export function changes(nodes) {
  return nodes.some((node) => "before" in node || "options" in node || ("factor" in node && changes(node.nodes)));
}

/** The text at `step` of `steps`: sections separated by BREAK, each a list of {text, weight}. */
export function atStep(nodes, step, steps) {
  const sections = [[]];
  const walk = (inner, weight) => {
    if (!(Math.abs(weight) <= MAX_WEIGHT)) throw new RangeError(`prompt: brackets multiply to a weight of ${weight}, expected at most ${MAX_WEIGHT}`);
    for (const node of inner) {
      if ("text" in node) {
        const last = sections.at(-1).at(-1);
        if (last?.weight === weight) last.text += node.text;
        else sections.at(-1).push({ text: node.text, weight });
      } else if (node.break) sections.push([]);
      else if ("factor" in node) walk(node.nodes, weight * node.factor);
      else if ("options" in node) walk(node.options[step % node.options.length], weight);
      else walk(step < Math.trunc(node.fraction ? node.when * steps : node.when) ? node.before : node.after, weight);
    }
  };
  walk(nodes, 1);
  return sections;
}
