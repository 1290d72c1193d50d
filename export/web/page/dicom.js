// DICOM through dicom-parser: CT in Hounsfield units and the file's orientation, as organ_infer/images/dicom.py reads it.

import { checkSize } from "./gray.js";
import { orientationOfCosines } from "./orientation.js";

const TAGS = {
  BitsAllocated: "x00280100",
  BitsStored: "x00280101",
  Columns: "x00280011",
  ImageOrientationPatient: "x00200037",
  ImageType: "x00080008",
  Modality: "x00080060",
  ModalityLUTSequence: "x00283000",
  NumberOfFrames: "x00280008",
  PerFrameFunctionalGroupsSequence: "x52009230",
  PhotometricInterpretation: "x00280004",
  PixelData: "x7fe00010",
  PixelMeasuresSequence: "x00289110",
  PixelRepresentation: "x00280103",
  PixelSpacing: "x00280030",
  PixelValueTransformationSequence: "x00289145",
  PlaneOrientationSequence: "x00209116",
  RescaleIntercept: "x00281052",
  RescaleSlope: "x00281053",
  RescaleType: "x00281054",
  Rows: "x00280010",
  SOPClassUID: "x00080016",
  SamplesPerPixel: "x00280002",
  SharedFunctionalGroupsSequence: "x52009229",
  TransferSyntaxUID: "x00020010",
};
const REQUIRED = ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"];
// SOP classes, or their beginnings, of objects that hold pixels but no image of CT
const OTHER_OBJECTS = {
  "1.2.840.10008.5.1.4.1.1.66": "a segmentation, surface or registration",
  "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object (dose, structures or plan)",
  "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
  "1.2.840.10008.1.3.10": "a DICOMDIR",
};
const MEDIA_STORAGE_CLASS = "x00020002";
const BIG_ENDIAN = "1.2.840.10008.1.2.2";
const DEFLATED = "1.2.840.10008.1.2.1.99";
const RLE = "1.2.840.10008.1.2.5";
const JPEG_LOSSLESS = ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"];
const NATIVE = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED];
const ENCAPSULATED = [RLE, ...JPEG_LOSSLESS];
// bytes of what a deflated file inflates to
const INFLATED_LIMIT = 2 ** 28;
const RLE_HEADER = 64;

/** Whether the bytes begin as those of a DICOM file do. */
export function isDicom(bytes) {
  return String.fromCharCode(...bytes.subarray(128, 132)) === "DICM";
}

/**
 * Open a DICOM file.
 *
 * @param {Uint8Array} bytes
 * @param {{parser: object, JpegLossless: Function}} packages dicom-parser, and the class Decoder of
 *   jpeg-lossless-decoder-js.
 * @returns {Promise<{frames: number, read: (index: number) => object}>} `read` returns a slice: pixels (int16 HU, or gray of
 *   8 or 16 bits), width, height, warnings, and, if the file states them, orientation and field (height and width in mm).
 */
export async function openDicom(bytes, packages) {
  const dataset = await parsed(bytes, packages.parser);
  checkKind(dataset);
  const modality = text(dataset, "Modality") || "CT";
  if (modality !== "CT") throw new Error(`DICOM: modality ${modality}, not CT; choose CT slices`);
  const header = headerOf(dataset);
  const frames = frameCount(dataset, header);
  return { frames, read: (index) => readFrame(dataset, { ...header, frames }, index, packages) };
}

async function parsed(bytes, parser) {
  try {
    const meta = parser.readPart10Header(bytes);
    if (text(meta, "TransferSyntaxUID") !== DEFLATED) return parser.parseDicom(bytes);
    const inflated = await inflatedAfter(bytes, meta.position);
    return parser.parseDicom(bytes, { inflater: () => inflated });
  } catch (problem) {
    const reason = problem?.exception ?? problem?.message ?? problem;
    if (String(reason).startsWith("DICOM: ")) throw problem;
    throw new Error(`DICOM: cannot be read (${String(reason).slice(0, 120)}); the file is truncated or damaged`);
  }
}

/** Return the file with what is after `position` inflated. */
async function inflatedAfter(bytes, position) {
  const stream = new Blob([bytes.subarray(position)]).stream();
  const reader = stream.pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [bytes.subarray(0, position)];
  let size = 0;
  for (;;) {
    // a dataset is padded to an even length, and the browser refuses bytes after the end of the stream
    const { done, value } = await reader.read().catch((error) => {
      if (size > 0) return { done: true };
      throw error;
    });
    if (done) break;
    size += value.length;
    if (size > INFLATED_LIMIT) {
      reader.cancel().catch(() => {});
      throw new Error(`DICOM: inflates to more than ${INFLATED_LIMIT.toLocaleString("en-US")} bytes`);
    }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** Refuse objects that are no images of slices. */
function checkKind(dataset) {
  const kind = text(dataset, "SOPClassUID") || dataset.string(MEDIA_STORAGE_CLASS) || "";
  for (const [prefix, name] of Object.entries(OTHER_OBJECTS)) {
    if (kind === prefix || kind.startsWith(`${prefix}.`)) {
      throw new Error(`DICOM: ${name}, not a CT image; choose CT slices`);
    }
  }
}

/** Read the attributes that describe the pixels, and refuse what cannot be decoded here. */
function headerOf(dataset) {
  if (!has(dataset, "PixelData")) throw new Error("DICOM: no pixel data");
  const header = Object.fromEntries(REQUIRED.map((name) => [name, dataset.uint16(TAGS[name])]));
  header.PhotometricInterpretation = text(dataset, "PhotometricInterpretation") || undefined;
  for (const [name, value] of Object.entries(header)) {
    if (value === undefined) throw new Error(`DICOM: the attribute ${name} is missing`);
  }
  checkSize(header.Columns, header.Rows);
  if ((dataset.uint16(TAGS.SamplesPerPixel) ?? 1) !== 1) {
    throw new Error("DICOM: color is not supported; CT slices are gray");
  }
  if (!["MONOCHROME1", "MONOCHROME2"].includes(header.PhotometricInterpretation)) {
    throw new Error(
      `DICOM: photometric interpretation ${header.PhotometricInterpretation} is not supported; CT slices are gray`,
    );
  }
  if (has(dataset, "ModalityLUTSequence")) {
    throw new Error("DICOM: a Modality LUT is not supported; only rescale slope and intercept are");
  }
  header.syntax = text(dataset, "TransferSyntaxUID");
  if (![...ENCAPSULATED, ...NATIVE].includes(header.syntax)) {
    throw new Error(
      `DICOM: compressed (transfer syntax ${header.syntax}), which this page does not decode;` +
        " export the series again, uncompressed, or use organ-infer",
    );
  }
  if (![8, 16, 32].includes(header.BitsAllocated)) {
    throw new Error(`DICOM: ${header.BitsAllocated} bits allocated are not supported; expected 8, 16 or 32`);
  }
  return header;
}

function frameCount(dataset, { Rows, Columns, BitsAllocated, syntax }) {
  const count = dataset.intString(TAGS.NumberOfFrames) || 1;
  const { length, fragments } = dataset.elements[TAGS.PixelData];
  const isThere = ENCAPSULATED.includes(syntax)
    ? count <= (fragments?.length ?? 0)
    : count * Rows * Columns * (BitsAllocated / 8) <= length;
  if (isThere) return count;
  throw new Error(
    `DICOM: header declares ${count.toLocaleString("en-US")} frames of ${Columns} x ${Rows} pixels, found` +
      ` ${length.toLocaleString("en-US")} bytes of pixels; the file is truncated or damaged`,
  );
}

/** Return one frame in HU or gray, with its orientation. */
function readFrame(dataset, header, index, packages) {
  const warnings = kindWarnings(dataset);
  const stored = storedBits(storedPixels(dataset, header, index, packages), header);
  const rescale = functionalGroup(dataset, index, "PixelValueTransformationSequence");
  const hasRescale = has(rescale, "RescaleSlope") || has(rescale, "RescaleIntercept");
  const pixels =
    hasRescale && !isDisplayed(header, rescale)
      ? hounsfield(rescale, stored, warnings)
      : displayedGray(header, stored, warnings);
  const plane = functionalGroup(dataset, index, "PlaneOrientationSequence");
  const orientation = orientationOfCosines(numbers(plane, "ImageOrientationPatient"));
  if (orientation === null) {
    warnings.push(
      "no ImageOrientationPatient; orientation unknown, used as stored unless an orientation is given",
    );
  }
  const measures = functionalGroup(dataset, index, "PixelMeasuresSequence");
  const [width, height] = [header.Columns, header.Rows];
  return { pixels, width, height, warnings, orientation, field: fieldOf(numbers(measures, "PixelSpacing"), height, width) };
}

/** Return the stored numbers of one frame. */
function storedPixels(dataset, header, index, { parser, JpegLossless }) {
  const { Rows, Columns, BitsAllocated, PixelRepresentation, syntax } = header;
  const element = dataset.elements[TAGS.PixelData];
  const size = BitsAllocated / 8;
  const kinds = { 8: [Uint8Array, Int8Array], 16: [Uint16Array, Int16Array], 32: [Uint32Array, Int32Array] };
  const Kind = kinds[BitsAllocated][PixelRepresentation ? 1 : 0];
  if (JPEG_LOSSLESS.includes(syntax)) {
    return Kind.from(jpegDecoded(encapsulatedFrame(dataset, element, header, index, parser), header, JpegLossless));
  }
  let bytes;
  if (syntax === RLE) {
    bytes = rleDecoded(encapsulatedFrame(dataset, element, header, index, parser), Rows * Columns, size);
  } else {
    const length = Rows * Columns * size;
    const start = element.dataOffset + index * length;
    bytes = dataset.byteArray.slice(start, start + length);
  }
  const view = new DataView(bytes.buffer);
  const get = `get${PixelRepresentation ? "Int" : "Uint"}${BitsAllocated}`;
  return new Kind(Rows * Columns).map((_, i) => view[get](i * size, syntax !== BIG_ENDIAN));
}

/** Return the bytes of one compressed frame. */
function encapsulatedFrame(dataset, element, { frames }, index, parser) {
  const { fragments, basicOffsetTable } = element;
  if (basicOffsetTable.length > 0) return parser.readEncapsulatedImageFrame(dataset, element, index);
  if (frames === 1) return parser.readEncapsulatedPixelDataFromFragments(dataset, element, 0, fragments.length);
  if (fragments.length === frames) return parser.readEncapsulatedPixelDataFromFragments(dataset, element, index);
  throw new Error("DICOM: frames in several fragments without a table of their offsets are not supported");
}

/** Decode one frame of JPEG Lossless. */
function jpegDecoded(frame, { Rows, Columns }, JpegLossless) {
  const decoder = new JpegLossless();
  let decoded;
  try {
    decoded = decoder.decode(frame.slice().buffer, 0, frame.length);
  } catch {
    throw new Error("DICOM: the JPEG data is truncated or damaged");
  }
  const { dimX, dimY, numComp } = decoder.frame;
  if (dimX !== Columns || dimY !== Rows || numComp !== 1 || decoded.length !== Rows * Columns) {
    throw new Error("DICOM: the JPEG data has another size than the header declares");
  }
  return decoded;
}

/** Decode one frame of RLE Lossless: a segment per byte of a pixel, the highest byte first. */
function rleDecoded(frame, count, size) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const segments = frame.length < RLE_HEADER ? 0 : view.getUint32(0, true);
  if (segments !== size) throw new Error("DICOM: the RLE data is damaged");
  const bytes = new Uint8Array(count * size);
  for (let segment = 0; segment < size; segment++) {
    let position = view.getUint32(4 + 4 * segment, true);
    let filled = 0;
    while (filled < count && position < frame.length) {
      const control = view.getInt8(position++);
      const run = control >= 0 ? control + 1 : 1 - control;
      for (let k = 0; control !== -128 && k < run && filled < count; k++) {
        bytes[filled++ * size + (size - 1 - segment)] = frame[control >= 0 ? position + k : position];
      }
      if (control !== -128) position += control >= 0 ? run : 1;
    }
    if (filled < count) throw new Error("DICOM: the RLE data is truncated or damaged");
  }
  return bytes;
}

/** Drop what is above the stored bits, where old files keep overlays. */
function storedBits(stored, { BitsStored, BitsAllocated, PixelRepresentation }) {
  if (!(BitsStored > 0 && BitsStored < BitsAllocated)) return stored;
  const shift = 32 - BitsStored;
  // the highest stored bit is the sign
  return stored.map((pixel) => (PixelRepresentation ? (pixel << shift) >> shift : (pixel << shift) >>> shift));
}

/** Warnings about what the image shows, from its header. */
function kindWarnings(dataset) {
  const values = text(dataset, "ImageType").split("\\").map((value) => value.trim());
  const warnings = [];
  if (values.includes("LOCALIZER")) warnings.push("implausible: localizer image, not an axial slice");
  if (values.some((value) => value.includes("DOSE") || value === "SCREEN SAVE")) {
    warnings.push("implausible: dose report or screenshot, not a slice");
  }
  return warnings;
}

/** Whether a rescale of slope 1 and intercept 0 stands in an image of up to 8 bits, which cannot hold HU. */
function isDisplayed({ BitsStored, PixelRepresentation }, rescale) {
  const { slope, intercept } = rescaleOf(rescale);
  return slope === 1 && intercept === 0 && BitsStored <= 8 && !PixelRepresentation;
}

function rescaleOf(rescale) {
  const slope = numbers(rescale, "RescaleSlope")?.[0] || 1;
  return { slope, intercept: numbers(rescale, "RescaleIntercept")?.[0] || 0 };
}

/** Return the dataset with a frame's attributes: its own functional group, the shared one, or the whole file. */
function functionalGroup(dataset, index, sequence) {
  const own = dataset.elements[TAGS.PerFrameFunctionalGroupsSequence]?.items?.[index];
  const shared = dataset.elements[TAGS.SharedFunctionalGroupsSequence]?.items?.[0];
  for (const group of [own, shared]) {
    const item = group?.dataSet.elements[TAGS[sequence]]?.items?.[0];
    if (item) return item.dataSet;
  }
  return dataset;
}

function hounsfield(rescale, stored, warnings) {
  const { slope, intercept } = rescaleOf(rescale);
  if (!Number.isFinite(slope) || !Number.isFinite(intercept)) {
    throw new Error("DICOM: rescale slope or intercept is not a finite number");
  }
  const kind = text(rescale, "RescaleType") || "HU";
  if (kind !== "HU") warnings.push(`rescale type ${kind} read as HU`);
  return Int16Array.from(stored, (pixel) => Math.min(Math.max(rounded(pixel * slope + intercept), -32768), 32767));
}

function displayedGray({ BitsStored, PixelRepresentation, PhotometricInterpretation }, stored, warnings) {
  if (PixelRepresentation || BitsStored > 16) {
    throw new Error("DICOM: signed or 32-bit pixels without a rescale slope have no known unit");
  }
  warnings.push(`implausible: no rescale to HU; read as ${BitsStored}-bit gray of unknown units`);
  const highest = 2 ** BitsStored - 1;
  const isInverted = PhotometricInterpretation === "MONOCHROME1";
  if (isInverted) warnings.push("inverted, because 0 is white in this file");
  const [kind, most] = BitsStored <= 8 ? [Uint8Array, 255] : [Uint16Array, 65_535];
  return kind.from(stored, (pixel) => rounded((isInverted ? highest - pixel : pixel) * (most / highest)));
}

/** Return height and width in millimeters, or null if PixelSpacing is missing or makes no sense. */
function fieldOf(spacing, rows, columns) {
  if (spacing?.length !== 2) return null;
  const field = [rows * spacing[0], columns * spacing[1]];
  return field.every((side) => side > 0 && side < Infinity) ? field : null;
}

/** Round half to even, as NumPy does. */
function rounded(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

function has(dataset, name) {
  return TAGS[name] in dataset.elements;
}

function text(dataset, name) {
  return (dataset.string(TAGS[name]) ?? "").trim();
}

/** Return the decimal numbers of an attribute, or null if it is missing or empty. */
function numbers(dataset, name) {
  const value = text(dataset, name);
  return value === "" ? null : value.split("\\").map(Number);
}
