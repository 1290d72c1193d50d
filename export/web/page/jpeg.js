// JPEG through the browser's own decoder.

import { exifOrientation } from "./exif.js";
import { checkSize, luma } from "./gray.js";

const [START_OF_SCAN, END, APP1] = [0xda, 0xd9, 0xe1];
// baseline, extended and progressive frames; browsers decode no others
const FRAMES = [0xc0, 0xc1, 0xc2];
const OTHER_FRAMES = [0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf];

/** Whether the bytes begin as those of a JPEG do. */
export function isJpeg(bytes) {
  return bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;
}

/**
 * Decode a JPEG to gray.
 *
 * @param {Uint8Array} bytes
 * @returns {Promise<object>} A slice: pixels (8 bits), width, height, warnings.
 */
export async function readJpeg(bytes) {
  const { width, height, components, orientation } = headerOf(bytes);
  checkSize(width, height);
  if (!endsInMarker(bytes)) {
    throw new Error("JPEG: the end of the file is missing; it is truncated or damaged");
  }
  const shown = orientation >= 5 ? { width: height, height: width } : { width, height };
  const rgba = await decoded(bytes, shown);
  const warnings = [];
  const gray = components === 1 ? rgba.filter((_, i) => i % 4 === 0) : luma(rgba, false, warnings);
  if (orientation !== 1) warnings.push(`reoriented by its EXIF orientation (${orientation})`);
  return { pixels: Uint8Array.from(gray), ...shown, warnings };
}

/** Read the size, the number of components and the EXIF orientation. */
export function headerOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let orientation = 1;
  let position = 2;
  while (position + 4 <= bytes.length && bytes[position] === 0xff) {
    const marker = bytes[position + 1];
    if (marker === 0xff) {
      position++;
      continue;
    }
    const length = view.getUint16(position + 2);
    const segment = bytes.subarray(position + 4, position + 2 + length);
    if (marker === START_OF_SCAN) break;
    if (OTHER_FRAMES.includes(marker)) {
      throw new Error("JPEG: lossless or arithmetic JPEG, which browsers do not decode; save it as PNG");
    }
    if (FRAMES.includes(marker) && segment.length >= 6) {
      if (segment[0] !== 8) {
        throw new Error(`JPEG: ${segment[0]} bits, and browsers decode 8; save it as 16-bit PNG`);
      }
      const height = (segment[1] << 8) | segment[2];
      const width = (segment[3] << 8) | segment[4];
      return { width, height, components: segment[5], orientation };
    }
    if (marker === APP1 && String.fromCharCode(...segment.subarray(0, 6)) === "Exif\0\0") {
      orientation = exifOrientation(segment.subarray(6));
    }
    position += 2 + length;
  }
  throw new Error("JPEG: the header is damaged");
}

function endsInMarker(bytes) {
  for (let i = bytes.length - 2; i > 2; i--) if (bytes[i] === 0xff && bytes[i + 1] === END) return true;
  return false;
}

/** Decode without color conversion, as displayed by the EXIF orientation, which every browser applies: RGBA. */
async function decoded(bytes, { width, height }) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }), options);
  } catch {
    throw new Error("JPEG: the browser cannot decode it; save it as PNG");
  }
  if (bitmap.width !== width || bitmap.height !== height) {
    throw new Error("JPEG: the browser decoded another size; save it as PNG");
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { alpha: false });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height).data;
}
