"""The page's other modules in JavaScript (export/web/page) against the runtime, in node: PNG, orientation, warnings."""

import base64
import itertools
import struct
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.image_files import ALPHA, COLOUR, DEEP, GRAY, decode, saved
from support.png_files import SIGNATURE, WHOLE, chunk, head, png

from organ_infer import OrganClassifier
from organ_infer._packing import pack
from organ_infer.bundle.manifest import AXES, RESAMPLE, Input
from organ_infer.errors import ImageError
from organ_infer.images.boxes import Box, cut_box
from organ_infer.images.orientation import reorient
from organ_infer.images.types import Slice
from organ_infer.plausibility import pixel_warnings, shape_warnings
from tests.support.page_modules import call_page, decoded, encoded, find_node

pytestmark = pytest.mark.skipif(find_node() is None, reason="node 18 is not installed")

SPEC = Input(size=28, mean=0.5, std=0.5, window=(40, 400), orientation=("L", "P"))
ORIENTATIONS = [a + b for a, b in itertools.permutations(AXES, 2) if AXES[a] != AXES[b]]


# PNG.


def with_chunk(data, name, content):
    """A PNG with another chunk before its pixel data."""
    place = data.index(b"IDAT") - 4
    return data[:place] + chunk(name, content) + data[place:]


def gray_alpha_16():
    """A PNG of 16-bit gray with alpha, which Pillow does not write."""
    pixels = np.stack([DEEP, DEEP[::-1]], axis=-1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    size = DEEP.shape[::-1]
    return (
        SIGNATURE
        + head(*size, b"\x10\4\0\0\0")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND")
    )


def exif(orientation):
    """A block of EXIF that holds an orientation."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def palette(mode):
    return Image.fromarray(COLOUR).convert("RGB").quantize(9 if mode == "4 bits" else 200)


RGBA = Image.fromarray(np.dstack([COLOUR, ALPHA]))
SOUND = {
    "gray": saved(GRAY),
    "every filter": WHOLE,
    "16 bits": saved(DEEP),
    "1 bit": saved(Image.fromarray(GRAY).convert("1")),
    "2 bits": saved(palette("4 bits").convert("L").point(lambda v: v // 64), bits=2),
    "color": saved(COLOUR),
    "gray as color": saved(np.dstack([GRAY] * 3)),
    "color and alpha": saved(RGBA),
    "gray and alpha": saved(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA")),
    "16-bit gray and alpha": gray_alpha_16(),
    "palette": saved(palette("8 bits")),
    "palette of 4 bits": saved(palette("4 bits"), bits=4),
    "palette with alpha": saved(palette("8 bits"), transparency=bytes(range(0, 200))),
    "transparent gray": saved(Image.fromarray(GRAY), transparency=int(GRAY[3, 3])),
    "transparent 16-bit gray": with_chunk(saved(DEEP), b"tRNS", struct.pack(">H", DEEP[2, 2])),
    "transparent color": saved(Image.fromarray(COLOUR), transparency=tuple(map(int, COLOUR[1, 1]))),
    "several pieces": png(GRAY, pieces=5),
    "gamma": with_chunk(saved(GRAY), b"gAMA", struct.pack(">I", 100_000)),
    **{
        f"EXIF orientation {value}": with_chunk(saved(GRAY), b"eXIf", exif(value))
        for value in range(1, 9)
    },
    **{
        name: (ROOT / "tests" / "corpus" / "images" / name).read_bytes()
        for name in (
            "gray.png",
            "gray-alpha16.png",
            "gray16-interlaced.png",
            "rgba-interlaced.png",
            "palette-transparent.png",
            "turned.png",
        )
    },
    **{path.name: path.read_bytes() for path in sorted((ROOT / "examples").glob("*-1.png"))},
}


@pytest.fixture(scope="module")
def read_in_node():
    """Every sound PNG as the page reads it."""
    cases = [
        {"call": "readPng", "data": base64.b64encode(data).decode()} for data in SOUND.values()
    ]
    return dict(zip(SOUND, call_page(cases), strict=True))


@pytest.mark.parametrize("name", SOUND)
def test_a_png_has_the_pixels_and_warnings_of_the_runtime(name, read_in_node):
    expected = decode(SOUND[name])

    answer = read_in_node[name]

    assert "error" not in answer, answer
    found = decoded(answer["result"]["pixels"])
    assert found.dtype == expected.pixels.dtype
    np.testing.assert_array_equal(found, expected.pixels)
    assert tuple(answer["result"]["warnings"]) == expected.warnings


def test_of_an_animation_the_first_frame_is_read():
    data = (ROOT / "tests" / "corpus" / "images" / "frames.png").read_bytes()

    (answer,) = call_page([{"call": "readPng", "data": base64.b64encode(data).decode()}])

    np.testing.assert_array_equal(decoded(answer["result"]["pixels"]), decode(data, "0").pixels)
    assert any(text.startswith("only frame 0 of ") for text in answer["result"]["warnings"])


def damaged_pngs():
    wrong_sum = bytearray(WHOLE)
    wrong_sum[-14] ^= 1
    short = SIGNATURE + head(7, 90) + chunk(b"IDAT", WHOLE[41:-16]) + chunk(b"IEND")
    return {
        "cut": (WHOLE[:-20], "the end of the file is missing"),
        "no end": (WHOLE[:-12], "the end of the file is missing"),
        "checksum": (bytes(wrong_sum), "checksum"),
        "too few rows": (short, "truncated or damaged"),
        "no pixels": (SIGNATURE + head(7, 9) + chunk(b"IEND"), "no pixel data"),
        "no deflate": (
            SIGNATURE + head(7, 9) + chunk(b"IDAT", b"no deflate") + chunk(b"IEND"),
            "the pixel data is damaged",
        ),
        "depth": (SIGNATURE + head(7, 9, b"\x03\0\0\0\0") + chunk(b"IEND"), "header is damaged"),
        "empty": (SIGNATURE + head(0, 9) + chunk(b"IEND"), "0 x 9 pixels: the image is empty"),
        "bomb": (
            SIGNATURE + head(60_000, 60_000) + chunk(b"IEND"),
            "60000 x 60000 pixels: too large, at most 89,478,485 pixels are read",
        ),
        "palette": (
            SIGNATURE
            + head(7, 1, b"\x08\3\0\0\0")
            + chunk(b"IDAT", zlib.compress(bytes(8)))
            + chunk(b"IEND"),
            "the palette is missing",
        ),
    }


@pytest.mark.parametrize(("name", "expected"), [(k, v[1]) for k, v in damaged_pngs().items()])
def test_a_damaged_png_is_refused_with_its_reason(name, expected):
    data = damaged_pngs()[name][0]
    with pytest.raises((ImageError, OSError, SyntaxError, ValueError)):
        decode(data)

    (answer,) = call_page([{"call": "readPng", "data": base64.b64encode(data).decode()}])

    assert expected in answer["error"]
    assert answer["error"].startswith(("PNG: ", "0 x", "60000 x"))


# Orientation and boxes.


def test_every_pair_of_orientations_is_reoriented_as_in_the_runtime():
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    pairs = [
        (source, target)
        for source in ORIENTATIONS
        for target in ORIENTATIONS
        if {AXES[letter] for letter in source} == {AXES[letter] for letter in target}
    ]
    assert len(pairs) == 3 * 8 * 8

    answers = call_page(
        [
            {"call": "reorient", "slice": encoded(pixels), "source": source, "target": target}
            for source, target in pairs
        ]
    )

    for (source, target), answer in zip(pairs, answers, strict=True):
        np.testing.assert_array_equal(
            decoded(answer["result"]), reorient(pixels, tuple(source), tuple(target))
        )


@pytest.mark.parametrize("box", [None, (2, 1, 5, 4), (0, 0, 1, 1)])
@pytest.mark.parametrize("stated", [None, "PL", "AL"])
@pytest.mark.parametrize("chosen", [None, "PR"])
def test_a_slice_is_cut_and_reoriented_as_in_the_runtime(box, stated, chosen, bundle):
    pixels = np.arange(40, dtype=np.int16).reshape(5, 8)
    field = (400.0, 260.0)
    orientation = None if stated is None else tuple(stated)
    whole = Slice(pixels, ("a warning",), orientation, field)
    with OrganClassifier(bundle, device="cpu", orientation=chosen) as classifier:
        expected = classifier._prepare(cut_box(whole, Box(*box)) if box else whole)
    edges = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) if box else None

    (answer,) = call_page(
        [
            {
                "call": "prepared",
                "slice": encoded(pixels),
                "field": field,
                "orientation": stated,
                "box": edges,
                "chosen": chosen,
                "input": asdict(SPEC),
            }
        ]
    )

    np.testing.assert_array_equal(decoded(answer["result"]["pixels"]), expected.pixels)
    # the warnings of reading are those of the file
    assert ("a warning", *answer["result"]["warnings"]) == expected.warnings


@pytest.mark.parametrize(
    ("pixels", "orientation", "change", "expected"),
    [
        (np.int16, None, {"window": None}, "Hounsfield units (int16) are not supported"),
        (np.uint8, "PL", {"orientation": None}, "this model does not define an orientation"),
        (np.uint8, "FL", {}, "expected a slice in the axial plane, found one in the coronal plane"),
    ],
)
def test_a_slice_that_the_model_does_not_take_is_refused(pixels, orientation, change, expected):
    case = {
        "call": "prepared",
        "slice": encoded(np.zeros((4, 4), pixels)),
        "orientation": orientation,
        "chosen": None,
        "input": asdict(SPEC) | change,
    }

    (answer,) = call_page([case])

    assert expected in answer["error"]


# Warnings.


def body_in_air(size):
    """Gray (size, size): a bright disk with a dark rim on black."""
    y, x = np.indices((size, size)) / size - 0.5
    radius = np.hypot(x, y)
    pixels = np.where(radius < 0.4, 150 + 80 * np.sin(40 * x), np.where(radius < 0.6, 25, 0))
    return pixels.astype(np.uint8)


def implausible_slices():
    random = np.random.default_rng(8)
    crop = random.integers(60, 190, (28, 28), np.uint8)
    framed = np.zeros((28, 28), np.uint8)
    framed[1:-1, 1:-1] = crop[1:-1, 1:-1]
    yield from (crop, framed, np.full((28, 28), 77, np.uint8), body_in_air(28), body_in_air(200))
    yield np.repeat([[0] * 14 + [255] * 14], 28, axis=0).astype(np.uint8)
    yield random.integers(100, 150, (28, 28), np.uint8)
    # black pixels that are next to those seen from outside, but are not seen themselves
    for _ in range(20):
        porous = np.where(random.random((28, 28)) < 0.4, 0, 40).astype(np.uint8)
        porous[14, 14], porous[::27, ::27] = 200, 0
        yield porous
    yield from (np.asarray(Image.open(path)) for path in sorted((ROOT / "examples").glob("*.png")))


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("size", [20, 28, 45, 64])
def test_implausible_pixels_get_the_warnings_of_the_runtime(size, resample):
    spec = Input(size=size, mean=0.47, std=0.3, resample=resample, window=(40, 400))
    slices = list(implausible_slices())
    packed = np.concatenate(
        [pack(each, size, mean=spec.mean, std=spec.std, resample=resample) for each in slices]
    )
    expected = pixel_warnings(packed, spec)
    assert len({text for texts in expected for text in texts}) >= 4

    answers = call_page(
        [
            {"call": "pixelWarnings", "packed": encoded(each[0]), "input": asdict(spec)}
            for each in packed
        ]
    )

    assert [tuple(answer["result"]) for answer in answers] == expected


@pytest.mark.parametrize(
    ("height", "width", "field"),
    [
        (399, 399, None), (400, 400, None), (512, 300, None), (90, 90, (250, 250)), (90, 90, (249, 249)),
        (90, 90, (10, 300)), (90, 90, (299.6, 20)), (90, 91, (300.4, 20)), (90, 90, None),
    ],
)  # fmt: skip
def test_whole_slices_get_the_warnings_of_the_runtime(height, width, field):
    (answer,) = call_page(
        [{"call": "shapeWarnings", "height": height, "width": width, "field": field}]
    )

    assert tuple(answer["result"]) == shape_warnings(height, width, field)
