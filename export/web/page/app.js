// The page: files come in, answers are shown.

import { describedOrientation, showManifest } from "./about.js";
import { BoxEditor } from "./box.js";
import { drawPacked, drawSlice, drawThumbnail, element } from "./display.js";
import { cutBox, openFile, prepared } from "./files.js";
import { loadModel } from "./model.js";
import { orientationsLike } from "./orientation.js";
import { Decoder } from "./vendor/lossless-min.js";

// images in the list, probabilities of an answer, pixels of a thumbnail, and pixels of a slice on the screen
const IMAGE_LIMIT = 1000;
const BARS = 12;
const THUMBNAIL = 96;
const SHOWN_SIDE = 448;
// the usual display of each plane
const USUAL = ["PL", "FL", "FP"];
const UNITS = { Uint8Array: "8-bit gray", Uint16Array: "16-bit gray", Int16Array: "HU" };

// dicom-parser is not a module; it runs before this one
const PACKAGES = { parser: globalThis.dicomParser, JpegLossless: Decoder };

const find = (id) => document.getElementById(id);
const items = [];
let model;
let current = null;
// the opened file of `current`
let opened = null;
let editor;
// functions to call, one at a time
const pending = [];
let isWorking = false;

start();

async function start() {
  try {
    model = await loadModel(showProgress);
  } catch (error) {
    find("status").classList.add("alarm");
    find("status").textContent = error.message;
    return;
  }
  find("status").hidden = true;
  find("work").hidden = false;
  const fields = Object.fromEntries(["x0", "y0", "x1", "y1"].map((id) => [id, find(id)]));
  editor = new BoxEditor({ canvas: find("canvas"), rectangle: find("rectangle"), fields, onChange: changeBox });
  showManifest(model.manifest, model.networks);
  fillOrientations();
  listen();
}

function showProgress(loaded, total) {
  const [done, all] = [loaded, total].map((bytes) => (bytes / 1e6).toFixed(1));
  find("status").textContent = `Loading the model: ${done} of ${all} MB`;
}

function fillOrientations() {
  const expected = model.manifest.input.orientation?.join("");
  if (!expected) {
    find("orientation").parentElement.hidden = true;
    return;
  }
  const choices = orientationsLike(expected).map((letters) => {
    const hint = letters === expected ? " (the model's)" : USUAL.includes(letters) ? " (the usual display)" : "";
    return element("option", { value: letters, textContent: describedOrientation(letters) + hint });
  });
  find("orientation").replaceChildren(element("option", { value: "", textContent: "as the model expects" }), ...choices.slice(1));
}

function listen() {
  find("files").addEventListener("change", () => {
    addFiles([...find("files").files]);
    find("files").value = "";
  });
  find("clear-box").addEventListener("click", () => {
    editor.show(null);
    changeBox(null);
    find("canvas").focus();
  });
  find("frame").addEventListener("change", changeFrame);
  find("orientation").addEventListener("change", () => items.forEach((item) => enqueue(() => classify(item))));
  document.addEventListener("paste", (event) => addPasted([...event.clipboardData.files], "the clipboard"));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) find("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    find("drop").classList.remove("over");
    addPasted([...event.dataTransfer.files], "what was dropped");
  });
}

function addPasted(files, source) {
  find("status").hidden = files.length > 0;
  if (files.length === 0) find("status").textContent = `${source}: no file in it; choose PNG, JPEG or DICOM files`;
  addFiles(files);
}

/** Add files to the list, classify them, and show the first. */
function addFiles(files) {
  const room = IMAGE_LIMIT - items.length;
  if (files.length > room) {
    find("status").textContent = `only ${room} of ${files.length} files were added; the list holds ${IMAGE_LIMIT}`;
    find("status").hidden = false;
  }
  const added = files.slice(0, Math.max(room, 0)).map(newItem);
  if (added.length > 0) select(added[0]);
  for (const item of added.slice(1)) enqueue(() => classify(item));
}

function newItem(file) {
  const item = { file, frame: 0, frames: 1, box: null, source: null, prediction: null, error: null, button: null };
  item.button = element("button", { type: "button" }, element("canvas", { width: 1, height: 1 }));
  item.button.append(
    element("span", { className: "answered", textContent: "..." }),
    element("span", { className: "path", textContent: file.name }),
  );
  item.button.addEventListener("click", () => select(item));
  items.push(item);
  find("images").append(element("li", {}, item.button));
  find("list").hidden = items.length < 2;
  return item;
}

/** Call a function after those that were asked for before, or, if it is for the image on the page, next. */
async function enqueue(work, isUrgent = false) {
  if (isUrgent) pending.unshift(work);
  else pending.push(work);
  if (isWorking) return;
  isWorking = true;
  while (pending.length > 0) await pending.shift()();
  isWorking = false;
}

/** Show an item, and classify it again, because only one file is kept open. */
function select(item) {
  current = item;
  opened = null;
  for (const each of items) each.button.setAttribute("aria-current", String(each === item));
  enqueue(() => classify(item), true);
}

function changeBox(box) {
  const item = current;
  item.box = box;
  enqueue(() => item.box === box && classify(item), true);
}

function changeFrame() {
  const frame = Math.round(find("frame").valueAsNumber) || 0;
  current.frame = Math.min(Math.max(frame, 0), current.frames - 1);
  const item = current;
  enqueue(() => classify(item), true);
}

/** Read and classify an item, and show the answer in the list and, if it is selected, on the page. */
async function classify(item) {
  let slice = null;
  try {
    const file = item === current && opened ? opened : await openFile(item.file, PACKAGES);
    if (item === current) opened = file;
    item.frames = file.frames;
    slice = file.read(item.frame);
    const crop = item.box ? cutBox(slice, item.box) : slice;
    const chosen = find("orientation").value || null;
    item.source = { width: crop.width, height: crop.height, kind: crop.pixels.constructor.name };
    item.prediction = await model.predict(prepared(crop, chosen, model.manifest.input));
    item.error = null;
  } catch (error) {
    item.prediction = null;
    item.error = error.message ?? String(error);
  }
  showInList(item, slice);
  if (item === current) show(item, slice);
}

function showInList(item, slice) {
  const { button, prediction, error } = item;
  const [thumbnail, answer, name] = button.children;
  name.textContent = nameOf(item);
  answer.textContent = error ?? `${prediction.label} ${prediction.probability.toFixed(3)}`;
  answer.classList.toggle("failed", error !== null);
  if (slice) {
    const whole = element("canvas");
    drawSlice(whole, slice, model.manifest.input.window);
    drawThumbnail(thumbnail, whole, THUMBNAIL);
  }
}

/** Show the selected item. */
function show(item, slice) {
  const isStack = item.frames > 1;
  find("empty").hidden = true;
  find("drop").classList.add("filled");
  for (const id of ["viewer", "box-fields", "options"]) find(id).hidden = slice === null;
  find("frame-label").hidden = !isStack;
  find("frame").max = item.frames - 1;
  find("frame").value = item.frame;
  if (slice) {
    showSlice(slice);
    editor.show(item.box);
  }
  find("result").hidden = item.prediction === null;
  find("failure").hidden = item.error === null;
  if (item.error === null) showAnswer(item);
  else find("failure").textContent = `${nameOf(item)}: ${item.error}`;
  const { prediction } = item;
  find("announcement").textContent = prediction
    ? `${nameOf(item)}: ${prediction.label}, probability ${prediction.probability.toFixed(3)}`
    : "";
}

/** The name that organ-infer gives the slice: the file, the frame and the box. */
function nameOf({ file, frame, frames, box }) {
  const edges = box ? `[${box.x0}:${box.x1},${box.y0}:${box.y1}]` : "";
  return `${file.name}${frames > 1 ? `#${frame}` : ""}${edges}`;
}

function showSlice(slice) {
  const canvas = find("canvas");
  drawSlice(canvas, slice, model.manifest.input.window);
  canvas.style.width = `${Math.round((SHOWN_SIDE * slice.width) / Math.max(slice.width, slice.height))}px`;
  canvas.style.imageRendering = Math.max(slice.width, slice.height) < SHOWN_SIDE / 2 ? "pixelated" : "auto";
  const note = find("orientation-note");
  note.hidden = !slice.orientation;
  find("orientation").parentElement.hidden = Boolean(slice.orientation) || !model.manifest.input.orientation;
  const target = model.manifest.input.orientation?.join("");
  const change = target && target !== slice.orientation ? `; reoriented to the model's ${target}` : "";
  if (slice.orientation) {
    note.textContent = `Orientation from the file: ${describedOrientation(slice.orientation)}${change}.`;
  }
}

function showAnswer(item) {
  const { manifest } = model;
  const { prediction } = item;
  const { classes } = manifest.task;
  find("name").textContent = nameOf(item);
  find("label").textContent = prediction.label;
  find("probability").textContent = prediction.probability.toFixed(3);
  find("organ").hidden = classes.includes(prediction.organ);
  find("organ").textContent = `${prediction.organ}, both sides together: ${prediction.organProbability.toFixed(3)}`;
  const order = [...classes.keys()].sort((a, b) => prediction.probabilities[b] - prediction.probabilities[a]);
  find("bars").replaceChildren(...order.slice(0, BARS).map((i) => bar(classes[i], prediction.probabilities[i])));
  if (order.length > BARS) {
    const textContent = `${order.length - BARS} less probable classes are not shown`;
    find("bars").append(element("li", { className: "rest", textContent }));
  }
  find("plausibility").hidden = prediction.plausibility === null;
  find("plausibility").textContent = `Plausibility of an organ crop: ${prediction.plausibility?.toFixed(3)}`;
  find("warnings").replaceChildren(
    ...prediction.warnings.map((textContent) =>
      element("li", { textContent, className: textContent.startsWith("implausible: ") ? "implausible" : "" }),
    ),
  );
  drawPacked(find("seen"), prediction.packed, manifest.input);
  const { width, height, kind } = item.source;
  find("size").textContent = `from ${width} x ${height} pixels, ${UNITS[kind]}`;
  find("time").textContent = `${prediction.milliseconds.toFixed(1)} ms for this slice`;
}

function bar(name, probability) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${100 * probability}%`;
  return element(
    "li",
    {},
    element("span", { className: "class", textContent: name }),
    element("span", { className: "track" }, fill),
    element("span", { className: "value", textContent: probability.toFixed(3) }),
  );
}
