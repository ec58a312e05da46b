/**
 * The service worker: the page without a network, every file of it checked, no request to another host, and the two headers that let
 * WebAssembly use threads on hosts that cannot send them. The model's files are the business of `app/files.js`.
 */

const FILES = /* FILES */ {};
const SCOPE = new URL(self.registration.scope).pathname;
const PREFIX = `diffusette page ${SCOPE} `;
const PAGE = PREFIX + FILES["index.html"] + FILES["site.json"];
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

/** A file of the page from the server; one with another hash is an error. A stale copy on the way is asked for again. */
async function fetched(path) {
  const integrity = `sha256-${FILES[path]}`;
  const ask = (cache) => fetch(new Request(SCOPE + path, { integrity, cache, credentials: "same-origin" }));
  const answer = await ask("default").catch(() => ask("reload"));
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

function isolated(answer) {
  if (answer.type === "opaque" || answer.type === "error" || answer.status === 0) return answer;
  const headers = new Headers(answer.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}

self.addEventListener("install", (event) => {
  const fill = async () => {
    const cache = await caches.open(PAGE);
    await Promise.all(Object.keys(FILES).map(async (path) => cache.put(SCOPE + path, await fetched(path))));
    await self.skipWaiting();
  };
  event.waitUntil(fill());
});

self.addEventListener("activate", (event) => {
  const tidy = async () => {
    for (const name of await caches.keys()) if (name.startsWith(PREFIX) && name !== PAGE) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(tidy());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (url.origin !== self.location.origin) return event.respondWith(Response.error());
  if (request.method !== "GET" || !url.pathname.startsWith(SCOPE)) return undefined;
  const path = url.pathname.slice(SCOPE.length) || "index.html";
  const answer = async () => {
    if (!(path in FILES)) return isolated(await fetch(request));
    const kept = await (await caches.open(PAGE)).match(SCOPE + path);
    return isolated(kept ?? (await fetched(path)));
  };
  return event.respondWith(answer());
});
