/** OpenAI's client for Node against the server that is named: node judge.js URL IMAGE MASK. What it saw goes out as JSON. */

import { createReadStream } from "node:fs";
import OpenAI, { toFile } from "openai";

const [url, image, mask] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const fast = { size: "128x128", steps: 4, seed: 3 };
const png = async (path) => toFile(createReadStream(path), null, { type: "image/png" });
const seen = {};

seen.models = (await client.models.list()).data.map((model) => model.id);
seen.generated = await client.images.generate({ model: "gpt-image-1", prompt: "fox", n: 2, ...fast });
seen.edited = await client.images.edit({ model: "gpt-image-1", image: await png(image), mask: await png(mask), prompt: "fox", ...fast });

seen.events = [];
const stream = await client.images.generate({ prompt: "fox", stream: true, partial_images: 2, ...fast, steps: 8 });
for await (const event of stream) seen.events.push(event);

try {
  await client.images.generate({ prompt: "fox", size: "banana" });
} catch (error) {
  seen.error = {
    kind: error.constructor.name,
    known: error instanceof OpenAI.BadRequestError,
    status: error.status,
    code: error.code,
    param: error.param,
    type: error.type,
    message: error.message,
  };
}
const aborting = new AbortController();
setTimeout(() => aborting.abort(), 200);
seen.aborted = await client.images
  .generate({ prompt: "fox", size: "512x512", steps: 200 }, { signal: aborting.signal })
  .then(() => false, (error) => error instanceof OpenAI.APIUserAbortError);
console.log(JSON.stringify(seen));
