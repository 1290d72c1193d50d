"""Small files that claim, or unpack to, far more than they are. None of them holds a slice."""

import io
import struct
import zipfile
import zlib
from functools import cache

import numpy as np

from support.image_files import tiff
from support.png_files import SIGNATURE, chunk, head

BIG = 60_000
GRAY = np.zeros((28, 28), np.uint8)


@cache
def zeros(count):
    """A zlib stream of so many bytes, a thousandth as long."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(count >> 20)) + packer.flush()


def png(width, height, stream, kind=b"\x08\0\0\0\0", *extra):
    parts = b"".join(chunk(name, data) for name, data in extra)
    return SIGNATURE + head(width, height, kind) + parts + chunk(b"IDAT", stream) + chunk(b"IEND")


def gif():
    """A screen of one pixel, and a frame of 65,535 x 65,535 on it."""
    screen = struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\2\1\x44\0"
    return b"GIF89a" + screen + frame + b";"


def jp2():
    size = struct.pack(">HIIIIIIIIH", 0, BIG, BIG, 0, 0, BIG, BIG, 0, 0, 1) + b"\7\1\1"
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + b"\xff\xd9"


def webp():
    """A canvas of 2 ** 24 pixels a side, in the extended form."""
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    return b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas


@cache
def npz(total):
    """A small archive of an array of `total` bytes."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as member,
    ):
        shape = {"descr": "|u1", "fortran_order": False, "shape": (total >> 20, 1024, 1024)}
        np.lib.format.write_array_header_1_0(member, shape)
        for _ in range(total >> 20):
            member.write(bytes(1 << 20))
    return file.getvalue()


def lying_npz(total):
    """The list of members says that it unpacks to 912 bytes."""
    return npz(total).replace(struct.pack("<I", total + 128), struct.pack("<I", 912))


def header(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def deflated_dicom(total):
    """Group 2 by hand, then a dataset that inflates to `total` bytes."""
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    meta = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta
    return bytes(128) + b"DICM" + meta + zeros(total)[2:-4]


def dicom(**fields):
    from support.image_files import dicom as plain

    return plain(GRAY, RescaleSlope=1, RescaleIntercept=0, **fields)


def bombs(size):
    """{name: bytes}; size: bytes of those that unpack, whole MiB."""
    return {
        "PNG, 60,000 x 60,000": png(BIG, BIG, zeros(size)),
        "PNG, 60,000 x 60,000 RGBA of 16 bits, interlaced": png(BIG, BIG, b"", b"\x10\6\0\0\1"),
        "PNG, a row of 4,294,967,295": png(0xFFFFFFFF, 1, b""),
        "PNG, text that unpacks": png(28, 28, b"", b"\x08\0\0\0\0", (b"zTXt", b"a\0\0" + zeros(size))),
        "PNG, a color profile that unpacks": png(28, 28, b"", b"\x08\0\0\0\0", (b"iCCP", b"a\0\0" + zeros(size))),
        "PNG, 2,147,483,647 frames": png(
            28, 28, zlib.compress(bytes(29 * 28)), b"\x08\0\0\0\0", (b"acTL", struct.pack(">II", 0x7FFFFFFF, 0))
        ),
        "TIFF, 60,000 x 60,000": tiff(GRAY, t256=BIG, t257=BIG),
        "TIFF, tiles of 60,000 x 60,000": tiff(GRAY, t322=BIG, t323=BIG, t324=8, t325=784, t259=8),
        "GIF, a frame of 65,535 x 65,535": gif(),
        "BMP, 65,535 x 65,535, run lengths": b"BM" + struct.pack(
            "<IIIIiiHHIIIIII", 54 + 1024, 0, 54 + 1024, 40, 65_535, 65_535, 1, 8, 1, 0, 0, 0, 256, 0
        ) + bytes(1024),
        "PNM, 65,000 x 65,000": b"P5 65000 65000 255\n",
        "PNM, 65,000 x 65,000 in digits": b"P2 65000 65000 255\n0 0",
        "JPEG, 65,500 x 65,500, progressive": b"\xff\xd8\xff\xc2" + struct.pack(
            ">HBHHB", 11, 8, 65_500, 65_500, 1
        ) + b"\1\x11\0" + b"\xff\xd9",
        "JPEG 2000, 60,000 x 60,000": jp2(),
        "WebP, 16,777,216 x 16,777,216": webp(),
        ".npy, a slice of 60,000 x 60,000": header((BIG, BIG)) + b"few",
        ".npy, 10^18 slices": header((10**18, 28, 28)) + bytes(784),
        ".npy, a header of 4 GiB": b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 5000,
        ".npz, that unpacks": npz(size),
        ".npz, that unpacks to more than it says": lying_npz(size),
        "DICOM, deflated, that unpacks": deflated_dicom(size),
        "DICOM, 65,535 x 65,535": dicom(Rows=65_535, Columns=65_535),
        "DICOM, 2,147,483,647 frames": dicom(NumberOfFrames=2_147_483_647),
    }  # fmt: skip
