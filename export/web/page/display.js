// Slices as pictures.

/**
 * Draw a slice on a canvas of its size.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {object} slice
 * @param {number[] | null} window Level and width of int16 slices.
 */
export function drawSlice(canvas, { pixels, width, height }, window) {
  canvas.width = width;
  canvas.height = height;
  const [level, span] = window ?? [40, 400];
  const image = new ImageData(width, height);
  for (let i = 0; i < pixels.length; i++) {
    let gray = pixels[i];
    if (pixels instanceof Uint16Array) gray /= 257;
    else if (pixels instanceof Int16Array) gray = ((gray - level) / span + 0.5) * 255;
    else if (pixels instanceof Float32Array) gray *= 255;
    image.data.fill(gray, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Draw the network's input on a canvas. */
export function drawPacked(canvas, packed, { size, mean, std }) {
  const pixels = packed.map((value) => value * std + mean);
  drawSlice(canvas, { pixels, width: size, height: size }, null);
}

/** Draw one canvas on another, reduced to at most `side` pixels per side. */
export function drawThumbnail(canvas, source, side) {
  const scale = Math.min(1, side / Math.max(source.width, source.height));
  canvas.width = Math.max(1, Math.round(source.width * scale));
  canvas.height = Math.max(1, Math.round(source.height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
}

/** Create an element. `properties` are set on it, and `children` are elements or text. */
export function element(tag, properties = {}, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}
