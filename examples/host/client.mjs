// Draw an image through `diffusette host`, with Node alone:
//
//     node client.mjs FOLDER "red apple, flat style, blue background"
//
// The path of the image goes to stdout, progress to stderr. Ctrl-C cancels the request, within the running step.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

const [folder, prompt, ...others] = process.argv.slice(2);
if (!folder || prompt === undefined || others.length) {
  console.error('usage: node client.mjs FOLDER "PROMPT"');
  process.exit(2);
}
const detached = process.platform !== "win32"; // Ctrl-C is for this program alone
const host = spawn("diffusette", ["host", "--data", folder], { stdio: ["pipe", "pipe", "inherit"], detached });
const send = (message) => host.stdin.write(JSON.stringify(message) + "\n");

host.on("error", (error) => {
  console.error(`diffusette cannot be started: ${error.message}`);
  process.exit(1);
});
process.exitCode = 1; // until the image is done
process.on("SIGINT", () => send({ id: 2, type: "cancel", target: 1 }));

for await (const line of createInterface({ input: host.stdout })) {
  const message = JSON.parse(line);
  if (message.type === "ready") {
    if (message.protocol !== 1) throw new Error(`protocol ${message.protocol}, expected 1: update this program`);
    const { plans, auto } = message.models[0].memory;
    console.error(`needs ${Math.round(plans[auto] / 2 ** 20)} MiB of memory`);
    send({ id: 1, type: "generate", request: { prompt, seed: 7 }, previews: 1 });
  } else if (message.type === "progress") {
    console.error(`${message.phase} ${Math.round(message.done * 100)} %`);
  } else if (message.type === "preview") {
    console.error(`preview of ${message.width} × ${message.height} pixels`);
  } else if (message.type === "image") {
    console.log(message.path);
  } else if (message.id === 1 && ["done", "error"].includes(message.type)) {
    if (message.type === "done") process.exitCode = 0;
    else console.error(`${message.code}: ${message.message}`);
    host.stdin.end(); // the end of its input ends the host
  }
}
