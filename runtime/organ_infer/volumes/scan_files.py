"""One scan or mask in one file: its header, whatever the format."""

import os

from ..errors import ImageError
from ..images.scan_formats import SCAN_HEAD_BYTES, SCAN_SUFFIXES, scan_title
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


def read_header(path: str) -> Header:
    """Read a file's header.

    Raises:
        ImageError: If the file is of another format, damaged, or not one volume in a known geometry.
    """
    title = title_of(path)
    if title is None:
        raise ImageError(
            f"unknown format; supported: {', '.join(_READERS)}, DICOM (a series' directory or zip)"
        )
    with reader_errors(title):
        return _READERS[title](path)


def scan_names(directory: str) -> list[str]:
    """Return the names of a directory's files that have a suffix of these formats, sorted."""
    return sorted(
        name
        for name in os.listdir(directory)
        if name.lower().endswith(SCAN_SUFFIXES) and not name.startswith(".")
    )
