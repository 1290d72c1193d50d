// Warnings about slices that are unlikely to be a crop around one organ, as organ_infer/plausibility.py gives them.

// pixels
const WHOLE_SLICE_SIDE = 400;
// millimeters
const [WHOLE_SLICE_FIELD, WHOLE_SLICE_LENGTH] = [250, 300];
// black is 0, white is 1
const [BLACK, WHITE] = [0.02, 0.98];
const MIN_SPAN = 0.25;
const CLIPPED_LIMIT = 0.9;
const BLACK_BORDER_LIMIT = 0.9;
const SKIN_LIMIT = 0.15;
const SKIN_SIDE = 28;
const WHOLE_SLICE = "likely a whole slice";

/**
 * Return the warnings about a slice's size.
 *
 * @param {{width: number, height: number, field?: number[] | null}} slice `field`: height and width in millimeters.
 */
export function shapeWarnings({ width, height, field }) {
  if (Math.min(width, height) >= WHOLE_SLICE_SIDE) return wholeSlice(`${width} x ${height} pixels`);
  if (!field) return [];
  if (Math.min(...field) >= WHOLE_SLICE_FIELD || Math.max(...field) >= WHOLE_SLICE_LENGTH) {
    return wholeSlice(`${field[1].toFixed(0)} x ${field[0].toFixed(0)} mm`);
  }
  return [];
}

function wholeSlice(size) {
  return [`implausible: ${size}; ${WHOLE_SLICE}, crop it around one organ`];
}

/**
 * Return the warning about a slice's pixels, if there is one.
 *
 * @param {Float32Array} packed The network's input.
 * @param {{size: number, mean: number, std: number}} input The manifest's description of it.
 */
export function pixelWarnings(packed, { size, mean, std }) {
  const low = Math.fround((BLACK - mean) / std);
  const high = Math.fround((WHITE - mean) / std);
  const black = Uint8Array.from(packed, (value) => value <= low);
  const white = Uint8Array.from(packed, (value) => value >= high);
  const span = Math.fround(packed.reduce((a, b) => Math.max(a, b)) - packed.reduce((a, b) => Math.min(a, b))) * std;
  const clipped = (count(black) + count(white)) / packed.length;
  const border = black.filter((_, i) => isBorder(i, size));
  const reason = reasonOf(span, clipped, count(border) / border.length, () => inAir(packed, black, { size, mean, std }));
  return reason ? [`implausible: ${reason}`] : [];
}

function reasonOf(span, clipped, blackBorder, isInAir) {
  if (span < MIN_SPAN) {
    return `pixels span ${percent(span)} of black to white; likely a constant image or a wrong window`;
  }
  if (clipped >= CLIPPED_LIMIT) {
    return `${percent(clipped)} of the pixels are black or white; likely a wrong window or no CT slice`;
  }
  if (blackBorder >= BLACK_BORDER_LIMIT) return `black border; ${WHOLE_SLICE}, crop it around one organ`;
  return isInAir() ? `a body in air; ${WHOLE_SLICE}, crop it around one organ` : null;
}

function percent(share) {
  return `${(100 * share).toFixed(0)}%`;
}

function count(mask) {
  return mask.reduce((sum, value) => sum + value, 0);
}

function isBorder(i, size) {
  const [row, column] = [Math.floor(i / size), i % size];
  return row === 0 || row === size - 1 || column === 0 || column === size - 1;
}

/** Whether a slice shows a body with skin in air: black corners, and dark gray next to the black. */
function inAir(packed, black, { size, mean, std }) {
  const corners = [0, size - 1, size * (size - 1), size * size - 1];
  if (!corners.every((corner) => black[corner])) return false;
  return skinBrightness(Float64Array.from(packed, (value) => value * std + mean), size) < SKIN_LIMIT;
}

/** Return the mean of the pixels next to the black ones around them, or 1 if there are none. */
function skinBrightness(gray, size) {
  const side = Math.min(size, SKIN_SIDE);
  const small = size > SKIN_SIDE ? reduced(gray, size) : gray;
  const black = Uint8Array.from(small, (value) => value <= BLACK);
  const outside = seenFromOutside(black, side);
  const skin = [];
  for (let i = 0; i < small.length; i++) {
    const [row, column] = [Math.floor(i / side), i % side];
    const isNext =
      (row > 0 && outside[i - side]) ||
      (row < side - 1 && outside[i + side]) ||
      (column > 0 && outside[i - 1]) ||
      (column < side - 1 && outside[i + 1]);
    if (isNext && !black[i]) skin.push(small[i]);
  }
  return skin.length > 0 ? skin.reduce((a, b) => a + b) / skin.length : 1;
}

/** Return the slice with SKIN_SIDE rows and columns, each the mean of an area. */
function reduced(gray, size) {
  const step = size / SKIN_SIDE;
  const covered = (o, p) => Math.max(0, Math.min((o + 1) * step, p + 1) - Math.max(o * step, p)) / step;
  const along = (values, rows, stride, next) => {
    const result = new Float64Array(rows * SKIN_SIDE);
    for (let row = 0; row < rows; row++) {
      for (let o = 0; o < SKIN_SIDE; o++) {
        for (let p = Math.floor(o * step); p < Math.min(size, Math.ceil((o + 1) * step)); p++) {
          result[o * rows + row] += covered(o, p) * values[row * stride + p * next];
        }
      }
    }
    return result;
  };
  // along the rows, (SKIN_SIDE, size), then along the columns of the result, (SKIN_SIDE, SKIN_SIDE), upright again
  return along(along(gray, size, size, 1), SKIN_SIDE, size, 1);
}

/** Return the pixels from which a side of the slice is reached straight through black ones. */
function seenFromOutside(black, side) {
  const seen = new Uint8Array(black.length);
  const walk = (start, step) => {
    for (let k = 0, i = start; k < side && black[i]; k++, i += step) seen[i] = 1;
  };
  for (let k = 0; k < side; k++) {
    walk(k * side, 1);
    walk(k * side + side - 1, -1);
    walk(k, side);
    walk((side - 1) * side + k, -side);
  }
  return seen;
}
