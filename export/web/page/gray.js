// Conversion of decoded pixels to gray, as organ_infer/images/pillow.py does it.

// Mean distance between a pixel's largest and smallest of red, green and blue (0 to 255). An image that
// reaches it counts as color.
const CHROMA = 10;
const ON_BLACK = "alpha composited on black";
const SIDE_LIMIT = 65535;
const PIXEL_LIMIT = 89_478_485;

/** Refuse an image that is empty or too large, before it is decoded. */
export function checkSize(width, height) {
  if (width < 1 || height < 1) throw new Error(`${width} x ${height} pixels: the image is empty`);
  if (Math.max(width, height) > SIDE_LIMIT || width * height > PIXEL_LIMIT) {
    throw new Error(
      `${width} x ${height} pixels: too large, at most ${PIXEL_LIMIT.toLocaleString("en-US")} pixels are read`,
    );
  }
}

/**
 * Convert color to luma by ITU-R 601.
 *
 * @param {Uint8Array | Uint8ClampedArray} rgba Four bytes per pixel, not premultiplied.
 * @param {boolean} hasAlpha Whether alpha is composited on black, with a warning.
 * @param {string[]} warnings Warnings are added to it.
 * @param {string} kind `color` or `palette`, for the warning.
 */
export function luma(rgba, hasAlpha, warnings, kind = "color") {
  const gray = new Uint8Array(rgba.length / 4);
  let chroma = 0;
  for (let i = 0; i < gray.length; i++) {
    const alpha = hasAlpha ? rgba[4 * i + 3] : 255;
    const r = scaled(rgba[4 * i], alpha);
    const g = scaled(rgba[4 * i + 1], alpha);
    const b = scaled(rgba[4 * i + 2], alpha);
    chroma += Math.max(r, g, b) - Math.min(r, g, b);
    gray[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
  }
  warnings.push(`converted from ${kind} to gray`);
  if (hasAlpha) warnings.push(ON_BLACK);
  if (chroma / gray.length >= CHROMA) warnings.push("implausible: color image; CT slices are gray");
  return gray;
}

/** Composite gray of 8 or 16 bits on black. `alpha` has as many bits. */
export function grayOnBlack(gray, alpha, warnings) {
  warnings.push(ON_BLACK);
  // Pillow rounds down here, and to the nearest in color with alpha
  if (gray instanceof Uint8Array) return gray.map((value, i) => Math.floor((value * alpha[i]) / 255));
  return gray.map((value, i) => Math.floor((value * alpha[i] + 32_767) / 65_535));
}

/** Replace the transparent gray value by black. */
export function transparentOnBlack(gray, transparent, warnings) {
  warnings.push(ON_BLACK);
  return gray.map((value) => (value === transparent ? 0 : value));
}

/** value * alpha / 255, rounded. */
function scaled(value, alpha) {
  const product = value * alpha + 128;
  return (product + (product >> 8)) >> 8;
}
