// Unpacks the npm package @sparticuz/chromium: `node unpack.mjs BIN INTO` writes INTO/chromium, its
// libraries in INTO/lib, its fonts, and a fonts.conf that names them. The browser comes last and under
// another name first, so that one that is there is whole.
import { execFileSync } from "node:child_process";
import { createReadStream, createWriteStream, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const [bin, into] = process.argv.slice(2).map(path => resolve(path));

const unpacked = (name, to, mode) =>
  pipeline(createReadStream(`${bin}/${name}.br`), createBrotliDecompress(), createWriteStream(to, { mode }));

mkdirSync(into, { recursive: true });
for (const name of ["al2023.tar", "fonts.tar"]) {
  await unpacked(name, `${into}/${name}`);
  execFileSync("tar", ["xf", `${into}/${name}`, "-C", into]);
  rmSync(`${into}/${name}`);
}
writeFileSync(`${into}/fonts.conf`, `<fontconfig><dir>${into}/fonts</dir><cachedir>${into}/cache</cachedir></fontconfig>\n`);
await unpacked("chromium", `${into}/chromium.part`, 0o755);
renameSync(`${into}/chromium.part`, `${into}/chromium`);
