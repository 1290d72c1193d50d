"""Stored values of a file to Hounsfield units, and checks that they can be Hounsfield units."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from .voxel_files import Header, blocks

__all__ = ["check_density", "check_range", "read_hounsfield"]

LOWEST, HIGHEST = -32_768, 32_767
# HU; every scan shows air (-1000) or fat (-100)
LEAST_FAT = -50
# HU between the lowest and the highest value
LEAST_RANGE = 200
# HU of dense bone, of which no scan of a patient consists to a twentieth
DENSE = 700
# voxels along each axis that are looked at
SAMPLED_SIDE = 64
# the largest number of a label image
MOST_LABEL = 255


def read_hounsfield(header: Header) -> tuple[NDArray[np.int16], list[str]]:
    """Read the voxels as int16 HU. No second copy of the volume is created.

    Returns:
        int16 (X, Y, Z), a view of the file's order, and warnings.

    Raises:
        ImageError: If the file is damaged, or the values cannot be HU.
    """
    hu = np.empty(header.count, np.int16)
    identity = header.slope == 1 and header.intercept == 0
    direct = identity and header.dtype.newbyteorder("=") == np.int16
    low, high, rounded, clipped = np.inf, -np.inf, False, 0
    for start, values in blocks(header, hu if direct else None):
        if not direct:
            values, was_rounded = _scaled(values, header.slope, header.intercept)
            rounded |= was_rounded
        least, most = float(values.min()), float(values.max())
        low, high = min(low, least), max(high, most)
        if direct:
            continue
        if least < LOWEST or most > HIGHEST:
            clipped += int(np.count_nonzero((values < LOWEST) | (values > HIGHEST)))
            values = values.clip(LOWEST, HIGHEST)
        hu[start : start + len(values)] = values
    check_range(low, high, header.dtype if identity else None)
    warnings = []
    if rounded:
        warnings.append("fractions of Hounsfield units rounded")
    if clipped:
        warnings.append(f"{clipped:,} voxels outside int16 clipped")
    return hu.reshape(header.shape[::-1]).transpose(2, 1, 0), warnings


def _scaled(values: NDArray[Any], slope: float, intercept: float) -> tuple[NDArray[Any], bool]:
    """Return whole HU, and whether they were rounded."""
    if slope == 1 and float(intercept).is_integer() and values.dtype.kind in "iu":
        wide: Any = (
            np.int32 if values.dtype.itemsize <= 2 and abs(intercept) < 1 << 30 else np.float64
        )
        return values.astype(wide) + wide(intercept), False
    exact = values.astype(np.float64) * slope + intercept
    if not np.isfinite(exact).all():
        count = int(np.count_nonzero(~np.isfinite(exact)))
        raise ImageError(
            f"{count:,} voxels or more are NaN or infinite; replace them, for example by -1024"
        )
    whole = np.rint(exact)
    return whole, bool((whole != exact).any())


def check_range(low: float, high: float, stored: "np.dtype[Any] | None") -> None:
    """Refuse values that cannot be HU.

    Args:
        low: The lowest value.
        high: The highest value.
        stored: The dtype of the values in the file, if they were not scaled.
    """
    values = f"values {low:,.0f} to {high:,.0f}"
    if low < LEAST_FAT and high - low >= LEAST_RANGE:
        return
    if stored is not None and stored.kind == "u" and high > HIGHEST:
        raise ImageError(
            f"{values} look like negative Hounsfield units stored as unsigned integers; write the scan as int16"
        )
    if low >= 0 and stored is not None and stored.itemsize == 1 and high > 127:
        raise ImageError(
            f"{values} in 8 bits are gray levels, not Hounsfield units; pass the scan before it was windowed"
        )
    if low >= 0 and 1 < high <= MOST_LABEL:
        raise ImageError(
            f"{values} look like a mask, not a scan; pass the scan here and this file as its mask"
        )
    if low >= 0 and high > MOST_LABEL:
        raise ImageError(
            f"{values}, none below 0, are not Hounsfield units; subtract the missing offset, usually 1024"
        )
    raise ImageError(
        f"{values} are not Hounsfield units; pass the scan before it was windowed or normalized"
    )


def check_density(hu: NDArray[np.int16]) -> None:
    """Refuse a scan that is denser than a patient, as with a missing offset. Some voxels are looked at.

    Args:
        hu: int16 (X, Y, Z).
    """
    steps = tuple(slice(None, None, -(-side // SAMPLED_SIDE)) for side in hu.shape)
    dense = float(np.percentile(hu[steps], 95))
    if dense >= DENSE:
        raise ImageError(
            f"a twentieth of the voxels have {dense:,.0f} HU and more, denser than bone, so these are not Hounsfield units;"
            " subtract the missing offset, usually 1024"
        )
