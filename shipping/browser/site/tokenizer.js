/** CLIP's byte-pair tokenizer, from `vocab.json` and `merges.txt`. User text never becomes a control token. */

const START = "<|startoftext|>";
const END = "<|endoftext|>";
const END_OF_WORD = "</w>";
const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const SPACES = new RegExp(`[${SPACE}]+`, "gu");
const PIECES = new RegExp(`'s|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^${SPACE}\\p{L}\\p{N}]+`, "gu");

/** Each byte as a visible character, as GPT-2 writes them. */
const BYTES = (() => {
  const plain = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(plain(byte) ? byte : next++));
})();

export class Tokenizer {
  #vocabulary;
  #ranks;
  #known = new Map();
  #learned = null;

  /** `description` is the manifest's {length, pad}; `added` holds words that were learned later. */
  constructor(vocabulary, merges, description, added = {}) {
    this.#vocabulary = new Map(Object.entries(vocabulary));
    for (const name of [START, END]) if (name in added) this.#vocabulary.set(name, added[name]);
    const lines = merges.replaceAll("\r\n", "\n").split("\n").filter((line) => line && !line.startsWith("#version"));
    this.#ranks = new Map(lines.map((line, rank) => [line, rank]));
    this.start = this.#vocabulary.get(START);
    this.end = this.#vocabulary.get(END);
    this.length = description.length;
    this.pad = description.pad;
    this.comma = this.#vocabulary.get("," + END_OF_WORD);
    this.words = Object.entries(added).filter(([word]) => word.trim() && !this.#vocabulary.has(word));
    if (this.words.length) {
      this.words.sort(([a], [b]) => b.length - a.length);
      const escaped = this.words.map(([word]) => `(${word.toLowerCase().replace(/[\\^$.*+?()[\]{}|/]/gu, "\\$&")})`);
      this.#learned = new RegExp(`(?<![\\p{L}\\p{N}_])(?:${escaped.join("|")})(?![\\p{L}\\p{N}_])`, "giu");
    }
  }

  /** The token ids of `text`, without start, end or padding, and the number of symbols that the vocabulary lacks. */
  encode(text) {
    const ids = [];
    let unknown = 0;
    const plain = (part) => {
      const lower = [...part.normalize("NFC").replace(SPACES, " ")].map((letter) => letter.toLowerCase()).join("");
      for (const piece of lower.match(PIECES) ?? []) {
        for (const symbol of this.#symbols(piece)) {
          const id = this.#vocabulary.get(symbol);
          if (id === undefined || id === this.start || id === this.end) unknown += 1;
          else ids.push(id);
        }
      }
    };
    let begun = 0;
    for (const match of this.#learned ? text.matchAll(this.#learned) : []) {
      plain(text.slice(begun, match.index));
      ids.push(this.words[match.slice(1).findIndex((group) => group !== undefined)][1]);
      begun = match.index + match[0].length;
    }
    plain(text.slice(begun));
    return { ids, unknown };
  }

  /** The symbols of a piece after all merges, the best pair first and the leftmost of equals. */
  #symbols(piece) {
    const kept = this.#known.get(piece);
    if (kept) return kept;
    const symbols = Array.from(new TextEncoder().encode(piece), (byte) => BYTES[byte]);
    symbols[symbols.length - 1] += END_OF_WORD;
    for (;;) {
      let [best, at] = [Infinity, -1];
      for (let index = 0; index + 1 < symbols.length; index += 1) {
        const rank = this.#ranks.get(`${symbols[index]} ${symbols[index + 1]}`);
        if (rank !== undefined && rank < best) [best, at] = [rank, index];
      }
      if (at < 0) break;
      symbols.splice(at, 2, symbols[at] + symbols[at + 1]);
    }
    if (this.#known.size < 10_000) this.#known.set(piece, symbols);
    return symbols;
  }

  /** `length` ids: start, the tokens, end, padding. */
  chunk(tokens) {
    const ids = [this.start, ...tokens, this.end];
    return [...ids, ...Array(this.length - ids.length).fill(this.pad)];
  }
}
