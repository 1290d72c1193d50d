"""The DICOM files of a directory or zip, found by content."""

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import ImageError, file_reason
from ..images.dicom import DEFLATED, check_deflated_size, load_pydicom
from ..images.registry import open_regular_file
from ..images.types import FILE_LIMIT, SIGNATURE_BYTES
from .voxel_files import FILE_LIMIT as VOLUME_FILE_LIMIT
from .voxel_files import reader_errors

__all__ = [
    "DicomFile",
    "check_pixel_bytes",
    "dicom_files",
    "file_errors",
    "is_dicom",
    "read_dataset",
]

# files of a directory or zip
MOST_FILES = 100_000
_SIGNATURE = b"DICM"
_ZIP = b"PK\3\4"


@dataclass(frozen=True)
class DicomFile:
    """A file on disk or in a zip.

    Attributes:
        name: For messages.
        archive: The zip, or None.
        member: The file's name in the zip, or its path.
    """

    name: str
    archive: zipfile.ZipFile | None
    member: str

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file. A file of a zip is read into memory, within the limit of one image."""
        if self.archive is None:
            with open_regular_file(self.member, VOLUME_FILE_LIMIT) as (file, _):
                yield file
            return
        data = b""
        # the list of a damaged zip may state another size than there is
        if (size := self.archive.getinfo(self.member).file_size) <= FILE_LIMIT:
            with self.archive.open(self.member) as packed:
                data = packed.read(FILE_LIMIT + 1)
        if max(size, len(data)) > FILE_LIMIT:
            raise ImageError(
                f"inflates to more than {FILE_LIMIT:,} bytes; unpack the zip and pass the directory"
            )
        yield io.BytesIO(data)

    def head(self) -> bytes:
        """Return the first bytes."""
        with file_errors(self):
            if self.archive is not None:
                with self.archive.open(self.member) as packed:
                    return packed.read(SIGNATURE_BYTES)
            with open_regular_file(self.member, VOLUME_FILE_LIMIT) as (file, _):
                return file.read(SIGNATURE_BYTES) or b""


@contextmanager
def file_errors(file: DicomFile) -> Iterator[None]:
    """Name the file in every error."""
    try:
        with reader_errors("DICOM"):
            yield
    except ImageError as e:
        raise ImageError(f"{file.name}: {e.args[0]}") from e


def _usable(files: Iterator[DicomFile]) -> list[DicomFile]:
    """Return the DICOM files.

    Raises:
        ImageError: If one is named .dcm and is not, because then a slice may be missing.
    """
    usable = []
    for file in files:
        if is_dicom(file.head()):
            usable.append(file)
        elif file.member.lower().endswith(".dcm"):
            raise ImageError(
                f"{file.name}: no DICOM file, but named so; copy the series again, or remove the file"
            )
    return usable


def is_dicom(head: bytes) -> bool:
    """Return whether the first bytes of a file are DICOM."""
    return head[SIGNATURE_BYTES - len(_SIGNATURE) : SIGNATURE_BYTES] == _SIGNATURE


@contextmanager
def dicom_files(path: str) -> Iterator[list[DicomFile]]:
    """Give the DICOM files of a directory, with those below it, of a zip, or the one file.

    Raises:
        ImageError: If there is none.
    """
    if os.path.isdir(path):
        yield _usable(_below(path))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _usable(_members(path, archive))
    else:
        file = DicomFile(path, None, path)
        if file.head().startswith(_ZIP):
            raise ImageError("the zip is truncated or damaged; copy it again")
        yield [file]


def _below(directory: str) -> Iterator[DicomFile]:
    count = 0
    # os.walk follows no linked directories
    for parent, directories, names in os.walk(directory, onerror=_not_listed):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            count += 1
            if count > MOST_FILES:
                raise ImageError(
                    f"more than {MOST_FILES:,} files; pass the directory of one series"
                )
            path = os.path.join(parent, name)
            # neither pipes nor links to nothing
            if os.path.isfile(path):
                yield DicomFile(path, None, path)


def _not_listed(error: OSError) -> None:
    raise ImageError(
        f"{error.filename}: cannot be listed ({file_reason(error)}); slices may be in it, so make it readable"
    )


def _members(path: str, archive: zipfile.ZipFile) -> Iterator[DicomFile]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MOST_FILES:
        raise ImageError(f"more than {MOST_FILES:,} files; pass the directory of one series")
    if any(entry.flag_bits & 1 for entry in entries):
        raise ImageError("the zip is encrypted; unpack it and pass the directory")
    declared = sum(entry.file_size for entry in entries)
    if declared > VOLUME_FILE_LIMIT:
        raise ImageError(
            f"inflates to {declared:,} bytes, at most {VOLUME_FILE_LIMIT:,} are read; pass a zip of one series"
        )
    for entry in sorted(entries, key=lambda entry: entry.filename):
        yield DicomFile(f"{path}#{entry.filename}", archive, entry.filename)


def read_dataset(file: BinaryIO, **options: Any) -> Any:
    """Read a dataset with pydicom. A deflated dataset is inflated within the limit of one image.

    Args:
        file: Open at its start.
        **options: Passed to `pydicom.dcmread`.
    """
    dcmread, _ = load_pydicom("volume")
    head = file.read(1 << 16)
    file.seek(0)
    # the transfer syntax is at the start, and is checked byte by byte, since pydicom inflates without a limit
    if DEFLATED.encode() in head:
        data = file.read(FILE_LIMIT + 1)
        check_deflated_size(data, FILE_LIMIT)
        file = io.BytesIO(data)
    return dcmread(file, **options)


def check_pixel_bytes(dataset: Any) -> None:
    """Refuse pixels that are not compressed and are fewer than the header declares."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    frames, bits = int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.BitsAllocated)
    pixels = frames * int(dataset.Rows) * int(dataset.Columns)
    declared = (pixels * int(dataset.get("SamplesPerPixel", 1) or 1) * bits + 7) // 8
    if len(dataset.PixelData) < declared:
        raise ImageError(
            f"DICOM: the header declares {declared:,} bytes of pixels, found {len(dataset.PixelData):,};"
            " the file is truncated or damaged, copy it again"
        )
