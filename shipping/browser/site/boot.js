/**
 * The start of a page in one file, the only script in it. The files of the site are data blocks, gzip in base64; modules become blobs that
 * import one another by their addresses. A worker of a page from `file://` can import the blobs that it made itself and no others, and no
 * module can be its start: so it gets the files, and makes blobs of its own.
 */

(async () => {
  const addresses = async (parts, modules) => {
    const urls = {};
    for (const path of modules) {
      const text = await new Response(parts.get(path).stream().pipeThrough(new DecompressionStream("gzip"))).text();
      const source = text.replace(/(from )"\.\/([\w.]+)"/gu, (_, from, name) => `${from}"${urls[`app/${name}`]}"`);
      urls[path] = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    }
    return urls;
  };

  const workerStart = (addressesOf) => {
    const waiting = [];
    self.onmessage = async ({ data: { parts, modules } }) => {
      self.onmessage = (event) => waiting.push(event);
      self.diffusetteFile = { parts, urls: await addressesOf(parts, modules) };
      await import(self.diffusetteFile.urls["app/worker.js"]);
      for (const event of waiting) self.onmessage(event);
    };
  };

  const parts = new Map();
  for (const block of document.querySelectorAll("script[data-path]")) {
    const text = atob(block.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    parts.set(block.dataset.path, new Blob([bytes]));
    block.remove();
  }
  const modules = document.documentElement.dataset.modules.split(" ");
  const worker = () => {
    const source = `(${workerStart})(${addresses});`;
    const started = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    started.postMessage({ parts, modules });
    return started;
  };
  globalThis.diffusetteFile = { parts, urls: await addresses(parts, modules), worker };
  await import(diffusetteFile.urls["app/main.js"]);
})();
