// node page_modules.mjs PAGE: calls the page's own modules, without a browser.
// Standard input: a JSON list of cases {call, ...}. Standard output: a JSON list of {result} or {error}. Arrays are
// {dtype, shape, data (base64)}.

import { readFileSync, writeSync } from "node:fs";
import { pathToFileURL } from "node:url";

const page = pathToFileURL(`${process.argv[2]}/`);
const load = (name) => import(new URL(name, page));
const { pack } = await load("packing.js");
const { readPng } = await load("png.js");
const { reorient } = await load("orientation.js");
const { pixelWarnings, shapeWarnings } = await load("plausibility.js");
const { cutBox, prepared } = await load("files.js");

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };

function decoded({ dtype, shape, data }) {
  const bytes = new Uint8Array(Buffer.from(data, "base64"));
  return { pixels: new KINDS[dtype](bytes.buffer), height: shape[0], width: shape[1] ?? 1, warnings: [] };
}

function encoded(pixels, shape) {
  const dtype = Object.keys(KINDS).find((name) => pixels instanceof KINDS[name]);
  const data = Buffer.from(pixels.buffer, pixels.byteOffset, pixels.byteLength).toString("base64");
  return { dtype, shape, data };
}

const calls = {
  pack: ({ slice, input }) => encoded(pack(decoded(slice), input), [input.size, input.size]),
  async readPng({ data }) {
    const { pixels, height, width, warnings } = await readPng(new Uint8Array(Buffer.from(data, "base64")));
    return { pixels: encoded(pixels, [height, width]), warnings };
  },
  reorient({ slice, source, target }) {
    const { pixels, height, width } = reorient(decoded(slice), source, target);
    return encoded(pixels, [height, width]);
  },
  pixelWarnings: ({ packed, input }) => pixelWarnings(decoded(packed).pixels, input),
  shapeWarnings: ({ width, height, field }) => shapeWarnings({ width, height, field }),
  prepared({ slice, box, field, orientation, chosen, input }) {
    const whole = { ...decoded(slice), field, orientation };
    const { pixels, height, width, warnings } = prepared(box ? cutBox(whole, box) : whole, chosen, input);
    return { pixels: encoded(pixels, [height, width]), warnings };
  },
};

const results = [];
for (const { call, ...rest } of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    results.push({ result: await calls[call](rest) });
  } catch (error) {
    results.push({ error: error.message });
  }
}
const text = Buffer.from(JSON.stringify(results));
for (let written = 0; written < text.length; ) written += writeSync(1, text, written);
