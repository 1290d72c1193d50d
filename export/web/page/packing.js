// Converts a slice to a network's input, as docs/reference/bundle_format.md ("Preprocessing") defines it.

const MINIMUM = -32768;
const MAXIMUM = 32767;
// level and width of int16 slices if the manifest has no window
const DEFAULT_WINDOW = [40, 400];

/**
 * Resample and normalize one slice.
 *
 * @param {{pixels: Uint8Array | Uint16Array | Int16Array, width: number, height: number}} slice
 *   Gray, or Hounsfield units (int16), row by row.
 * @param {{size: number, mean: number, std: number, resample: string, window: number[] | null}} input
 *   The manifest's description of the network's input.
 * @returns {Float32Array} (size * size), row by row.
 */
export function pack(slice, input) {
  const { width, height } = slice;
  const { size } = input;
  const scale = scaleOf(slice.pixels, input.window);
  const x = tapsOf(width, size, input.resample);
  const y = tapsOf(height, size, input.resample);
  const rows = sumColumns(slice, scale, x, size);
  const totals = sumRows(rows, y, size);
  const most = x.total * y.total * scale.depth;
  const inverse = 1 / most;
  const isResampled = width !== size || height !== size;
  const mean = Math.fround(input.mean);
  const std = Math.fround(input.std);
  const packed = new Float32Array(size * size);
  for (let i = 0; i < packed.length; i++) {
    // only cubic sums are ever outside
    const total = Math.min(Math.max(totals[i], 0), most);
    const fraction = Math.fround(isResampled ? total * inverse : total / scale.depth);
    packed[i] = Math.fround(fraction - mean) / std;
  }
  return packed;
}

/** Return the function from a pixel to a number from 0 to `depth`, and `depth`. */
function scaleOf(pixels, window) {
  if (pixels instanceof Uint8Array) return { value: (pixel) => pixel, depth: 255 };
  if (pixels instanceof Uint16Array) return { value: (pixel) => pixel, depth: 65535 };
  const [level, width] = window ?? DEFAULT_WINDOW;
  const low = level - width / 2;
  const high = low + width;
  if (Number.isInteger(low) && Number.isInteger(high) && low >= MINIMUM && high <= MAXIMUM) {
    return { value: (pixel) => Math.min(Math.max(pixel, low), high) - low, depth: width };
  }
  const value = (pixel) => Math.fround(Math.min(Math.max((pixel - low) / width, 0), 1));
  return { value, depth: 1 };
}

/** Sum the pixels of each row under each output column: Float64Array (height * size). */
function sumColumns({ pixels, width, height }, { value, depth }, taps, size) {
  const sums = new Float64Array(height * size);
  const row = new Float64Array(width);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) row[x] = value(pixels[y * width + x]);
    for (let o = 0; o < size; o++) {
      const weights = taps.weights[o];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * row[taps.starts[o] + k];
      sums[y * size + o] = sum;
    }
  }
  return sums;
}

/** Sum the rows under each output row: Float64Array (size * size). */
function sumRows(rows, taps, size) {
  const totals = new Float64Array(size * size);
  for (let o = 0; o < size; o++) {
    taps.weights[o].forEach((weight, k) => {
      const start = (taps.starts[o] + k) * size;
      for (let x = 0; x < size; x++) totals[o * size + x] += weight * rows[start + x];
    });
  }
  return totals;
}

/**
 * Return which pixels of an axis each output pixel reads, with their weights.
 *
 * The weights are integers, so most sums are exact. Those of an output pixel add up to `total`.
 */
function tapsOf(length, size, resample) {
  if (length === size) return taps(size, 1, (o) => [o, [1]]);
  const divisor = greatestCommonDivisor(length, size);
  const [a, b] = [length / divisor, size / divisor];
  if (resample === "area" && length > size) return taps(size, a, (o) => areaTap(o, a, b));
  if (resample === "area" || resample === "linear") {
    return taps(size, 2 * b, (o) => sampled(o, a, b, 0, (rest, q) => [q - rest, rest], length));
  }
  if (resample === "cubic") {
    return taps(size, 4 * (2 * b) ** 3, (o) => sampled(o, a, b, 1, cubicWeights, length));
  }
  throw new Error(`resample: expected area, linear or cubic, found ${resample}`);
}

function taps(size, total, tap) {
  const all = Array.from({ length: size }, (_, o) => tap(o));
  return { total, starts: all.map(([start]) => start), weights: all.map(([, weights]) => weights) };
}

/** Output pixel o covers [o * a, (o + 1) * a), and pixel p covers [p * b, (p + 1) * b). */
function areaTap(o, a, b) {
  const start = Math.floor((o * a) / b);
  const end = Math.ceil(((o + 1) * a) / b);
  const weights = [];
  for (let p = start; p < end; p++) {
    weights.push(Math.min((p + 1) * b, (o + 1) * a) - Math.max(p * b, o * a));
  }
  return [start, weights];
}

/**
 * Sample at x = (o + 1/2) * a / b - 1/2. Pixels beyond the edge are those at the edge.
 *
 * @param {number} before Pixels with a weight before floor(x).
 * @param {(rest: number, q: number) => number[]} weightsAt Weights of the pixels around floor(x) + rest / q.
 */
function sampled(o, a, b, before, weightsAt, length) {
  const numerator = (2 * o + 1) * a - b;
  const q = 2 * b;
  const floor = Math.floor(numerator / q);
  const inside = (p) => Math.min(Math.max(p, 0), length - 1);
  const weights = weightsAt(numerator - floor * q, q);
  const start = inside(floor - before);
  const merged = new Array(inside(floor - before + weights.length - 1) - start + 1).fill(0);
  weights.forEach((weight, k) => {
    merged[inside(floor - before + k) - start] += weight;
  });
  return [start, merged];
}

/** The cubic convolution kernel for A = -3/4 at four pixels, times 4 q^3. */
function cubicWeights(rest, q) {
  const near = (n) => 5 * n ** 3 - 9 * n ** 2 * q + 4 * q ** 3;
  const far = (n) => -3 * n ** 3 + 15 * n ** 2 * q - 24 * n * q ** 2 + 12 * q ** 3;
  return [far(q + rest), near(rest), near(q - rest), far(2 * q - rest)];
}

function greatestCommonDivisor(a, b) {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
