"""NumPy's files to slices: .npy and .npz, never a pickle. A stack is read slice by slice, not whole."""

import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import ImageError
from .types import DTYPES, Limits, Slice, SliceReaders, Source, check_size, numbered

__all__ = ["read_npy", "read_npz"]

BLOCK = 1 << 20  # bytes
DIRECTORY_LIMIT = 1 << 20  # bytes of an archive's list of its members
END = 22  # bytes of an archive's last record, with no comment
LOCATOR = 20  # bytes of what stands before it in an archive of over 4 GiB
_HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(source: Source) -> SliceReaders:
    """One slice (H, W), or a stack (N, H, W)."""
    return _array_slices(source.file, source.size, source.limits, source.selector)


def read_npz(source: Source) -> SliceReaders:
    """The arrays of an archive, each checked whole against its checksum before its first slice is given."""
    checked, count = _checked_archive(source)
    with zipfile.ZipFile(checked) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) != count or not all(info.filename.endswith(".npy") for info in members.values()):
            raise ImageError(".npz: damaged, or no archive of .npy files alone")
        total = sum(info.file_size for info in members.values())
        if total > source.limits.file_bytes:
            raise ImageError(
                f".npz: {total:,} bytes of arrays: too large, at most {source.limits.file_bytes:,} are read"
                " (--file-limit raises it)"
            )
        selected = False
        for name, info in members.items():
            if source.selector is None or source.selector == name:
                selector = None
            elif source.selector.startswith(f"{name}#"):
                selector = source.selector[len(name) + 1 :]
            else:
                continue
            selected = True
            try:
                _verify(archive, info)
                with archive.open(info) as file:
                    for suffix, read in _array_slices(file, info.file_size, source.limits, selector):
                        yield f"#{name}{suffix}", read
            except ImageError as e:  # the others may be sound
                yield f"#{name}", _refuser(e)
        if not selected:
            held = ", ".join(members)[:200] or "none"
            raise ImageError(f".npz: no array {source.selector or ''!r} in it, its arrays: {held}")


def _checked_archive(source: Source) -> tuple[BinaryIO, int]:
    """The file and the number of its members, where its end says that their list, which is read whole, is short."""
    source.file.seek(max(0, source.size - END - LOCATOR))
    tail = source.file.read(END + LOCATOR)
    end, before = tail[-END:], tail[:-END]
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0" or before[:4] == b"PK\6\7":
        raise ImageError(".npz: truncated, or no archive as numpy.savez writes it (of up to 4 GiB)")
    if int.from_bytes(end[12:16], "little") > DIRECTORY_LIMIT:
        raise ImageError(".npz: too many arrays in it")
    return source.file, int.from_bytes(end[10:12], "little")


def _verify(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(f".npz: {info.filename} is compressed otherwise than numpy does it")
    with archive.open(info) as file:
        while file.read(BLOCK):  # its end asks for the checksum
            pass


def _refuser(error: ImageError) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise error

    return refuse


def _array_slices(file: Any, size: int, limits: Limits, selector: str | None) -> SliceReaders:
    """The slices of an .npy of `size` bytes. Its header is held against them before any are taken."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ImageError(f".npy: version {version} is not read, save with numpy.save")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.name not in DTYPES or len(shape) not in (2, 3):
        raise ImageError(
            f".npy: slices (H, W) or (N, H, W) of {', '.join(DTYPES)} expected, found {dtype} {shape}"
        )
    if len(shape) == 3 and shape[2] in (3, 4):
        raise ImageError(f".npy: {shape} looks like color: save gray")
    height, width = shape[-2:]
    check_size(width, height, limits.pixels)
    count, start = shape[0] if len(shape) == 3 else 1, file.tell()
    each = height * width * dtype.itemsize
    if size - start != count * each:
        raise ImageError(f".npy: {size - start:,} bytes of pixels for {dtype} {shape}: truncated or damaged")

    def read(i: int) -> Slice:
        file.seek(start + i * each)
        data = file.read(each)
        if len(data) != each:
            raise ImageError("it changed while it was read")
        return slice_of(np.frombuffer(data, dtype).reshape((height, width), order="F" if fortran else "C"))

    def slice_of(pixels: Any) -> Slice:
        return Slice(np.ascontiguousarray(pixels, dtype.newbyteorder("=")))

    if len(shape) == 2 and selector is None:
        yield "", lambda: read(0)
    elif fortran and count > 1:  # each slice lies all over the file
        stack = np.frombuffer(file.read(count * each), dtype).reshape(shape, order="F")
        yield from numbered(count, lambda i: slice_of(stack[i]), selector)
    else:
        yield from numbered(count, read, selector)
