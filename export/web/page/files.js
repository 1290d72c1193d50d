// One file to its slices, and one slice to what the network sees.

import { isDicom, openDicom } from "./dicom.js";
import { isJpeg, readJpeg } from "./jpeg.js";
import { planeOf, reorient } from "./orientation.js";
import { shapeWarnings } from "./plausibility.js";
import { isPng, readPng } from "./png.js";

// bytes
const FILE_LIMIT = 2 ** 28;

/**
 * Open a file of the user.
 *
 * @param {File | Blob} file
 * @param {object} packages The packages that read DICOM (dicom.js).
 * @returns {Promise<{frames: number, read: (index: number) => object}>} `read` returns a slice: pixels (Uint8Array or
 *   Uint16Array gray, or Int16Array HU, row by row), width, height, warnings, and, for DICOM, orientation and field.
 */
export async function openFile(file, packages) {
  if (file.size === 0) throw new Error("the file is empty");
  if (file.size > FILE_LIMIT) {
    throw new Error(
      `${file.size.toLocaleString("en-US")} bytes: too large, at most ${FILE_LIMIT.toLocaleString("en-US")} are read`,
    );
  }
  const bytes = new Uint8Array(await contentOf(file));
  if (isDicom(bytes)) return openDicom(bytes, packages);
  if (isPng(bytes)) return single(await readPng(bytes));
  if (isJpeg(bytes)) return single(await readJpeg(bytes));
  throw new Error("not a PNG, JPEG or DICOM file; convert it to PNG, or use organ-infer, which reads more formats");
}

async function contentOf(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error("cannot be read; choose files, not directories, and choose the file again if it changed");
  }
}

function single(slice) {
  return { frames: 1, read: () => slice };
}

/**
 * Cut a box out of a slice.
 *
 * @param {object} slice
 * @param {{x0: number, y0: number, x1: number, y1: number}} box Columns x0 to x1 - 1, rows y0 to y1 - 1.
 */
export function cutBox(slice, { x0, y0, x1, y1 }) {
  const [width, height] = [x1 - x0, y1 - y0];
  const pixels = new slice.pixels.constructor(width * height);
  for (let y = 0; y < height; y++) {
    const start = (y0 + y) * slice.width + x0;
    pixels.set(slice.pixels.subarray(start, start + width), y * width);
  }
  const field = slice.field && [(slice.field[0] * height) / slice.height, (slice.field[1] * width) / slice.width];
  return { ...slice, pixels, width, height, field };
}

/**
 * Reorient a slice to the model, and add the warnings about its size.
 *
 * @param {object} slice
 * @param {string | null} chosen The user's orientation, for slices that state none. Null: as stored.
 * @param {{window: number[] | null, orientation: string[] | null}} input The manifest's description of the network's input.
 */
export function prepared(slice, chosen, input) {
  if (slice.pixels instanceof Int16Array && input.window === null) {
    throw new Error(
      "Hounsfield units (int16) are not supported by this model, which has no window; choose 8- or 16-bit gray",
    );
  }
  const orientation = slice.orientation ?? chosen;
  const warned = { ...slice, warnings: [...slice.warnings, ...shapeWarnings(slice)] };
  if (!orientation) return warned;
  if (input.orientation === null) {
    throw new Error(
      `orientation ${orientation}: this model does not define an orientation, so inputs cannot be reoriented`,
    );
  }
  const [plane, expected] = [planeOf(orientation), planeOf(input.orientation)];
  if (plane !== expected) {
    throw new Error(
      `orientation ${orientation}: expected a slice in the ${expected} plane, found one in the ${plane} plane;` +
        ` choose ${expected} slices`,
    );
  }
  return reorient(warned, orientation, input.orientation);
}
