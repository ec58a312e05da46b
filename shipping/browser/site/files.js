/** Files of the site: from the browser's cache, or from the server with progress. Each is checked against its SHA-256 in `site.json`. */

import { unpacked } from "./place.js";

export class Files {
  /** `listed` maps paths to {size, sha256}; `base` is the site's address; a page in one file has its `parts` instead. */
  constructor(base, listed, parts = null) {
    this.base = base;
    this.listed = listed;
    this.parts = parts;
    this.name = parts ? "" : `diffusette files ${new URL(base).pathname}`;
  }

  #address(path) {
    return `${this.base}${path}?sha256=${encodeURIComponent(this.listed[path].sha256)}`;
  }

  async #cache() {
    return globalThis.caches && !this.parts ? caches.open(this.name).catch(() => null) : null; // only in secure contexts
  }

  /** Those of `paths` that are not here yet. */
  async missing(paths) {
    if (this.parts) return [];
    const cache = await this.#cache();
    const found = await Promise.all(paths.map(async (path) => ((await cache?.match(this.#address(path))) ? null : path)));
    return found.filter((path) => path !== null);
  }

  /** The bytes of a file. `arrived(bytes)` is called as they come from the server. */
  async read(path, { signal, arrived = () => {} } = {}) {
    if (this.parts) {
      const bytes = await unpacked(this.parts.get(path));
      if (await this.#right(path, bytes)) return bytes;
      throw new Changed(path);
    }
    const cache = await this.#cache();
    const kept = await cache?.match(this.#address(path));
    if (kept) {
      const bytes = new Uint8Array(await kept.arrayBuffer());
      if (await this.#right(path, bytes)) return bytes;
      await cache.delete(this.#address(path));
    }
    const bytes = globalThis.crypto?.subtle ? await this.#streamed(path, signal, arrived) : await this.#whole(path, signal, arrived);
    await cache?.put(this.#address(path), new Response(bytes)).catch(() => {}); // without room for it, it comes again next time
    return bytes;
  }

  /** Forget what an older version of the site has left here. */
  async tidy() {
    if (this.parts) return;
    const cache = await this.#cache();
    const wanted = new Set(Object.keys(this.listed).map((path) => new URL(this.#address(path)).href));
    for (const request of (await cache?.keys()) ?? []) if (!wanted.has(request.url)) await cache.delete(request);
  }

  async #streamed(path, signal, arrived) {
    const { size } = this.listed[path];
    const answer = await this.#asked(path, { signal });
    const bytes = new Uint8Array(size);
    let at = 0;
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      if (at + value.length > size) throw new Changed(path);
      bytes.set(value, at);
      at += value.length;
      arrived(value.length);
    }
    if (at !== size || !(await this.#right(path, bytes))) throw new Changed(path);
    return bytes;
  }

  /** Without `crypto.subtle`, as on plain HTTP, the browser's own integrity check does it, without progress inside a file. */
  async #whole(path, signal, arrived) {
    const integrity = `sha256-${this.listed[path].sha256}`;
    const answer = await this.#asked(path, { signal, integrity }).catch(async (error) => {
      if (error.name === "AbortError") throw error;
      await this.#asked(path, { signal, method: "HEAD" }); // throws if the server cannot be reached
      throw new Changed(path);
    });
    const bytes = new Uint8Array(await answer.arrayBuffer());
    arrived(bytes.length);
    return bytes;
  }

  async #asked(path, options) {
    const answer = await fetch(this.base + path, { ...options, credentials: "same-origin" });
    if (!answer.ok) throw new Error(`${path}: the server answered ${answer.status}`);
    return answer;
  }

  async #right(path, bytes) {
    if (!globalThis.crypto?.subtle) return true;
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return btoa(String.fromCharCode(...digest)) === this.listed[path].sha256;
  }
}

/** A file is not the one that the site was made with. */
export class Changed extends Error {
  constructor(path) {
    super(path);
    this.code = "changed";
  }
}
