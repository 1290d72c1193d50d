"""Headers of MetaImage, .mha and .mhd (https://itk.org/Wiki/ITK/MetaIO/Documentation)."""

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, short_repr
from .grid import check_shape
from .nrrd import beside
from .voxel_files import Header, Voxels, read_header_bytes

__all__ = ["read_metaimage_header"]

# bytes
HEADER_LIMIT = 1 << 16
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_metaimage_header(path: str) -> Header:
    """Read the header of an .mha file, or of an .mhd file beside its data.

    Raises:
        ImageError: If the file is not one volume in a known geometry.
    """
    data, _ = read_header_bytes(path, HEADER_LIMIT)
    fields, size = _parse(data)
    kind, file = fields.get("ElementType", ""), fields["ElementDataFile"]
    if int(fields.get("ElementNumberOfChannels", "1") or 1) != 1:
        raise ImageError("MetaImage: several values per voxel; CT has one")
    if kind not in _DTYPES:
        raise ImageError(
            f"MetaImage: ElementType {short_repr(kind)} is not supported; write the scan as MET_SHORT"
        )
    if not _is_true(fields.get("BinaryData", "True")):
        raise ImageError("MetaImage: voxels as text are not supported; write them as binary data")
    shape = check_shape(tuple(int(side) for side in _numbers(fields, "DimSize")))
    affine = _affine(fields)
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    dtype = np.dtype((">" if _is_true(big) else "<") + _DTYPES[kind])
    compression = "zlib" if _is_true(fields.get("CompressedData", "False")) else ""
    if int(fields.get("HeaderSize", "0") or 0):
        raise ImageError("MetaImage: HeaderSize is not supported; convert the scan to .mha")
    if file.upper() == "LOCAL":
        voxels = Voxels(path, size, compression)
    else:
        voxels = Voxels(beside(path, file, "MetaImage"), 0, compression)
    return Header(
        title="MetaImage",
        shape=shape,
        affine=affine,
        dtype=dtype,
        voxels=voxels,
    )


def _parse(data: bytes) -> tuple[dict[str, str], int]:
    """Return the fields, and the bytes up to the end of the last one, ElementDataFile."""
    fields: dict[str, str] = {}
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        name, _, value = data[position:end].decode("utf-8", "replace").partition("=")
        fields[name.strip()] = value.strip()
        position = end + 1
        if name.strip() == "ElementDataFile":
            return fields, position
    raise ImageError("MetaImage: the header is damaged, no ElementDataFile; copy the file again")


def _affine(fields: dict[str, str]) -> NDArray[np.float64]:
    """Return the affine. ITK's coordinates are LPS, and each row of the matrix is the direction of an axis."""
    matrix = next(
        (name for name in ("TransformMatrix", "Rotation", "Orientation") if name in fields), None
    )
    offset = next((name for name in ("Offset", "Position", "Origin") if name in fields), None)
    spacing = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    if matrix is None or offset is None or spacing not in fields:
        raise ImageError(
            "MetaImage: TransformMatrix, Offset or ElementSpacing is missing, so the geometry is unknown;"
            " write them into the header"
        )
    affine = np.eye(4)
    try:
        sides = _numbers(fields, spacing)
        count = len(sides)
        directions = np.reshape(_numbers(fields, matrix), (count, count))[:3, :3]
        affine[:3, :3] = directions.T * sides[:3]
        affine[:3, 3] = _numbers(fields, offset)[:3]
    except ValueError as e:
        raise ImageError("MetaImage: the header is damaged; copy the file again") from e
    return affine


def _numbers(fields: dict[str, str], name: str) -> list[float]:
    try:
        return [float(number) for number in fields.get(name, "").split()]
    except ValueError as e:
        raise ImageError("MetaImage: the header is damaged; copy the file again") from e


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1")
