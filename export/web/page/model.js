// A bundle, its networks in onnxruntime-web, and their mean probabilities.

import * as ort from "./vendor/ort.wasm.bundle.min.js";
import { pack } from "./packing.js";
import { pixelWarnings } from "./plausibility.js";

const WASM = "vendor/ort-wasm-simd-threaded.wasm";
// a module with one SIMD instruction
const SIMD = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
];
// largest difference from 1 of the sum of a network's probabilities
const SUM_TOLERANCE = 1e-3;

/**
 * Load the bundle beside the page.
 *
 * @param {(loaded: number, total: number) => void} onProgress Called with bytes.
 * @returns {Promise<Model>}
 */
export async function loadModel(onProgress) {
  checkBrowser();
  const page = JSON.parse(new TextDecoder().decode(await download("page.json")));
  const manifest = JSON.parse(new TextDecoder().decode(await download("bundle/manifest.json")));
  const members = page.graphs.map((file) => entryOf(manifest, file));
  const total = members.reduce((sum, { bytes }) => sum + bytes, page.files[WASM].bytes);
  let loaded = 0;
  const count = (bytes) => onProgress((loaded += bytes), total);
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = await download(WASM, page.files[WASM], count);
  const networks = [];
  for (const member of members) {
    const graph = await download(`bundle/${member.file}`, member, count);
    networks.push({ ...member, session: await createSession(graph, member) });
  }
  const model = new Model(manifest, networks);
  await model.warmUp();
  return model;
}

/** Refuse a browser that cannot run the page. */
function checkBrowser() {
  const advice = "use Chrome or Edge 103, Firefox 113, Safari 16.4 or a later version";
  if (typeof WebAssembly !== "object") {
    throw new Error(`this browser has no WebAssembly, or it is switched off; ${advice}`);
  }
  if (!WebAssembly.validate(Uint8Array.from(SIMD))) {
    throw new Error(`this browser or processor has no WebAssembly SIMD; ${advice}`);
  }
  if (typeof DecompressionStream !== "function" || typeof OffscreenCanvas !== "function") {
    throw new Error(`this browser is too old; ${advice}`);
  }
}

/** Return the manifest's entry of a graph: a member or another variant of one. */
function entryOf(manifest, file) {
  const entries = manifest.members.flatMap((member) => [member, ...member.alternatives]);
  const entry = entries.find((each) => each.file === file);
  if (!entry) throw new Error(`bundle/manifest.json: does not list ${file}; write the page again`);
  return entry;
}

/**
 * Download a file that is served beside the page, and verify it.
 *
 * @param {string} path
 * @param {{bytes: number, sha256: string}} [expected]
 * @param {(bytes: number) => void} [onBytes]
 */
async function download(path, expected, onBytes = () => {}) {
  const parts = [];
  try {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      onBytes(part.value.length);
    }
  } catch (error) {
    throw new Error(`${path}: cannot be loaded (${error.message}); copy the page's whole directory to the server`);
  }
  const bytes = await new Blob(parts).arrayBuffer();
  if (expected && !(await isAsListed(bytes, expected))) {
    throw new Error(`${path}: not the file that the page was written with; copy the page's whole directory again`);
  }
  return bytes;
}

async function isAsListed(bytes, expected) {
  if (bytes.byteLength !== expected.bytes) return false;
  // browsers have it for HTTPS and for this machine's own address only
  if (!globalThis.crypto?.subtle) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === expected.sha256;
}

async function createSession(graph, { file }) {
  try {
    return await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  } catch (error) {
    const reason = String(error?.message ?? error).split("\n")[0].slice(0, 200);
    throw new Error(`${file}: onnxruntime-web cannot load it (${reason}); write the page with another --precision or a smaller model`);
  }
}

/** The networks of a bundle. */
class Model {
  constructor(manifest, networks) {
    this.manifest = manifest;
    this.networks = networks;
  }

  /**
   * Classify one slice that was prepared (files.js).
   *
   * @param {object} slice
   * @returns {Promise<object>} probabilities (in the order of the manifest's classes), label, probability, organ,
   *   organProbability, plausibility (0 to 1, or null), warnings, packed (the network's input), milliseconds.
   */
  async predict(slice) {
    const { input, task } = this.manifest;
    const start = performance.now();
    const packed = pack(slice, input);
    const answers = [];
    for (const network of this.networks) answers.push(await this.#run(network, packed));
    const milliseconds = performance.now() - start;
    const probabilities = mean(answers.map((answer) => answer.probabilities));
    const index = probabilities.indexOf(Math.max(...probabilities));
    const organs = organsOf(task, probabilities);
    const [organ, organProbability] = [...organs].reduce((a, b) => (b[1] > a[1] ? b : a));
    const plausibility = this.#plausibility(answers);
    return {
      probabilities,
      label: task.classes[index],
      probability: probabilities[index],
      organ,
      organProbability: Math.min(organProbability, 1),
      plausibility,
      warnings: [
        ...slice.warnings,
        ...pixelWarnings(packed, input),
        ...this.#plausibilityWarnings(plausibility),
      ],
      packed,
      milliseconds,
    };
  }

  /** Run all networks once, because the first run takes longer. */
  async warmUp() {
    const { size } = this.manifest.input;
    for (const network of this.networks) await this.#run(network, new Float32Array(size * size));
  }

  /** Run one network: its probabilities, and its plausibility if it has that output. */
  async #run({ file, output, session }, packed) {
    const { size } = this.manifest.input;
    const images = new ort.Tensor("float32", packed, [1, 1, size, size]);
    const results = await session.run({ images });
    const row = Array.from(results[output].data);
    const plausible = this.manifest.plausibility?.output;
    return {
      probabilities: output === "logits" ? softmax(row, this.manifest.temperature) : checked(row, file),
      plausibility: plausible && results[plausible] ? results[plausible].data[0] : null,
    };
  }

  #plausibility(answers) {
    const values = answers.map(({ plausibility }) => plausibility).filter((value) => value !== null);
    return values.length > 0 ? mean(values.map((value) => [value]))[0] : null;
  }

  #plausibilityWarnings(plausibility) {
    const threshold = this.manifest.plausibility?.threshold;
    if (plausibility === null || !(plausibility < threshold)) return [];
    const [found, least] = [plausibility, threshold].map((value) => value.toFixed(3));
    return [`implausible: plausibility ${found}, below ${least}; likely not a crop around one organ`];
  }
}

/** Divide logits by the temperature and convert them to probabilities. */
export function softmax(logits, temperature) {
  const highest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp((logit - highest) / temperature));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

function checked(probabilities, file) {
  const total = probabilities.reduce((a, b) => a + b);
  if (Math.min(...probabilities) >= 0 && Math.abs(total - 1) <= SUM_TOLERANCE) {
    return probabilities.map((probability) => probability / total);
  }
  throw new Error(`${file}: expected probabilities, but the output does not sum to 1; export the bundle again`);
}

/** Return the mean of several rows of equal length. */
export function mean(rows) {
  return rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
}

/** Add up the two sides of paired classes: organ -> probability, in the order of the classes. */
export function organsOf({ classes, paired }, probabilities) {
  const sided = new Set(paired.flat());
  const organs = new Map();
  classes.forEach((name, i) => {
    const organ = sided.has(name) ? name.slice(0, name.lastIndexOf("-")) : name;
    organs.set(organ, (organs.get(organ) ?? 0) + probabilities[i]);
  });
  return organs;
}
