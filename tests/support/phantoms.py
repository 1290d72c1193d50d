"""A phantom of a patient: ellipsoids and tubes of known HU, written in every format and orientation."""

import gzip
import io
import itertools
import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

from support.image_files import dicom

# voxels along x, y and z, toward the patient's left, back and head; all different, so that no exchange goes unseen
SHAPE = (17, 15, 12)
# millimeters
SPACING = (6.0, 7.0, 8.0)
ORIGIN = (-51.5, 23.25, 400.0)
# class -> (center and half axes as parts of the shape, HU); the tubes have no third half axis
ORGANS = {
    "liver": ((0.3, 0.4, 0.6), (0.18, 0.25, 0.2), 60),
    "spleen": ((0.8, 0.7, 0.6), (0.1, 0.12, 0.15), 50),
    "kidney-right": ((0.3, 0.8, 0.4), (0.08, 0.1, 0.2), 33),
    "kidney-left": ((0.7, 0.75, 0.3), (0.08, 0.1, 0.2), 31),
    "femur-left": ((0.8, 0.4, 0.0), (0.1, 0.1, None), 700),
}
# all 48 orders and directions of three axes
ORIENTATIONS = [
    (order, flips)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


@dataclass(frozen=True)
class Phantom:
    """A scan with its labels.

    Attributes:
        hu: int16 (X, Y, Z).
        labels: uint8 (X, Y, Z), the organs' places in ORGANS, counted from 1.
        affine: float64 (4, 4), from indices to LPS millimeters.
    """

    hu: np.ndarray
    labels: np.ndarray
    affine: np.ndarray

    def turned(self, order, flips):
        """The same scan with its axes in another order and direction."""
        chosen = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        steps = np.zeros((4, 4))
        steps[3, 3] = 1
        for new, old in enumerate(order):
            steps[old, new] = -1 if flips[new] else 1
            steps[old, 3] += self.hu.shape[old] - 1 if flips[new] else 0
        return Phantom(
            np.ascontiguousarray(self.hu.transpose(order)[chosen]),
            np.ascontiguousarray(self.labels.transpose(order)[chosen]),
            self.affine @ steps,
        )

    def with_hu(self, hu):
        return replace(self, hu=hu)


def phantom(shape=SHAPE, spacing=SPACING):
    """A body with organs, in air. No two neighbors are equal, so that every exchange of voxels shows."""
    grid = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")
    hu = np.full(shape, -1000, np.int16)
    hu[((grid[0] - 0.5) / 0.48) ** 2 + ((grid[1] - 0.5) / 0.45) ** 2 <= 1] = -100
    labels = np.zeros(shape, np.uint8)
    for number, (center, half, value) in enumerate(ORGANS.values(), 1):
        inside = (
            sum(
                ((axis - c) / h) ** 2
                for axis, c, h in zip(grid, center, half, strict=True)
                if h is not None
            )
            <= 1
        )
        if half[2] is None:
            inside &= grid[2] < 0.3
        labels[inside], hu[inside] = number, value
    noise = np.random.default_rng(11).integers(-15, 16, shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = ORIGIN
    return Phantom((hu + noise).astype(np.int16), labels, affine)


def in_patient_axes(array, affine):
    """An array and its affine with the axes toward left, back and head."""
    order = np.abs(affine[:3, :3]).argmax(axis=1)
    array, affine = array.transpose(order), affine[:, [*order, 3]].copy()
    for axis in range(3):
        if affine[axis, axis] < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return array, affine


# Writers. x changes fastest in all three formats.

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NIFTI_TYPES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768}


def nifti(array, affine, form="sform", order="<", version=1, extension=b"", **fields):
    """A NIfTI file.

    Args:
        array: (X, Y, Z).
        affine: From indices to LPS millimeters.
        form: "sform", "qform" (of right angles) or "".
        order: Of the bytes.
        version: 1 or 2.
        extension: The content of a header extension, its size a multiple of 16 with 8 bytes before it.
        **fields: dim, datatype, slope, intercept, units, offset, codes.
    """
    ras = RAS @ affine
    with np.errstate(invalid="ignore"):
        rotation = ras[:3, :3] / (spacing := np.linalg.norm(ras[:3, :3], axis=0))
    kind = NIFTI_TYPES.get(array.dtype.str[1:], 0)
    dim = list(fields.get("dim", (array.ndim, *array.shape)))
    dim += [1] * (8 - len(dim))
    qfac, quaternion = _quaternion(rotation)
    codes = fields.get("codes", (int(form == "qform"), int(form == "sform")))
    size = 348 if version == 1 else 540
    data_start = size + 4 + (len(extension) + 8 if extension else 0)
    offset = fields.get("offset", data_start)
    header = bytearray(size)

    def put(at, code, *values):
        struct.pack_into(order + code, header, at, *values)

    at = (
        (40, 70, 76, 108, 112, 123, 252, 256, 280)
        if version == 1
        else (16, 12, 104, 168, 176, 500, 344, 352, 400)
    )
    real, whole = ("f", "h") if version == 1 else ("d", "i")
    put(0, "i", size)
    put(at[0], "8h" if version == 1 else "8q", *dim)
    put(at[1], "h", fields.get("datatype", kind))
    put(at[2], f"8{real}", qfac, *spacing, 0, 0, 0, 0)
    put(at[3], "f" if version == 1 else "q", offset)
    put(at[4], f"2{real}", fields.get("slope", 0), fields.get("intercept", 0))
    put(at[5], "B" if version == 1 else "i", fields.get("units", 2))
    put(at[6], f"2{whole}", *codes)
    put(at[7], f"6{real}", *quaternion, *ras[:3, 3])
    put(at[8], f"12{real}", *ras[:3].ravel())
    if version == 1:
        header[344:348] = fields.get("magic", b"n+1\0")
    else:
        header[4:12] = b"n+2\0\r\n\x1a\n"
    extended = b"\0" * 4
    if extension:
        extended = b"\1\0\0\0" + struct.pack(f"{order}2i", len(extension) + 8, 0) + extension
    voxels = array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    return bytes(header) + extended + voxels


def _quaternion(rotation):
    """qfac, and b, c, d of a rotation: the eigenvector of the largest eigenvalue (Bar-Itzhack)."""
    if not np.isfinite(rotation).all():
        return 1.0, [0.0] * 3
    qfac = -1.0 if np.linalg.det(rotation) < 0 else 1.0
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation * [1, 1, qfac]
    matrix = (
        np.array(
            [
                [xx - yy - zz, yx + xy, zx + xz, zy - yz],
                [yx + xy, yy - xx - zz, zy + yz, xz - zx],
                [zx + xz, zy + yz, zz - xx - yy, yx - xy],
                [zy - yz, xz - zx, yx - xy, xx + yy + zz],
            ]
        )
        / 3
    )
    b, c, d, a = np.linalg.eigh(matrix)[1][:, -1]
    return qfac, (np.array([b, c, d]) * (-1 if a < 0 else 1)).tolist()


NRRD_TYPES = {"u1": "uint8", "i2": "short", "i4": "int", "f4": "float", "u2": "uint16"}


def nrrd(array, affine, encoding="gzip", space="left-posterior-superior", lines=(), **fields):
    """An NRRD file. lines: further lines of the header."""
    sign = [-1, -1, 1] if space.startswith("right") else [1, 1, 1]
    own = np.diag([*sign, 1]) @ affine
    directions = " ".join(f"({','.join(map(repr, column))})" for column in own[:3, :3].T.tolist())
    header = [
        "NRRD0005",
        f"type: {fields.get('type', NRRD_TYPES.get(array.dtype.str[1:]))}",
        f"dimension: {array.ndim}",
        f"space: {space}",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {directions}",
        "endian: little",
        f"encoding: {encoding}",
        f"space origin: ({','.join(map(repr, own[:3, 3].tolist()))})",
        *lines,
    ]
    header = [line for line in header if line.split(":")[0] not in fields.get("without", ())]
    voxels = array.tobytes(order="F")
    if encoding == "gzip":
        voxels = gzip.compress(voxels)
    elif encoding == "bzip2":
        import bz2

        voxels = bz2.compress(voxels)
    return "\n".join(header).encode() + b"\n\n" + voxels


META_TYPES = {"u1": "MET_UCHAR", "i2": "MET_SHORT", "i4": "MET_INT", "f4": "MET_FLOAT"}


def metaimage(array, affine, compressed=True, file="LOCAL", without=()):
    """An .mha file, or the header of an .mhd file if `file` names its data."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    matrix = (affine[:3, :3] / spacing).T.ravel()
    voxels = array.tobytes(order="F")
    voxels = zlib.compress(voxels) if compressed else voxels
    fields = {
        "ObjectType": "Image",
        "NDims": array.ndim,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": compressed,
        **({"CompressedDataSize": len(voxels)} if compressed else {}),
        "TransformMatrix": " ".join(map(repr, matrix.tolist())),
        "Offset": " ".join(map(repr, affine[:3, 3].tolist())),
        "ElementSpacing": " ".join(map(repr, spacing.tolist())),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": META_TYPES[array.dtype.str[1:]],
        "ElementDataFile": file,
    }
    header = "".join(f"{name} = {value}\n" for name, value in fields.items() if name not in without)
    return header.encode() + (voxels if file == "LOCAL" else b"")


def series(scan, intercept=-1024, seed=5, **fields):
    """The files of a DICOM series, {name: bytes}, in an order that is not that of the slices."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    directions = scan.affine[:3, :3] / spacing
    count = scan.hu.shape[2]
    names = np.random.default_rng(seed).permutation(count)
    uid = fields.pop("uid", "1.2.826.1")
    own = {
        "SeriesInstanceUID": uid,
        "SeriesNumber": 3,
        "RescaleSlope": 1,
        "RescaleIntercept": intercept,
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "PixelSpacing": [spacing[1], spacing[0]],
        "ImageOrientationPatient": [*directions[:, 0].tolist(), *directions[:, 1].tolist()],
        **fields,
    }
    own = {name: value for name, value in own.items() if value is not None}
    files = {}
    for k in range(count):
        position = scan.affine[:3, 3] + k * scan.affine[:3, 2]
        # rows are y, columns are x
        stored = (scan.hu[:, :, k].T.astype(np.int32) - intercept).astype(np.uint16)
        place = {
            "SOPInstanceUID": f"{uid}.{k + 1}",
            "InstanceNumber": int(names[k]) + 1,
            "ImagePositionPatient": position.tolist(),
        }
        files[f"IM{names[k]:04d}"] = dicom(stored, **{**place, **own})
    return files


def multi_frame(scan, intercept=-1024, seed=6):
    """An enhanced CT file. Its frames are in another order than the slices."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    directions = scan.affine[:3, :3] / spacing
    order = np.random.default_rng(seed).permutation(scan.hu.shape[2])
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [
        *directions[:, 0].tolist(),
        *directions[:, 1].tolist(),
    ]
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [spacing[1], spacing[0]]
    shared.PixelValueTransformationSequence = Sequence([Dataset()])
    shared.PixelValueTransformationSequence[0].RescaleSlope = 1
    shared.PixelValueTransformationSequence[0].RescaleIntercept = intercept
    stored = (scan.hu.transpose(2, 1, 0)[order].astype(np.int32) - intercept).astype(np.uint16)
    return dicom(
        stored,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([_at(scan, k) for k in order]),
    )


def _at(scan, k, segment=None):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    group = Dataset()
    group.PlanePositionSequence = Sequence([Dataset()])
    position = scan.affine[:3, 3] + k * scan.affine[:3, 2]
    group.PlanePositionSequence[0].ImagePositionPatient = position.tolist()
    if segment is not None:
        group.SegmentIdentificationSequence = Sequence([Dataset()])
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = segment
    return group


def segmentation(scan, structures, fractional=False, seed=7, **fields):
    """A DICOM SEG: only frames with voxels, in any order.

    Args:
        scan: Its affine is that of the frames.
        structures: Label, or (label, code meaning, modifier) -> bool (X, Y, Z). They may overlap.
        fractional: Whether voxels are parts of 200.
        seed: Of the order.
        **fields: Further attributes.
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    directions = scan.affine[:3, :3] / spacing
    frames = [
        (number, k, voxels[:, :, k].T)
        for number, voxels in enumerate(structures.values(), 1)
        for k in range(voxels.shape[2])
        if voxels[:, :, k].any()
    ]
    frames = [frames[i] for i in np.random.default_rng(seed).permutation(len(frames))]
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [
        *directions[:, 0].tolist(),
        *directions[:, 1].tolist(),
    ]
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [spacing[1], spacing[0]]
    pixels = np.stack([frame for _, _, frame in frames])
    if fractional:
        # just below half outside, just above inside
        bits, data = 8, np.where(pixels, 101, 99).astype(np.uint8)
    else:
        bits, data = 1, np.packbits(pixels, bitorder="little")
    whole = dicom(
        np.zeros(pixels.shape, np.uint8),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4",
        Modality="SEG",
        SegmentationType="FRACTIONAL" if fractional else "BINARY",
        MaximumFractionalValue=200,
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelData=data.tobytes() + b"\0" * (data.nbytes % 2),
        SegmentSequence=Sequence([_segment(i, name) for i, name in enumerate(structures, 1)]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(
            [_at(scan, k, number) for number, k, _ in frames]
        ),
        **fields,
    )
    return whole


def label_segmentation(scan, names):
    """A DICOM SEG whose pixels are the phantom's labels. Slices without a label are left out.

    Args:
        scan: The phantom.
        names: The segments' labels, in the order of their numbers.
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    directions = scan.affine[:3, :3] / spacing
    chosen = [k for k in range(scan.labels.shape[2]) if scan.labels[:, :, k].any()]
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [
        *directions[:, 0].tolist(),
        *directions[:, 1].tolist(),
    ]
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [spacing[1], spacing[0]]
    return dicom(
        np.ascontiguousarray(scan.labels.transpose(2, 1, 0)[chosen]),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66.7",
        Modality="SEG",
        SegmentationType="LABELMAP",
        SegmentSequence=Sequence([_segment(i, name) for i, name in enumerate(names, 1)]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([_at(scan, k) for k in chosen]),
    )


def _segment(number, name):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    label, meaning, modifier = name if isinstance(name, tuple) else (name, None, None)
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = number, label
    if meaning:
        code = Dataset()
        code.CodeMeaning = meaning
        if modifier:
            side = Dataset()
            side.CodeMeaning = modifier
            code.SegmentedPropertyTypeModifierCodeSequence = Sequence([side])
        segment.SegmentedPropertyTypeCodeSequence = Sequence([code])
    return segment


def contours(scan, structures, **fields):
    """An RTSTRUCT.

    Args:
        scan: Its affine.
        structures: Name -> bool (X, Y, Z), whose runs along x become rectangles, or a list of contours,
            (N, 3) each in indices.
        **fields: Further attributes.
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    regions, drawn = [], []
    for number, (name, shape) in enumerate(structures.items(), 1):
        region, own = Dataset(), Dataset()
        region.ROINumber = own.ReferencedROINumber = number
        region.ROIName = name
        lines = shape if isinstance(shape, list) else list(_rectangles(shape))
        own.ContourSequence = Sequence([])
        for line in lines:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            places = np.asarray(line) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
            contour.ContourData = [round(value, 4) for value in places.ravel().tolist()]
            own.ContourSequence.append(contour)
        regions.append(region)
        drawn.append(own)
    return dicom(
        np.zeros((2, 2), np.uint8),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3",
        Modality="RTSTRUCT",
        StructureSetROISequence=Sequence(regions),
        ROIContourSequence=Sequence(drawn),
        **fields,
    )


def _rectangles(voxels):
    for z, y in np.argwhere(voxels.any(axis=0).T):
        edges = np.flatnonzero(np.diff(np.r_[0, voxels[:, y, z].astype(int), 0]))
        for start, stop in edges.reshape(-1, 2) - 0.5:
            yield [(start, y - 0.4, z), (stop, y - 0.4, z), (stop, y + 0.4, z), (start, y + 0.4, z)]


def write_series(directory, files):
    """Write {name: bytes} into a new directory, and return its path."""
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def zipped(files):
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
