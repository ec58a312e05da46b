/** PNG files (https://www.w3.org/TR/png-3/): RGB, 8 bits, with text chunks. */

const CRC = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function chunk(kind, content) {
  const whole = new Uint8Array(12 + content.length);
  const view = new DataView(whole.buffer);
  view.setUint32(0, content.length);
  whole.set(new TextEncoder().encode(kind), 4);
  whole.set(content, 8);
  view.setUint32(8 + content.length, crc(whole.subarray(4, 8 + content.length)));
  return whole;
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Each row with the filter (none, left, up, average, Paeth) whose differences are smallest in sum. */
function filtered(pixels, width, height) {
  const row = 3 * width;
  const out = new Uint8Array(height * (row + 1));
  const zeros = new Uint8Array(row);
  for (let y = 0; y < height; y += 1) {
    const here = pixels.subarray(y * row, (y + 1) * row);
    const up = y ? pixels.subarray((y - 1) * row, y * row) : zeros;
    let [best, chosen, kind] = [Infinity, null, 0];
    for (let filter = 0; filter < 5; filter += 1) {
      const line = new Uint8Array(row);
      let sum = 0;
      for (let x = 0; x < row; x += 1) {
        const [a, b, c] = [x < 3 ? 0 : here[x - 3], up[x], x < 3 ? 0 : up[x - 3]];
        line[x] = here[x] - [0, a, b, (a + b) >> 1, paeth(a, b, c)][filter];
        sum += line[x] < 128 ? line[x] : 256 - line[x];
      }
      if (sum < best) [best, chosen, kind] = [sum, line, filter];
    }
    out[y * (row + 1)] = kind;
    out.set(chosen, y * (row + 1) + 1);
  }
  return out;
}

function paeth(a, b, c) {
  const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

/** A text chunk: Latin-1 as tEXt where that can hold it, otherwise, or on demand, UTF-8 as iTXt. */
function text(key, value, international) {
  const latin = [...value].every((letter) => letter.codePointAt(0) < 256);
  if (latin && !international) return chunk("tEXt", Uint8Array.from(`${key}\0${value}`, (letter) => letter.charCodeAt(0)));
  return chunk("iTXt", new TextEncoder().encode(`${key}\0\0\0\0\0${value}`));
}

/** Encode RGB `pixels`; `texts` is a list of {key, value, international}. Returns the bytes of the file. */
export async function encodePng(pixels, width, height, texts) {
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set([8, 2, 0, 0, 0], 8);
  const parts = [
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
    chunk("IHDR", header),
    ...texts.map(({ key, value, international }) => text(key, value, international)),
    chunk("IDAT", await deflated(filtered(pixels, width, height))),
    chunk("IEND", new Uint8Array()),
  ];
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
