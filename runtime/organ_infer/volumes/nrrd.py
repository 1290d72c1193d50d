"""Headers of NRRD (https://teem.sourceforge.net/nrrd/format.html)."""

import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, short_repr
from .grid import check_shape
from .voxel_files import Header, Voxels, read_header_bytes

__all__ = ["beside", "read_nrrd_header"]

# bytes
HEADER_LIMIT = 1 << 20
# every spelling of each type
_DTYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPE = {name: code for code, names in _DTYPES.items() for name in names.split(", ")}
# signs of x, y and z that lead to LPS
_SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
_COMPRESSIONS = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_UNITS = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0}
_VECTOR = re.compile(r"none|\(([^()]*)\)")


def read_nrrd_header(path: str) -> Header:
    """Read the header of an .nrrd file, or of an .nhdr file beside its data.

    Raises:
        ImageError: If the file is not one volume in a known geometry.
    """
    data, is_gzip = read_header_bytes(path, HEADER_LIMIT)
    if is_gzip:
        raise ImageError("NRRD: the whole file is compressed; decompress it with gunzip")
    head, end, _ = data.partition(b"\n\n")
    if b"\r\n\r\n" in data and data.index(b"\r\n\r\n") < len(head):
        head, end, _ = data.partition(b"\r\n\r\n")
    fields, keys = _parse(head.decode("utf-8", "replace"))
    try:
        sizes = tuple(int(side) for side in fields["sizes"].split())
        kind = fields["type"].lower()
        encoding = fields["encoding"].lower()
    except (KeyError, ValueError) as e:
        raise ImageError("NRRD: the header is damaged; copy the file again") from e
    directions, origin = (
        _vectors(fields.get("space directions")),
        _vectors(fields.get("space origin")),
    )
    shape = check_shape(_volume_sides(sizes, directions))
    affine = _affine(fields, [row for row in directions if row is not None], origin)
    if kind not in _TYPE:
        raise ImageError(f"NRRD: type {short_repr(kind)} is not supported; write the scan as int16")
    if encoding not in _COMPRESSIONS:
        raise ImageError(
            f"NRRD: encoding {short_repr(encoding)} is not supported; write the file as gzip or raw"
        )
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    dtype = np.dtype(order + _TYPE[kind])
    return Header(
        title="NRRD",
        shape=shape,
        affine=affine,
        dtype=dtype,
        voxels=_voxels(path, len(head) + len(end), fields, _COMPRESSIONS[encoding], shape, dtype),
        structures=_structures(keys),
    )


def _parse(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fields (`key: value`) and the key/value pairs (`key:=value`)."""
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        if line.startswith("#"):
            continue
        name, separator, value = line.partition(":")
        if not separator:
            continue
        if value.startswith("="):
            keys[name] = value[1:]
        else:
            fields[name.strip().lower()] = value.strip()
    # older spellings
    for old, new in (
        ("datafile", "data file"),
        ("byteskip", "byte skip"),
        ("lineskip", "line skip"),
    ):
        if old in fields:
            fields[new] = fields.pop(old)
    return fields, keys


def _vectors(text: str | None) -> list[list[float] | None]:
    try:
        return [
            [float(number) for number in match[1].split(",")] if match[1] is not None else None
            for match in _VECTOR.finditer(text or "")
        ]
    except ValueError as e:
        raise ImageError("NRRD: the header is damaged; copy the file again") from e


def _volume_sides(sizes: tuple[int, ...], directions: list[list[float] | None]) -> tuple[int, ...]:
    """Return the sides of the axes in space, and refuse colors and layers, whose axis comes first."""
    if len(directions) == len(sizes) and None in directions:
        counts = [side for side, row in zip(sizes, directions, strict=True) if row is None]
        if np.prod(counts) > 1:
            raise ImageError(
                f"NRRD: {' x '.join(map(str, counts))} values per voxel;"
                " write each component or layer to a file of its own"
            )
        return tuple(side for side, row in zip(sizes, directions, strict=True) if row is not None)
    return sizes


def _affine(
    fields: dict[str, str], directions: list[list[float] | None], origin: list[list[float] | None]
) -> NDArray[np.float64]:
    space = fields.get("space", "").lower()
    signs = _SPACES.get(space)
    if signs is None:
        raise ImageError(
            f"NRRD: space {short_repr(space) if space else 'is missing'}, so the orientation is unknown;"
            " write the file with space left-posterior-superior"
        )
    affine = np.eye(4)
    try:
        affine[:3, :3] = np.array(directions[:3], np.float64).T
        affine[:3, 3] = np.array(origin[0], np.float64)
    except (IndexError, ValueError, TypeError) as e:
        raise ImageError(
            "NRRD: space directions or space origin is missing, so the geometry is unknown; write them into the header"
        ) from e
    units = {
        unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))
    }
    if len(units) > 1 or not units <= _UNITS.keys():
        raise ImageError("NRRD: unknown unit of length; write the file in millimeters")
    scale = _UNITS[units.pop()] if units else 1.0
    return np.diag([*(sign * scale for sign in signs), 1.0]) @ affine


def _voxels(
    path: str,
    header_bytes: int,
    fields: dict[str, str],
    compression: str,
    shape: tuple[int, int, int],
    dtype: "np.dtype[Any]",
) -> Voxels:
    try:
        line_skip = int(fields.get("line skip", 0))
        byte_skip = int(fields.get("byte skip", 0))
    except ValueError as e:
        raise ImageError("NRRD: the header is damaged; copy the file again") from e
    if line_skip or byte_skip < -1 or (byte_skip == -1 and compression):
        raise ImageError("NRRD: line skip is not supported; write header and voxels to one file")
    name = fields.get("data file")
    start = header_bytes
    if name is not None:
        path, start = beside(path, name, "NRRD"), 0
    if byte_skip == -1:
        # the voxels are at the file's end
        size = int(np.prod(shape)) * dtype.itemsize
        return Voxels(path, max(0, os.path.getsize(path) - size))
    return (
        Voxels(path, start, compression, byte_skip)
        if compression
        else Voxels(path, start + byte_skip)
    )


def beside(path: str, name: str, title: str) -> str:
    """Return the path of a header's data file, which is in the header's directory.

    Raises:
        ImageError: If the name is a list or pattern of files, or leads out of the directory, or there is no such file.
    """
    if name.upper().startswith("LIST") or "%" in name:
        raise ImageError(f"{title}: voxels in many files; convert the scan to one file")
    if os.path.basename(name) != name or name in ("", ".", ".."):
        raise ImageError(
            f"{title}: the data file {short_repr(name)} is not beside the header; move it there"
        )
    data = os.path.join(os.path.dirname(path), name)
    if not os.path.isfile(data):
        raise ImageError(f"{title}: no data file {short_repr(name)}; put it beside the header")
    return data


def _structures(keys: dict[str, str]) -> dict[int, str]:
    """Return the names of the segments of a 3D Slicer segmentation: number -> name."""
    names = {}
    for key, value in keys.items():
        match = re.fullmatch(r"Segment(\d{1,6})_LabelValue", key)
        if match and value.strip().isdigit():
            names[int(value)] = keys.get(f"Segment{match[1]}_Name", value.strip())
    return names
