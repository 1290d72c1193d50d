"""Recognizes files that hold a whole scan or a mask, which are read by `organ_infer.volumes`."""

import struct
import zlib
from collections.abc import Callable

__all__ = ["SCAN_HEAD_BYTES", "SCAN_SUFFIXES", "scan_title"]

# The bytes of a file that identify its format. NIfTI-1 has its signature at 344.
SCAN_HEAD_BYTES = 348
SCAN_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_GZIP = b"\x1f\x8b"


def _is_nifti(head: bytes) -> bool:
    return any(
        head[:4] in (struct.pack("<i", size), struct.pack(">i", size))
        and head[offset : offset + 4] in magics
        for size, offset, magics in (
            (348, 344, (b"n+1\0", b"ni1\0")),
            (540, 4, (b"n+2\0", b"ni2\0")),
        )
    )


def _is_nrrd(head: bytes) -> bool:
    return head.startswith(b"NRRD000")


def _is_metaimage(head: bytes) -> bool:
    name, equals, _ = head.partition(b"=")
    return bool(equals) and name.strip() in (b"ObjectType", b"NDims", b"Comment")


# one row per format
_FORMATS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("NIfTI", _is_nifti),
    ("NRRD", _is_nrrd),
    ("MetaImage", _is_metaimage),
)


def scan_title(head: bytes) -> str | None:
    """Return the format of a file that holds a scan or mask, or None.

    Args:
        head: The file's first SCAN_HEAD_BYTES, or enough of a gzip file to inflate as many.
    """
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, SCAN_HEAD_BYTES)
        except zlib.error:
            return None
    return next((title for title, matches in _FORMATS if matches(head)), None)
