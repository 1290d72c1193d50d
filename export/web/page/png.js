// A PNG decoder. A browser's own would drop 16 bits to 8 and apply gamma and color profiles; the runtime does neither.

import { displayed, exifOrientation } from "./exif.js";
import { checkSize, grayOnBlack, luma, transparentOnBlack } from "./gray.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const [GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA] = [0, 2, 3, 4, 6];
const CHANNELS = { [GRAY]: 1, [RGB]: 3, [PALETTE]: 1, [GRAY_ALPHA]: 2, [RGBA]: 4 };
const DEPTHS = {
  [GRAY]: [1, 2, 4, 8, 16],
  [RGB]: [8, 16],
  [PALETTE]: [1, 2, 4, 8],
  [GRAY_ALPHA]: [8, 16],
  [RGBA]: [8, 16],
};
// Adam7: first column, first row, and the steps between columns and rows of each pass
const PASSES = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];
const WHOLE = [[0, 0, 1, 1]];
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** Whether the bytes begin as those of a PNG do. */
export function isPng(bytes) {
  return SIGNATURE.every((byte, i) => bytes[i] === byte);
}

/**
 * Decode a PNG to gray.
 *
 * @param {Uint8Array} bytes
 * @returns {Promise<object>} A slice: pixels (8 or 16 bits), width, height, warnings.
 */
export async function readPng(bytes) {
  const chunks = chunksOf(bytes);
  const header = headerOf(chunks[0]);
  const warnings = [];
  const frames = chunks.find(({ name }) => name === "acTL");
  if (frames && viewOf(frames.data).getUint32(0) > 1) {
    warnings.push(`only frame 0 of ${viewOf(frames.data).getUint32(0)} was used`);
  }
  const compressed = chunks.filter(({ name }) => name === "IDAT").map(({ data }) => data);
  if (compressed.length === 0) throw new Error("PNG: no pixel data");
  const passes = (header.interlaced ? PASSES : WHOLE)
    .map((pass) => ({ pass, ...passSize(header, pass) }))
    .filter(({ width, height }) => width > 0 && height > 0);
  const expected = passes.reduce((sum, { stride, height }) => sum + (stride + 1) * height, 0);
  const samples = unfiltered(await inflated(compressed, expected), header, passes);
  const pixels = toGray(samples, header, chunks, warnings);
  const exif = chunks.find(({ name }) => name === "eXIf");
  const slice = { pixels, width: header.width, height: header.height, warnings };
  return displayed(slice, exif ? exifOrientation(exif.data) : 1);
}

/** Split the file into chunks and verify their checksums. */
function chunksOf(bytes) {
  const view = viewOf(bytes);
  const chunks = [];
  let position = SIGNATURE.length;
  while (position + 12 <= bytes.length) {
    const length = view.getUint32(position);
    const end = position + 8 + length;
    if (end + 4 > bytes.length) break;
    const name = String.fromCharCode(...bytes.subarray(position + 4, position + 8));
    if (crc(bytes.subarray(position + 4, end)) !== view.getUint32(end)) {
      throw new Error(`PNG: the checksum of a chunk (${name}) is wrong; the file is damaged`);
    }
    chunks.push({ name, data: bytes.subarray(position + 8, end) });
    if (name === "IEND") return chunks;
    position = end + 4;
  }
  throw new Error("PNG: the end of the file is missing; it is truncated or damaged");
}

function headerOf({ name, data }) {
  if (name !== "IHDR" || data.length !== 13) throw new Error("PNG: the header is damaged");
  const [width, height] = [viewOf(data).getUint32(0), viewOf(data).getUint32(4)];
  const [depth, type, compression, filter, interlace] = data.subarray(8);
  checkSize(width, height);
  if (!DEPTHS[type]?.includes(depth) || compression || filter || interlace > 1) {
    throw new Error("PNG: the header is damaged");
  }
  return { width, height, depth, type, interlaced: interlace === 1, channels: CHANNELS[type] };
}

function passSize({ width, height, depth, channels }, [x, y, dx, dy]) {
  const columns = Math.ceil((width - x) / dx);
  const rows = Math.ceil((height - y) / dy);
  return { width: columns, height: rows, stride: Math.ceil((columns * depth * channels) / 8) };
}

/** Inflate the pixel data up to the length that the header states. */
async function inflated(parts, expected) {
  const result = new Uint8Array(expected);
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  let filled = 0;
  try {
    while (filled < expected) {
      const { done, value } = await reader.read();
      if (done) break;
      result.set(value.subarray(0, expected - filled), filled);
      filled += value.length;
    }
  } catch {
    throw new Error("PNG: the pixel data is damaged");
  } finally {
    reader.cancel().catch(() => {});
  }
  if (filled < expected) throw new Error("PNG: pixel data is missing; the file is truncated or damaged");
  return result;
}

/** Undo the row filters, and return one number per sample, (height * width * channels). */
function unfiltered(data, { width, height, depth, channels }, passes) {
  const samples = depth === 16 ? new Uint16Array(width * height * channels) : new Uint8Array(width * height * channels);
  const step = Math.max(1, (depth * channels) / 8);
  let position = 0;
  for (const { pass, width: columns, height: rows, stride } of passes) {
    let previous = new Uint8Array(stride);
    for (let row = 0; row < rows; row++) {
      const line = data.subarray(position + 1, position + 1 + stride);
      unfilter(data[position], line, previous, step);
      const y = pass[1] + row * pass[3];
      for (let column = 0; column < columns; column++) {
        const target = (y * width + pass[0] + column * pass[2]) * channels;
        for (let c = 0; c < channels; c++) samples[target + c] = sampleAt(line, column * channels + c, depth);
      }
      previous = line;
      position += stride + 1;
    }
  }
  return samples;
}

function unfilter(filter, line, previous, step) {
  if (filter > 4) throw new Error("PNG: the pixel data is damaged");
  if (filter === 0) return;
  for (let i = 0; i < line.length; i++) {
    const left = i >= step ? line[i - step] : 0;
    const up = previous[i];
    if (filter === 1) line[i] += left;
    else if (filter === 2) line[i] += up;
    else if (filter === 3) line[i] += (left + up) >> 1;
    else line[i] += paeth(left, up, i >= step ? previous[i - step] : 0);
  }
}

function paeth(left, up, corner) {
  const estimate = left + up - corner;
  const [a, b, c] = [Math.abs(estimate - left), Math.abs(estimate - up), Math.abs(estimate - corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

function sampleAt(line, index, depth) {
  if (depth === 8) return line[index];
  if (depth === 16) return (line[2 * index] << 8) | line[2 * index + 1];
  const bit = index * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

/** Convert samples to gray of 8 or 16 bits. */
function toGray(samples, { depth, type, channels }, chunks, warnings) {
  const transparency = chunks.find(({ name }) => name === "tRNS")?.data;
  if (type === GRAY) {
    const factor = depth < 8 ? 255 / ((1 << depth) - 1) : 1;
    const gray = samples.map((value) => value * factor);
    if (!transparency) return gray;
    return transparentOnBlack(gray, viewOf(transparency).getUint16(0) * factor, warnings);
  }
  if (type === GRAY_ALPHA) {
    const alpha = samples.filter((_, i) => i % 2 === 1);
    return grayOnBlack(samples.filter((_, i) => i % 2 === 0), alpha, warnings);
  }
  if (type === PALETTE) return luma(...fromPalette(samples, chunks, transparency), warnings, "palette");
  if (depth === 16 && type === RGB && transparency) {
    throw new Error("PNG: 16-bit color with a transparent color is not supported; save it as 16-bit gray");
  }
  if (depth === 16) warnings.push("16-bit color or alpha read at 8 bits");
  const bytes = depth === 16 ? Uint8Array.from(samples, (value) => value >> 8) : samples;
  return luma(toRgba(bytes, channels, transparency), channels === 4 || Boolean(transparency), warnings);
}

function fromPalette(samples, chunks, transparency) {
  const palette = chunks.find(({ name }) => name === "PLTE")?.data;
  if (!palette) throw new Error("PNG: the palette is missing; the file is damaged");
  const rgba = new Uint8Array(samples.length * 4);
  samples.forEach((index, i) => {
    rgba.set(palette.subarray(3 * index, 3 * index + 3), 4 * i);
    rgba[4 * i + 3] = transparency?.[index] ?? 255;
  });
  return [rgba, Boolean(transparency)];
}

function toRgba(bytes, channels, transparency) {
  if (channels === 4) return bytes;
  const clear = transparency && [0, 2, 4].map((offset) => viewOf(transparency).getUint16(offset));
  const rgba = new Uint8Array((bytes.length / 3) * 4);
  for (let i = 0; i < bytes.length / 3; i++) {
    const color = bytes.subarray(3 * i, 3 * i + 3);
    rgba.set(color, 4 * i);
    rgba[4 * i + 3] = clear && clear.every((value, c) => value === color[c]) ? 0 : 255;
  }
  return rgba;
}

function viewOf(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}
