"""Sound files of every format, ways to damage them, and what comes of it. For tests and tests/endurance/bad_input.py."""

import io

import numpy as np
from PIL import Image

from organ_infer import ImageError
from support.image_files import GRAY, STACK, dicom, npy, npz, saved, slices, tiff
from support.png_files import KINDS, any_png, random_png

WIDE = np.add.outer(np.arange(20) * 5, np.arange(24) * 3).astype(np.uint8)
WIDE[5:12, 6:15] ^= 0x55
COLOUR = np.dstack([WIDE, WIDE[::-1], WIDE[:, ::-1]])
CLEAR = {0: (b"tRNS", b"\0\1"), 2: (b"tRNS", b"\0\1\0\2\0\3"), 3: (b"tRNS", b"\0\x80")}
NAMES = {0: "gray", 2: "RGB", 3: "palette", 4: "gray and alpha", 6: "RGBA"}


def checked():
    """{name: bytes} in formats with a checksum on every byte that counts: no damage may pass unseen."""
    found = {"PNG, 8-bit gray": any_png(WIDE[..., None].astype(int), 0, 8)}
    for kind, depth in KINDS:
        for interlaced in (False, True):
            name = f"PNG, {depth}-bit {NAMES[kind]}{', interlaced' if interlaced else ''}"
            found.setdefault(name, random_png(kind, depth, interlaced=interlaced))
    for kind, extra in CLEAR.items():
        found[f"PNG, 8-bit {NAMES[kind]} with a transparent color"] = random_png(kind, 8, extra)
    found["PNG, turned by EXIF"] = saved(WIDE, exif=turned())
    found["PNG, 3 frames"] = pages("PNG", STACK[:3])
    found[".npz, stored"] = npz(a=STACK[:2], b=GRAY)
    found[".npz, deflated"] = npz(True, a=STACK[:2])
    return found


def unchecked():
    """{name: bytes} in formats without: damage to a pixel is another pixel, but a file cut short is seen."""
    images = {f"JPEG{name}": saved(WIDE, "JPEG", **options) for name, options in JPEGS.items()}
    images |= {f"TIFF, {name}": saved(WIDE, "TIFF", compression=name) for name in TIFFS}
    images |= {
        "JPEG, color": saved(COLOUR, "JPEG"),
        "TIFF, 3 pages": tiff(*STACK[:3]),
        "TIFF, 16 bits": tiff(GRAY.astype(np.uint16) * 257),
        "BMP": saved(WIDE, "BMP"),
        "GIF": saved(WIDE, "GIF"),
        "GIF, 3 frames": pages("GIF", STACK[:3]),
        "PGM": saved(WIDE, "PPM"),
        "PGM in digits": b"P2 7 9 255 " + " ".join(map(str, GRAY.ravel())).encode() + b"\n",
        "WebP, lossless": saved(WIDE, "WEBP", lossless=True),
        "WebP": saved(COLOUR, "WEBP"),
        "JPEG 2000": saved(WIDE, "JPEG2000"),
        "JPEG 2000, bare": saved(WIDE, "JPEG2000", no_jp2=True),
        ".npy": npy(STACK[:2]),
    }
    return images | dicoms()


JPEGS = {"": {}, ", progressive": {"progressive": True}}
TIFFS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")


def dicoms():
    """None where pydicom is not installed."""
    try:
        import pydicom
    except ImportError:
        return {}
    units = {"RescaleSlope": 1, "RescaleIntercept": -100}
    frames = pydicom.dcmread(io.BytesIO(dicom(STACK[:2].astype(np.uint16), **units)))
    frames.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    frames.save_as(file)
    deflated = pydicom.uid.DeflatedExplicitVRLittleEndian
    return {
        "DICOM": dicom(WIDE.astype(np.uint16), **units),
        "DICOM, 2 frames, RLE": file.getvalue(),
        "DICOM, deflated": dicom(WIDE.astype(np.uint16), **units, syntax=deflated),
    }


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def pages(form, stack):
    first, *others = map(Image.fromarray, stack)
    return saved(first, form, save_all=True, append_images=others)


def answer(data):
    """{name: pixels} of every slice."""
    return {name: found.pixels for name, found in slices(data).items()}


def outcome(data, expected, read=answer):
    """`refused`, `same`, `different`, or `crashed: ` and why: an error of another kind than ImageError."""
    try:
        found = read(data)
    except ImageError as e:
        return "refused" if str(e) and "\n" not in str(e) else f"crashed: no line ({e!r})"
    except Exception as e:
        return f"crashed: {e!r}"
    alike = list(found) == list(expected) and all(
        found[name].dtype == pixels.dtype and np.array_equal(found[name], pixels)
        for name, pixels in expected.items()
    )
    return "same" if alike else "different"


def cuts(data):
    return (data[:length] for length in range(len(data)))


def flips(data):
    for bit in range(len(data) * 8):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        yield bytes(other)


def edits(data, random, count):
    """A few bytes of a file replaced, taken out, put in, or moved."""
    for _ in range(count):
        other = bytearray(data)
        for _ in range(random.randint(1, 6)):
            at, length = random.randrange(len(other) + 1), random.choice((0, 1, 1, 2, 4, 8, 40))
            new = random.choice(
                (b"", random.randbytes(length), bytes(length), b"\xff" * length, other[:length])
            )
            other[at : at + length] = new
        yield bytes(other)
