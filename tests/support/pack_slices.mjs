// node pack_slices.mjs PACKING_JS CASES OUT: packs every case of a JSON file with the page's own code.
// A case: dtype, width, height, pixels (base64 of the array's bytes), input. OUT: float32, one case after the other.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, cases, out] = process.argv.slice(2);
const { pack } = await import(pathToFileURL(module));
const kinds = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array };
const results = JSON.parse(readFileSync(cases, "utf8")).map(({ dtype, width, height, pixels, input }) => {
  const bytes = new Uint8Array(Buffer.from(pixels, "base64"));
  const slice = { pixels: new kinds[dtype](bytes.buffer), width, height };
  return Buffer.from(pack(slice, input).buffer);
});
writeFileSync(out, Buffer.concat(results));
