"""One scan or mask in one file: its header, whatever the format."""

import os
from dataclasses import replace

from ..errors import ImageError
from ..images.scan_formats import SCAN_HEAD_BYTES, SCAN_SUFFIXES, scan_title
from .grid import check_affine
from .metaimage import read_metaimage_header
from .nifti import read_nifti_header
from .nrrd import read_nrrd_header
from .voxel_files import Header, read_header_bytes, reader_errors

__all__ = ["read_header", "scan_names", "title_of"]

# one row per format
_READERS = {
    "NIfTI": read_nifti_header,
    "NRRD": read_nrrd_header,
    "MetaImage": read_metaimage_header,
}


def title_of(path: str) -> str | None:
    """Return the format of a file, or None if it is none of these."""
    return scan_title(read_header_bytes(path, SCAN_HEAD_BYTES)[0])


def read_header(path: str, is_resampled: bool = False) -> Header:
    """Read a file's header.

    Args:
        path: The file.
        is_resampled: Whether it is a mask that is resampled to the grid of a scan.

    Raises:
        ImageError: If the file is of another format, damaged, or not one volume in a known geometry.
    """
    title = title_of(path)
    if title is None:
        raise ImageError(
            f"unknown format; supported: {', '.join(_READERS)}, DICOM (a series' directory or zip)"
        )
    with reader_errors(title):
        header = _READERS[title](path)
        warnings = check_affine(header.affine, header.shape, is_resampled)
    return replace(header, warnings=(*header.warnings, *warnings))


def scan_names(directory: str) -> list[str]:
    """Return the names of a directory's files that have a suffix of these formats, sorted."""
    return sorted(
        name
        for name in os.listdir(directory)
        if name.lower().endswith(SCAN_SUFFIXES) and not name.startswith(".")
    )
