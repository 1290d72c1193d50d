// The EXIF orientation of PNG and JPEG files.

import { arranged } from "./orientation.js";

const ORIENTATION = 0x0112;
// EXIF orientation -> how the pixels are displayed
const ARRANGEMENTS = {
  2: { flipColumns: true },
  3: { flipRows: true, flipColumns: true },
  4: { flipRows: true },
  5: { transposed: true },
  6: { transposed: true, flipColumns: true },
  7: { transposed: true, flipRows: true, flipColumns: true },
  8: { transposed: true, flipRows: true },
};

/**
 * Return the orientation that a block of EXIF states, 1 to 8.
 *
 * @param {Uint8Array} block Begins with the byte order, `II` or `MM`.
 */
export function exifOrientation(block) {
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  try {
    const little = view.getUint16(0) === 0x4949;
    const directory = view.getUint32(4, little);
    const count = view.getUint16(directory, little);
    for (let i = 0; i < count; i++) {
      const entry = directory + 2 + 12 * i;
      if (view.getUint16(entry, little) !== ORIENTATION) continue;
      const value = view.getUint16(entry + 8, little);
      return value in ARRANGEMENTS ? value : 1;
    }
  } catch (error) {
    // EXIF is free-form, and the pixels are intact
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/** Return a slice as it is displayed, with a warning if that changed it. */
export function displayed(slice, orientation) {
  if (orientation === 1) return slice;
  const warnings = [...slice.warnings, `reoriented by its EXIF orientation (${orientation})`];
  return { ...arranged(slice, ARRANGEMENTS[orientation]), warnings };
}
