// The box around one organ, drawn with a pointer or moved with the keyboard.

// pixels of the screen; shorter drags are clicks
const LEAST_DRAG = 4;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const EDGES = ["x0", "y0", "x1", "y1"];

/** A box on a canvas, its rectangle and its number fields. */
export class BoxEditor {
  #canvas;
  #rectangle;
  #fields;
  #onChange;
  #box = null;

  /**
   * @param {object} parts
   * @param {HTMLCanvasElement} parts.canvas One canvas pixel per pixel of the slice.
   * @param {HTMLElement} parts.rectangle Lies on the canvas.
   * @param {Record<string, HTMLInputElement>} parts.fields By edge: x0, y0, x1, y1.
   * @param {(box: object | null) => void} parts.onChange Called after each change by the user.
   */
  constructor({ canvas, rectangle, fields, onChange }) {
    this.#canvas = canvas;
    this.#rectangle = rectangle;
    this.#fields = fields;
    this.#onChange = onChange;
    canvas.addEventListener("pointerdown", (event) => this.#drag(event));
    canvas.addEventListener("keydown", (event) => this.#press(event));
    for (const field of Object.values(fields)) field.addEventListener("change", () => this.#readFields());
  }

  /** Show a box, or none, without a call of `onChange`. */
  show(box) {
    this.#box = box;
    const { width, height } = this.#canvas;
    this.#rectangle.hidden = box === null;
    EDGES.forEach((edge) => {
      this.#fields[edge].max = edge.startsWith("x") ? width : height;
      this.#fields[edge].value = box ? box[edge] : "";
    });
    if (box === null) return;
    const percent = (part, whole) => `${(100 * part) / whole}%`;
    Object.assign(this.#rectangle.style, {
      left: percent(box.x0, width),
      top: percent(box.y0, height),
      width: percent(box.x1 - box.x0, width),
      height: percent(box.y1 - box.y0, height),
    });
  }

  #change(box) {
    this.show(box);
    this.#onChange(box);
  }

  #drag(event) {
    if (event.button !== 0) return;
    const before = this.#box;
    const start = event;
    const controller = new AbortController();
    const { signal } = controller;
    this.#canvas.setPointerCapture(event.pointerId);
    const isDrag = (now) =>
      Math.max(Math.abs(now.clientX - start.clientX), Math.abs(now.clientY - start.clientY)) >= LEAST_DRAG;
    const listen = (name, handler) => this.#canvas.addEventListener(name, handler, { signal });
    listen("pointermove", (now) => isDrag(now) && this.show(this.#between(start, now)));
    listen("pointerup", (now) => {
      controller.abort();
      if (isDrag(now)) this.#change(this.#between(start, now));
    });
    listen("pointercancel", () => {
      controller.abort();
      this.show(before);
    });
  }

  #between(start, end) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    const xs = [start, end].map(({ clientX }) => ((clientX - left) / width) * this.#canvas.width);
    const ys = [start, end].map(({ clientY }) => ((clientY - top) / height) * this.#canvas.height);
    return clipped(
      {
        x0: Math.floor(Math.min(...xs)),
        y0: Math.floor(Math.min(...ys)),
        x1: Math.ceil(Math.max(...xs)),
        y1: Math.ceil(Math.max(...ys)),
      },
      this.#canvas,
    );
  }

  #press(event) {
    if (["Delete", "Backspace", "Escape"].includes(event.key) && this.#box) {
      event.preventDefault();
      this.#change(null);
      return;
    }
    const arrow = ARROWS[event.key];
    if (!arrow || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#change(this.#box === null ? middle(this.#canvas) : this.#moved(arrow, event));
  }

  #moved([x, y], { shiftKey, ctrlKey }) {
    const { width, height } = this.#canvas;
    const step = ctrlKey ? 10 : 1;
    const { x0, y0, x1, y1 } = this.#box;
    if (shiftKey) return clipped({ x0, y0, x1: x1 + step * x, y1: y1 + step * y }, this.#canvas);
    const dx = Math.min(Math.max(step * x, -x0), width - x1);
    const dy = Math.min(Math.max(step * y, -y0), height - y1);
    return { x0: x0 + dx, y0: y0 + dy, x1: x1 + dx, y1: y1 + dy };
  }

  #readFields() {
    const box = this.#box ?? { x0: 0, y0: 0, x1: this.#canvas.width, y1: this.#canvas.height };
    const read = EDGES.map((edge) => [edge, this.#fields[edge].valueAsNumber]);
    const numbers = read.map(([edge, value]) => [edge, Number.isFinite(value) ? Math.round(value) : box[edge]]);
    this.#change(clipped(Object.fromEntries(numbers), this.#canvas));
  }
}

/** Return a box with at least one pixel inside the canvas. */
function clipped({ x0, y0, x1, y1 }, { width, height }) {
  const left = Math.min(Math.max(x0, 0), width - 1);
  const top = Math.min(Math.max(y0, 0), height - 1);
  return {
    x0: left,
    y0: top,
    x1: Math.min(Math.max(x1, left + 1), width),
    y1: Math.min(Math.max(y1, top + 1), height),
  };
}

function middle({ width, height }) {
  const [x, y] = [Math.floor(width / 4), Math.floor(height / 4)];
  return clipped({ x0: x, y0: y, x1: width - x, y1: height - y }, { width, height });
}
