"""Reads slices from .npy and .npz files. Pickles are never loaded, and stacks are read slice by slice."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np

from ..errors import ImageError, printable, short_repr, shorten
from .types import (
    DTYPES,
    VOLUME_ADVICE,
    VOLUME_SIDE,
    Limits,
    Slice,
    SliceReaders,
    Source,
    array_problem,
    check_size,
    numbered,
)

__all__ = ["read_npy", "read_npz"]

# bytes read at a time
BLOCK = 1 << 20
# bytes of an archive's directory
DIRECTORY_LIMIT = 1 << 20
# bytes of an archive's last record, without a comment
END = 22
# bytes of the record before it in an archive of over 4 GiB
LOCATOR = 20
_HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class _Header:
    """The layout of the pixels in an .npy file.

    Attributes:
        shape: (H, W) or (N, H, W).
        column_order: Whether the first axis varies fastest.
        dtype: uint8, uint16 or int16 of either byte order.
        start: Bytes before the pixels.
    """

    shape: tuple[int, ...]
    column_order: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def count(self) -> int:
        """The number of slices."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def slice_bytes(self) -> int:
        return self.shape[-2] * self.shape[-1] * self.dtype.itemsize


def read_npy(source: Source) -> SliceReaders:
    """Yield the slice (H, W), or the slices of a stack (N, H, W).

    Raises:
        ImageError: If the file cannot be read as slices.
    """
    return _array_slices(source.file, source.size, source.limits, source.selector)


def read_npz(source: Source) -> SliceReaders:
    """Yield the slices of each array of an archive.

    An array is checked against its checksum before its first slice is given.

    Raises:
        ImageError: If the file cannot be read as slices.
    """
    count = _check_directory(source.file, source.size)
    with zipfile.ZipFile(source.file) as archive:
        members = _members(archive, count, source.limits)
        selected = list(_select(members, source.selector))
        for name, selector in selected:
            yield from _member_slices(archive, name, members[name], source.limits, selector)
        if not selected:
            available = printable(", ".join(members)[:200]) or "none"
            raise ImageError(
                f".npz: no array {short_repr(source.selector or '')}; the file contains: {available}"
            )


def _check_directory(file: BinaryIO, size: int) -> int:
    """Check that the archive's directory, which `zipfile` reads whole, is short. Return its length."""
    file.seek(max(0, size - END - LOCATOR))
    tail = file.read(END + LOCATOR)
    end, before = tail[-END:], tail[:-END]
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0" or before[:4] == b"PK\6\7":
        raise ImageError(
            ".npz: truncated, or not an archive of up to 4 GiB as numpy.savez writes it"
        )
    if int.from_bytes(end[12:16], "little") > DIRECTORY_LIMIT:
        raise ImageError(".npz: too many arrays")
    return int.from_bytes(end[10:12], "little")


def _members(archive: zipfile.ZipFile, count: int, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's entries by array name."""
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(members) != count:
        raise ImageError(".npz: damaged, or two arrays have one name; save it with numpy.savez")
    if not all(info.filename.endswith(".npy") for info in members.values()):
        # Images in it are not decoded: every format would need its limits inside the archive again.
        raise ImageError("a zip of other files than .npy; unpack it, and pass the directory")
    total = sum(info.file_size for info in members.values())
    if total > limits.file_bytes:
        raise ImageError(
            f".npz: {total:,} bytes of arrays: too large, at most {limits.file_bytes:,} are read;"
            " raise the limit with --file-limit or file_limit="
        )
    return members


def _select(
    members: dict[str, zipfile.ZipInfo], selector: str | None
) -> Iterator[tuple[str, str | None]]:
    """Yield the selected arrays' names, each with the selector of its slices."""
    for name in members:
        if selector is None or selector == name:
            yield name, None
        elif selector.startswith(f"{name}#"):
            yield name, selector[len(name) + 1 :]


def _member_slices(
    archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, limits: Limits, selector: str | None
) -> SliceReaders:
    """Yield the slices of one array. If it is damaged, its only reader raises the error."""
    try:
        _verify(archive, info)
        with archive.open(info) as file:
            for suffix, read in _array_slices(file, info.file_size, limits, selector):
                yield f"#{name}{suffix}", read
    except ImageError as e:
        yield f"#{name}", _raiser(e)


def _verify(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(
            f".npz: unsupported compression of {shorten(printable(info.filename), 120)};"
            " save it with numpy.savez or numpy.savez_compressed"
        )
    with archive.open(info) as file:
        # zipfile compares the checksum at the end
        while file.read(BLOCK):
            pass


def _raiser(error: ImageError) -> Callable[[], NoReturn]:
    def raise_error() -> NoReturn:
        raise error

    return raise_error


def _array_slices(file: Any, size: int, limits: Limits, selector: str | None) -> SliceReaders:
    """Yield the slices of an .npy of `size` bytes."""
    header = _read_header(file, size, limits)
    shape = header.shape[-2:]
    order: Literal["C", "F"] = "F" if header.column_order else "C"

    def read(index: int) -> Slice:
        file.seek(header.start + index * header.slice_bytes)
        data = file.read(header.slice_bytes)
        if len(data) != header.slice_bytes:
            raise ImageError("the file changed while it was read")
        return to_slice(np.frombuffer(data, header.dtype).reshape(shape, order=order))

    def to_slice(pixels: Any) -> Slice:
        return Slice(np.ascontiguousarray(pixels, header.dtype.newbyteorder("=")))

    if len(header.shape) == 2 and selector is None:
        yield "", lambda: read(0)
    elif header.column_order and header.count > 1:
        # each slice is spread over the whole file
        data = file.read(header.count * header.slice_bytes)
        stack = np.frombuffer(data, header.dtype).reshape(header.shape, order="F")
        yield from numbered(header.count, lambda index: to_slice(stack[index]), selector)
    else:
        yield from numbered(header.count, read, selector)


def _read_header(file: Any, size: int, limits: Limits) -> _Header:
    """Read the header and compare it with the limits and with `size`, the bytes of the file."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ImageError(f".npy: version {version} is not supported; save it with numpy.save")
    shape, column_order, dtype = _HEADERS[version](file)
    if len(shape) > 2 and shape[-1] == 1:
        # one channel, which has one meaning
        shape = shape[:-1]
    header = _Header(shape, column_order, dtype, start=file.tell())
    if dtype.name not in DTYPES or len(shape) not in (2, 3):
        raise ImageError(
            f".npy: expected slices (H, W) or (N, H, W) of {', '.join(DTYPES)}, found"
            f" {shorten(str(dtype), 120)} {shape}{_volume_advice(shape)}"
        )
    if problem := array_problem(shape):
        raise ImageError(f".npy: an array {shape} {problem}")
    height, width = shape[-2:]
    check_size(width, height, limits.pixels)
    if size - header.start != header.count * header.slice_bytes:
        raise ImageError(
            f".npy: header declares {dtype} {shape}, found {size - header.start:,} bytes of pixels;"
            " the file is truncated or damaged"
        )
    return header


def _volume_advice(shape: tuple[int, ...]) -> str:
    """Return what to do with an array that has the shape of a scan, or nothing."""
    if len(shape) == 3 and sorted(shape)[1] >= VOLUME_SIDE:
        return f"; pass int16 HU, and {VOLUME_ADVICE}"
    return ""
