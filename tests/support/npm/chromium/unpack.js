/** Unpack the browser that @sparticuz/chromium carries into the folder that is named: node unpack.js FOLDER */

import { execFileSync } from "node:child_process";
import { chmodSync, createReadStream, createWriteStream, mkdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { createBrotliDecompress } from "node:zlib";

const folder = process.argv[2];
const packed = join(dirname(fileURLToPath(import.meta.url)), "node_modules", "@sparticuz", "chromium", "bin");
mkdirSync(folder, { recursive: true });
for (const name of ["chromium", "al2023.tar", "fonts.tar", "swiftshader.tar"]) {
  const path = join(folder, name);
  await pipeline(createReadStream(join(packed, `${name}.br`)), createBrotliDecompress(), createWriteStream(path));
  if (!name.endsWith(".tar")) continue;
  execFileSync("tar", ["-xf", path, "-C", folder]);
  rmSync(path);
}
chmodSync(join(folder, "chromium"), 0o755);
