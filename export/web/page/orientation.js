// In-plane orientation: two DICOM letters, the patient directions in which row and column index grow.

const AXES = { L: "x", R: "x", P: "y", A: "y", H: "z", F: "z" };
const OPPOSITE = { L: "R", R: "L", P: "A", A: "P", H: "F", F: "H" };
// letters of the patient axes x, y and z, growing and falling
const DIRECTIONS = [["L", "R"], ["P", "A"], ["H", "F"]];
const PLANES = { xy: "axial", xz: "coronal", yz: "sagittal" };
// least cosine of the angle between a slice's axis and the nearest patient axis
const MIN_COSINE = Math.cos((25 * Math.PI) / 180);

/** Return `axial`, `coronal` or `sagittal`. */
export function planeOf(orientation) {
  return PLANES[[...orientation].map((letter) => AXES[letter]).sort().join("")];
}

/** Return the eight orientations in the plane of one. */
export function orientationsLike([rows, columns]) {
  const both = (letter) => [letter, OPPOSITE[letter]];
  const pairs = (first, second) => both(first).flatMap((r) => both(second).map((c) => r + c));
  return [...pairs(rows, columns), ...pairs(columns, rows)];
}

/**
 * Flip and transpose a slice.
 *
 * @param {{pixels: object, width: number, height: number}} slice
 * @param {string | string[]} source The orientation of `slice`.
 * @param {string | string[]} target The orientation of the result, in the same plane.
 */
export function reorient(slice, source, target) {
  const transposed = AXES[source[0]] !== AXES[target[0]];
  const [rows, columns] = transposed ? [source[1], source[0]] : source;
  return arranged(slice, { transposed, flipRows: rows !== target[0], flipColumns: columns !== target[1] });
}

/** Return a slice transposed, then flipped. */
export function arranged(slice, { transposed, flipRows, flipColumns }) {
  const { pixels } = slice;
  const [width, height] = transposed ? [slice.height, slice.width] : [slice.width, slice.height];
  const result = new pixels.constructor(pixels.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const row = flipRows ? height - 1 - y : y;
      const column = flipColumns ? width - 1 - x : x;
      result[y * width + x] = pixels[transposed ? column * slice.width + row : row * slice.width + column];
    }
  }
  return { ...slice, pixels: result, width, height };
}

/**
 * Convert DICOM's ImageOrientationPatient.
 *
 * @param {number[] | null} cosines Three of the direction in which the column index grows, then three of the row index.
 * @returns {string | null} Two letters, or null if it is missing.
 */
export function orientationOfCosines(cosines) {
  if (cosines === null || cosines.length !== 6) return null;
  const directions = [cosines.slice(0, 3), cosines.slice(3)];
  const nearest = directions.map((d) => Math.max(...d.map(Math.abs)) / Math.hypot(...d));
  if (!nearest.every((cosine) => cosine > 0)) {
    throw new Error("DICOM: invalid ImageOrientationPatient; a direction has no length");
  }
  if (!nearest.every((cosine) => cosine >= MIN_COSINE)) {
    throw new Error(
      "DICOM: oblique slice, more than 25 degrees off the patient axes; resample the volume to them",
    );
  }
  const axes = directions.map((d) => d.map(Math.abs).indexOf(Math.max(...d.map(Math.abs))));
  if (axes[0] === axes[1]) {
    throw new Error(
      "DICOM: invalid ImageOrientationPatient; rows and columns run along the same patient axis",
    );
  }
  const [columns, rows] = axes.map((axis, i) => DIRECTIONS[axis][directions[i][axis] > 0 ? 0 : 1]);
  return rows + columns;
}
