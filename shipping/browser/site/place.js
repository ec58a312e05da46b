/** Where the files of the site are: on a server, or inside the page, if it is one file (`boot.js`). */

/** {parts: path → Blob (gzip), urls: path → address of a module, worker: starts one} of a page in one file, or null. */
export const packed = globalThis.diffusetteFile ?? null;

/** The address of the site's folder. */
export const base = packed ? null : new URL("../", import.meta.url);

/** The bytes of a part of a page in one file. */
export async function unpacked(part) {
  return new Uint8Array(await new Response(part.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

/** A JSON file of the site. */
export async function json(path) {
  if (packed) return JSON.parse(new TextDecoder().decode(await unpacked(packed.parts.get(path))));
  const answer = await fetch(new URL(path, base));
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}
