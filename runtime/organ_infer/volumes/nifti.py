"""Headers of NIfTI-1 and NIfTI-2 (https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h, nifti2.h)."""

import re
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from .grid import check_shape
from .voxel_files import Header, Voxels, read_header_bytes

__all__ = ["read_nifti_header"]

# bytes that are read of a header with its extensions
HEADER_LIMIT = 1 << 24
# rounding of the sum of squares of three float32
LEAST_SQUARE = 3 * float(np.finfo(np.float32).eps)
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_COLOR = {128, 2304}
# millimeters per unit of xyzt_units
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# from RAS, which NIfTI uses, to LPS
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# an entry of the label table that TotalSegmentator and Connectome Workbench write into an extension
_LABEL = re.compile(rb'<Label\s+Key="(\d{1,9})"[^>]*>\s*(?:<!\[CDATA\[)?([^<\]]{1,200})')


class _Fields(NamedTuple):
    """Offsets and struct codes of the fields of one version of the header."""

    size: int
    magic: int
    dim: tuple[int, str]
    datatype: int
    pixdim: tuple[int, str]
    vox_offset: tuple[int, str]
    scale: tuple[int, str]
    xyzt_units: tuple[int, str]
    codes: tuple[int, str]
    quaternion: tuple[int, str]
    srow: tuple[int, str]


_VERSION_1 = _Fields(
    size=348,
    magic=344,
    dim=(40, "8h"),
    datatype=70,
    pixdim=(76, "8f"),
    vox_offset=(108, "f"),
    scale=(112, "2f"),
    xyzt_units=(123, "B"),
    codes=(252, "2h"),
    quaternion=(256, "6f"),
    srow=(280, "12f"),
)
_VERSION_2 = _Fields(
    size=540,
    magic=4,
    dim=(16, "8q"),
    datatype=12,
    pixdim=(104, "8d"),
    vox_offset=(168, "q"),
    scale=(176, "2d"),
    xyzt_units=(500, "i"),
    codes=(344, "2i"),
    quaternion=(352, "6d"),
    srow=(400, "12d"),
)


def _version(head: bytes) -> tuple[_Fields, str] | None:
    """Return the header's fields and byte order."""
    for fields, magics in ((_VERSION_1, (b"n+1\0", b"ni1\0")), (_VERSION_2, (b"n+2\0", b"ni2\0"))):
        for order in "<>":
            if (
                head[:4] == struct.pack(f"{order}i", fields.size)
                and head[fields.magic : fields.magic + 4] in magics
            ):
                return fields, order
    return None


def read_nifti_header(path: str) -> Header:
    """Read the header of a .nii or .nii.gz file.

    Raises:
        ImageError: If the file is not one volume in a known geometry.
    """
    head, is_gzip = read_header_bytes(path, _VERSION_2.size)
    version = _version(head)
    if version is None or len(head) < version[0].size:
        raise ImageError("NIfTI: the header is damaged; copy the file again")
    fields, order = version
    if head[fields.magic + 1 : fields.magic + 2] == b"i":
        raise ImageError("NIfTI: header and voxels in two files; convert them to one .nii.gz file")

    def unpacked(field: tuple[int, str]) -> tuple[float, ...]:
        return struct.unpack_from(order + field[1], head, field[0])

    dim = [int(side) for side in unpacked(fields.dim)]
    if not 1 <= dim[0] <= 7:
        raise ImageError(f"NIfTI: {dim[0]} dimensions; the header is damaged, copy the file again")
    shape = check_shape(tuple(dim[1 : dim[0] + 1]))
    affine, warnings = _affine(
        unpacked(fields.pixdim),
        unpacked(fields.codes),
        unpacked(fields.quaternion),
        unpacked(fields.srow),
        int(unpacked(fields.xyzt_units)[0]),
    )
    slope, intercept = unpacked(fields.scale)
    if not np.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    (offset,) = unpacked(fields.vox_offset)
    if not fields.size <= offset < HEADER_LIMIT:
        raise ImageError("NIfTI: the header is damaged; copy the file again")
    return Header(
        title="NIfTI",
        shape=shape,
        affine=affine,
        dtype=np.dtype(order + _dtype(struct.unpack_from(f"{order}h", head, fields.datatype)[0])),
        voxels=(Voxels(path, 0, "gzip", int(offset)) if is_gzip else Voxels(path, int(offset))),
        slope=slope,
        intercept=intercept if np.isfinite(intercept) else 0.0,
        structures=_structures(path, fields.size, int(offset)),
        warnings=tuple(warnings),
    )


def _dtype(code: int) -> str:
    if code in _COLOR:
        raise ImageError("NIfTI: color is not supported; CT is gray")
    if code not in _DTYPES:
        raise ImageError(f"NIfTI: data type {code} is not supported; write the scan as int16")
    return _DTYPES[code]


def _affine(
    pixdim: tuple[float, ...],
    codes: tuple[float, ...],
    quaternion: tuple[float, ...],
    srow: tuple[float, ...],
    units: int,
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the affine in LPS millimeters, and warnings. As usual, sform goes before qform."""
    qform_code, sform_code = codes
    if qform_code <= 0 and sform_code <= 0:
        raise ImageError(
            "NIfTI: neither sform nor qform is set, so the orientation is unknown; write the affine into the file"
        )
    millimeters = _UNITS.get(units & 7)
    if millimeters is None:
        raise ImageError(
            f"NIfTI: unknown unit of length {units & 7}; write the file in millimeters"
        )
    sform, qform = np.eye(4), _qform(pixdim, quaternion)
    sform[:3] = np.reshape(srow, (3, 4))
    warnings = []
    if sform_code > 0 and qform_code > 0 and not _is_equal(sform, qform):
        warnings.append("sform and qform differ; sform is used")
    affine = sform if sform_code > 0 else qform
    if millimeters != 1:
        warnings.append("units other than millimeters converted to millimeters")
        affine[:3] *= millimeters
    return _LPS @ affine, warnings


def _is_equal(sform: NDArray[np.float64], qform: NDArray[np.float64]) -> bool:
    # qform has 7 digits, and cannot hold the rounding of an oblique sform
    return np.allclose(sform[:3, :3], qform[:3, :3], atol=0.01) and np.allclose(
        sform[:3, 3], qform[:3, 3], atol=0.5
    )


def _qform(pixdim: tuple[float, ...], quaternion: tuple[float, ...]) -> NDArray[np.float64]:
    b, c, d, *offset = quaternion
    square = 1 - b * b - c * c - d * d
    a = np.sqrt(max(0.0, square))
    if square < LEAST_SQUARE:
        # half a turn; the rounding of b, c and d would turn it by 0.03 degrees more
        length = np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    sign = -1.0 if pixdim[0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * [pixdim[1], pixdim[2], sign * pixdim[3]]
    affine[:3, 3] = offset
    return affine


def _structures(path: str, start: int, stop: int) -> dict[int, str]:
    """Return the label table of the header's extensions: number -> name."""
    if stop <= start + 4:
        return {}
    extensions = read_header_bytes(path, stop)[0][start:]
    return {
        int(key): name.decode("utf-8", "replace").strip()
        for key, name in _LABEL.findall(extensions)
    }
