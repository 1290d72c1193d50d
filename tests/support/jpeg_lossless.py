"""JPEG Lossless, as DICOM files hold it: Process 14 with predictor 1 (the left pixel), written by hand."""

import struct

import numpy as np


def _segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def encode(pixels, bits):
    """Compress unsigned pixels (H, W) of a number of bits. Categories 0 to 16 have codes of five bits."""
    height, width = pixels.shape
    wide = pixels.astype(np.int64)
    guess = np.empty_like(wide)
    guess[:, 1:] = wide[:, :-1]
    guess[1:, 0] = wide[:-1, 0]
    guess[0, 0] = 1 << (bits - 1)
    differences = (wide - guess) & 0xFFFF
    differences[differences > 32_768] -= 65_536
    text = []
    for value in differences.ravel().tolist():
        category = abs(value).bit_length()
        text.append(f"{category:05b}")
        if 0 < category < 16:
            text.append(f"{value if value > 0 else value + (1 << category) - 1:0{category}b}")
    joined = "".join(text)
    joined += "1" * (-len(joined) % 8)
    data = int(joined, 2).to_bytes(len(joined) // 8, "big").replace(b"\xff", b"\xff\0")
    lengths = bytes([0, 0, 0, 0, 17, *[0] * 11])
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xC4, b"\0" + lengths + bytes(range(17))),
            _segment(0xC3, struct.pack(">BHHB", bits, height, width, 1) + b"\1\x11\0"),
            _segment(0xDA, b"\1\1\0\1\0\0"),
            data,
            b"\xff\xd9",
        ]
    )
