/**
 * Normal noise from a seed, the same numbers as NumPy's `Generator(PCG64(seed)).standard_normal(n, dtype=float32)`.
 *
 * PCG64: O'Neill 2014 (128-bit congruential state, XSL-RR output). The ziggurat: Marsaglia & Tsang 2000, 256 strips, 23-bit mantissas.
 */

const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = (2549297995355413924n << 64n) | 4865540595714422341n;

const f = Math.fround;
const low = (value) => value >>> 0;

/** Four 64-bit words from a seed of 0 … 2⁶⁴ - 1 (BigInt): NumPy's SeedSequence, M.E. O'Neill's `seed_seq_fe128`. */
export function seedWords(seed) {
  const entropy = seed > 0xffffffffn ? [Number(seed & 0xffffffffn), Number(seed >> 32n)] : [Number(seed)];
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    let mixed = low(value ^ constant);
    constant = low(Math.imul(constant, 0x931e8875));
    mixed = low(Math.imul(mixed, constant));
    return low(mixed ^ (mixed >>> 16));
  };
  const mix = (a, b) => {
    const mixed = low(Math.imul(0xca01f9dd, a) - Math.imul(0x4973f715, b));
    return low(mixed ^ (mixed >>> 16));
  };
  const pool = [0, 1, 2, 3].map((index) => hash(entropy[index] ?? 0));
  for (let from = 0; from < 4; from += 1) {
    for (let to = 0; to < 4; to += 1) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  let out = 0x8b51f9dd;
  const words = Array.from({ length: 8 }, (_, index) => {
    let word = low(pool[index % 4] ^ out);
    out = low(Math.imul(out, 0x58f38ded));
    word = low(Math.imul(word, out));
    return low(word ^ (word >>> 16));
  });
  return [0, 2, 4, 6].map((at) => BigInt(words[at]) | (BigInt(words[at + 1]) << 32n));
}

function tables() {
  const end = 3.6541528853610088;
  const area = 0.00492867323399;
  const mantissa = 2 ** 23;
  const inside = new Uint32Array(256);
  const width = new Float32Array(256);
  const height = new Float64Array(256);
  let x = end;
  width[255] = x / mantissa;
  height[255] = Math.exp(-0.5 * x * x);
  const base = area / height[255];
  inside[0] = Math.floor((x / base) * mantissa);
  width[0] = base / mantissa;
  height[0] = 1;
  for (let strip = 254; strip > 0; strip -= 1) {
    const next = Math.sqrt(-2 * Math.log(area / x + height[strip + 1]));
    inside[strip + 1] = Math.round((next / x) * mantissa);
    width[strip] = next / mantissa;
    height[strip] = Math.exp(-0.5 * next * next);
    x = next;
  }
  inside[1] = 0;
  return { end: f(end), inverse: f(1 / end), inside, width, height: Float32Array.from(height) };
}

const ZIGGURAT = tables();

/** A generator at the start of the sequence of `seed`, a BigInt. Each call of `normal` goes on where the last one stopped. */
export class Rng {
  #state = 0n;
  #increment;
  #kept = null;

  constructor(seed) {
    const [a, b, c, d] = seedWords(seed);
    this.#increment = ((((c << 64n) | d) << 1n) | 1n) & MASK128;
    this.#step();
    this.#state = (this.#state + ((a << 64n) | b)) & MASK128;
    this.#step();
  }

  #step() {
    this.#state = (this.#state * MULTIPLIER + this.#increment) & MASK128;
  }

  /** 32 random bits; each 64-bit output gives its lower half first. */
  word() {
    if (this.#kept !== null) {
      const kept = this.#kept;
      this.#kept = null;
      return kept;
    }
    this.#step();
    const folded = (this.#state >> 64n) ^ (this.#state & MASK64);
    const turn = this.#state >> 122n;
    const out = ((folded >> turn) | (folded << (64n - turn))) & MASK64;
    this.#kept = Number(out >> 32n);
    return Number(out & 0xffffffffn);
  }

  #uniform() {
    return f((this.word() >>> 8) / 16777216);
  }

  /** `count` independent standard normal numbers, a Float32Array. */
  normal(count) {
    const values = new Float32Array(count);
    for (let index = 0; index < count; index += 1) values[index] = this.#one();
    return values;
  }

  #one() {
    for (;;) {
      const word = this.word();
      const strip = word & 0xff;
      const bits = (word >>> 9) & 0x7fffff;
      const x = f(bits * ZIGGURAT.width[strip]) * (word & 0x100 ? -1 : 1);
      if (bits < ZIGGURAT.inside[strip]) return x;
      if (strip === 0) return this.#tail(bits);
      const [above, here] = [ZIGGURAT.height[strip - 1], ZIGGURAT.height[strip]];
      if (f(f(f(above - here) * this.#uniform()) + here) < Math.exp(-0.5 * x * x)) return x;
    }
  }

  #tail(bits) {
    for (;;) {
      const x = f(-ZIGGURAT.inverse * f(Math.log1p(-this.#uniform())));
      const y = f(-f(Math.log1p(-this.#uniform())));
      if (f(y + y) > f(x * x)) return (bits >>> 8) & 1 ? -f(ZIGGURAT.end + x) : f(ZIGGURAT.end + x);
    }
  }
}
