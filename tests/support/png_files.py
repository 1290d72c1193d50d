"""PNG files by hand: sound ones with any filters and chunks, and odd ones."""

import struct
import zlib
from itertools import pairwise

import numpy as np

RANDOM = np.random.default_rng(11)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def head(width, height, kind=b"\x08\0\0\0\0"):
    return chunk(b"IHDR", struct.pack(">II", width, height) + kind)


def rows(pixels, filters):
    """The rows filtered, by the specification's formulas on whole rows."""
    height, width = pixels.shape
    wide = np.zeros((height + 1, width + 1), np.int32)
    wide[1:, 1:] = pixels
    here, left, above, corner = wide[1:, 1:], wide[1:, :-1], wide[:-1, 1:], wide[:-1, :-1]
    guess = left + above - corner
    a, b, c = abs(guess - left), abs(guess - above), abs(guess - corner)
    paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
    taken = [0 * here, left, above, (left + above) // 2, paeth]
    return b"".join(
        bytes([kind]) + (here[y] - taken[kind][y]).astype(np.uint8).tobytes()
        for y, kind in zip(range(height), filters, strict=True)
    )


def png(pixels, filters=None, pieces=1, before=b"", after=b"", level=6):
    """A PNG by hand: filters one a row (0 by default), IDAT in some pieces, other chunks around it."""
    filters = [0] * len(pixels) if filters is None else filters
    data = zlib.compress(rows(pixels, filters), level)
    cuts = [len(data) * i // pieces for i in range(pieces + 1)]
    parts = b"".join(chunk(b"IDAT", data[i:j]) for i, j in pairwise(cuts))
    return SIGNATURE + head(*pixels.shape[::-1]) + before + parts + after + chunk(b"IEND")


def mended(data):
    """Every length within the file and every checksum right, so that what lies behind them is reached."""
    at, parts = 8, data[:8]
    while at + 12 <= len(data):
        length = min(int.from_bytes(data[at : at + 4], "big"), len(data) - at - 12)
        parts += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return parts


GRAY = RANDOM.integers(0, 256, (9, 7), np.uint8)
WHOLE = png(GRAY, [0, 1, 2, 3, 4, 4, 3, 2, 1])

STREAM = zlib.compress(b"\0" + GRAY[0].tobytes())
ROW = GRAY[:1]


def one_row(stream=STREAM, width=7, height=1, kind=b"\x08\0\0\0\0", end=b""):
    return SIGNATURE + head(width, height, kind) + chunk(b"IDAT", stream) + chunk(b"IEND") + end


ODD = {
    "transparent": png(GRAY, before=chunk(b"tRNS", b"\0\7")),
    "turned": png(GRAY, before=chunk(b"eXIf", b"MM\0*\0\0\0\10\0\0")),
    "text": png(GRAY, before=chunk(b"tEXt", b"a\0b")),
    "text at the end": png(GRAY, after=chunk(b"tEXt", b"a\0b")),
    "animated": png(GRAY, before=chunk(b"acTL", struct.pack(">II", 1, 0))),
    "color profile": png(GRAY, before=chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x"))),
    "a palette": png(GRAY, before=chunk(b"PLTE", bytes(3))),
    "unknown": png(GRAY, before=chunk(b"abCd", b"x")),
    "a second header": png(GRAY, before=head(7, 9)),
    "no pixels": SIGNATURE + head(7, 1) + chunk(b"IEND"),
    "no header": SIGNATURE + chunk(b"IDAT", STREAM) + chunk(b"IEND"),
    "16 bits": one_row(kind=b"\x10\0\0\0\0"),
    "color": one_row(kind=b"\x08\2\0\0\0"),
    "interlaced": one_row(kind=b"\x08\0\0\0\1"),
    "no width": one_row(width=0),
    "65,536 wide": one_row(zlib.compress(bytes(65_537)), 65_536),
    "too wide for 32 bits": one_row(width=0xFFFFFFFF, height=0xFFFFFFFF),
    "a row too few": one_row(height=2),
    "a row too many": one_row(zlib.compress(b"\0" + GRAY[0].tobytes() + b"\0")),
    "filter 5": one_row(zlib.compress(b"\5" + GRAY[0].tobytes())),
    "no checksum": one_row(STREAM[:-4]),
    "a wrong checksum": one_row(STREAM[:-1] + bytes([STREAM[-1] ^ 1])),
    "bytes after the stream": one_row(STREAM + b"\0"),
    "an empty IDAT": SIGNATURE + head(7, 1) + chunk(b"IDAT", STREAM) + chunk(b"IDAT") + chunk(b"IEND"),
    "a dictionary": one_row(b"\x78\xbb\0\0\0\1" + STREAM[2:]),
    "bytes after the end": one_row(end=b"\0"),
    "IEND with data": SIGNATURE + head(7, 1) + chunk(b"IDAT", STREAM) + chunk(b"IEND", b"x"),
    "parted IDAT": SIGNATURE + head(7, 1) + chunk(b"IDAT", STREAM[:5]) + chunk(b"gAMA", bytes(4))
    + chunk(b"IDAT", STREAM[5:]) + chunk(b"IEND"),
    "a chunk beyond the end": SIGNATURE + head(7, 1) + b"\x7f\xff\xff\xffIDAT" + STREAM,
    "nothing": b"", "a signature": SIGNATURE, "a jpeg": b"\xff\xd8\xff\xe0" + bytes(50),
}  # fmt: skip


# Sound files of every kind, and a decoder by the specification, apart from Pillow and from ext/png.c: slow, plain.

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16),
         (6, 8), (6, 16)]  # fmt: skip
PASSES = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]


def guesses(a, b, c):
    """What the five filters take for a byte from those at the left, above, and above at the left."""
    p = a + b - c
    return 0, a, b, (a + b) // 2, min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]


def any_png(values, kind, depth, *extra, interlaced=False):
    """values: whole numbers (H, W, channels) of `depth` bits, as a PNG of color type `kind`; its filters in turn.
    extra: chunks before the pixels."""
    height, width, channels = values.shape
    pixel, stream = max(1, channels * depth // 8), b""
    for x, y, dx, dy in PASSES if interlaced else [(0, 0, 1, 1)]:
        part = values[y::dy, x::dx]
        if part.size == 0:
            continue
        bits = (part[..., None] >> np.arange(depth)[::-1]) & 1
        lines = np.packbits(bits.reshape(len(part), -1).astype(np.uint8), axis=1)
        wide = np.pad(lines, ((1, 0), (pixel, 0))).astype(int)
        for i in range(1, len(wide)):
            row, above = wide[i].tolist(), wide[i - 1].tolist()
            here = zip(row[pixel:], row[:-pixel], above[pixel:], above[:-pixel], strict=True)
            stream += bytes([i % 5]) + bytes(
                (v - guesses(a, b, c)[i % 5]) & 255 for v, a, b, c in here
            )
    data = zlib.compress(stream)
    form = bytes([depth, kind, 0, 0, int(interlaced)])
    middle = len(data) // 2
    parts = [*extra, (b"IDAT", data[:middle]), (b"IDAT", data[middle:])]
    return (
        SIGNATURE
        + head(width, height, form)
        + b"".join(chunk(*part) for part in parts)
        + chunk(b"IEND")
    )


def random_png(kind, depth, *extra, interlaced=False, height=9, width=11, seed=0):
    """Noise of one kind, with a palette where it needs one."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 1 << depth, (height, width, CHANNELS[kind]))
    if kind == 3:
        extra = ((b"PLTE", random.bytes(3 << depth)), *extra)
    return any_png(values, kind, depth, *extra, interlaced=interlaced)


def chunks(data):
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def unfiltered(stream, height, stride, pixel):
    """The rows of one pass, uint8 (height, stride), and what is left of the stream."""
    found = np.zeros((height + 1, stride + pixel), np.uint8)  # a row and a pixel of zeros before
    for y in range(1, height + 1):
        kind, line = stream[0], stream[1 : 1 + stride]
        stream = stream[1 + stride :]
        row, above = found[y], found[y - 1]
        for x, value in enumerate(line):
            guess = guesses(int(row[x]), int(above[x + pixel]), int(above[x]))[kind]
            row[x + pixel] = (value + guess) & 255
    return found[1:, pixel:], stream


def samples(rows, width, depth, channels):
    bits = np.unpackbits(rows, axis=1)[:, : width * channels * depth].reshape(
        len(rows), width, channels, depth
    )
    return bits.astype(np.int64) @ (1 << np.arange(depth)[::-1])


def reference_gray(data):
    """(gray of 0 to 1 in float64 (H, W), luma and composited on black; bits of a channel; color type)"""
    parts = {}
    for name, content in chunks(data):
        parts[name] = parts.get(name, b"") + content
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    channels = CHANNELS[kind]
    pixel = max(1, channels * depth // 8)
    stream = zlib.decompress(parts[b"IDAT"])
    values = np.zeros((height, width, channels), np.int64)
    for x, y, dx, dy in PASSES if interlaced else [(0, 0, 1, 1)]:
        w, h = len(range(x, width, dx)), len(range(y, height, dy))
        if w and h:
            rows_, stream = unfiltered(stream, h, (w * channels * depth + 7) // 8, pixel)
            values[y::dy, x::dx] = samples(rows_, w, depth, channels)
    assert stream == b""
    most, clear = (1 << depth) - 1, parts.get(b"tRNS")
    alpha = np.ones((height, width))
    if kind == 3:
        palette = np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3) / 255
        opaque = np.ones(len(palette))
        opaque[: len(clear or b"")] = np.frombuffer(clear or b"", np.uint8) / 255
        alpha, color = opaque[values[..., 0]], palette[values[..., 0]]
    else:
        if kind >= 4:
            alpha = values[..., -1] / most
        elif clear:
            keys = np.frombuffer(clear, ">u2")
            alpha = (values != keys).any(axis=2).astype(float)
        color = values[..., : 3 if kind in (2, 6) else 1] / most
    luma = color @ [0.299, 0.587, 0.114] if color.shape[2] == 3 else color[..., 0]
    return luma * alpha, depth, kind
