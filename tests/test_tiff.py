"""TIFF files that Pillow would decode as something else, or refuse without the reason."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from support.image_files import decode, refused, saved, tiff

from organ_infer import ImageError
from organ_infer.images import decode_slices
from organ_infer.images.tiff import page_offsets, starting_at

GRAY = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
FLOAT = GRAY.astype(np.float64)


def pages_of(data):
    """For each slice its pixels, or the error in their place."""
    found = []
    for _, read in decode_slices(data):
        try:
            found.append(read().pixels)
        except ImageError as e:
            found.append(str(e))
    return found


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("page", "tags", "named"),
    [
        (FLOAT, {"t339": 3}, "64-bit float"),
        (GRAY.astype(np.float16), {"t339": 3}, "16-bit float"),
        (GRAY.astype(np.uint64), {}, "64-bit unsigned"),
        (GRAY.astype(np.int16), {"t339": 2, "t262": 0}, "16-bit signed, 0 as white"),
        (GRAY.astype(np.complex64), {"t339": 6}, "64-bit complex"),
        (
            np.dstack([GRAY] * 2),
            {"t262": 1, "t284": 2},
            "separate planes of 8-bit unsigned, 2 channels",
        ),
        (
            np.dstack([GRAY] * 3).astype(np.uint16),
            {"t284": 2},
            "separate planes of 16-bit unsigned",
        ),
    ],
)
def test_a_sound_file_of_an_unsupported_type_is_refused_with_the_type(order, page, tags, named):
    data = tiff(page, order=order, **tags)
    refused(data, f"TIFF: unsupported pixel type: {named}.*; save gray of 8 or 16 bits$")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_file_is_called_damaged():
    data = tiff(GRAY)
    refused(data[:4] + b"\xff\xff\xff\x7f" + data[8:], "damaged|the end of the file is missing")


def test_separate_planes_of_8_bits_are_read():
    color = np.dstack([GRAY, GRAY + 50, GRAY + 100])
    planes = tiff(color, t284=2)
    assert "converted from color to gray" in decode(planes).warnings


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_one_unsupported_page_fails_alone(odd):
    pages = [GRAY, GRAY + 1, GRAY + 2]
    # one file of three pages, of which one has the tags of 64-bit floats
    whole = bytearray(tiff(*[np.repeat(page, 8, axis=1) for page in pages]))
    order = page_offsets(bytes(whole))
    count = int.from_bytes(whole[order[odd] : order[odd] + 2], "little")
    for i in range(count):
        at = order[odd] + 2 + 12 * i
        if int.from_bytes(whole[at : at + 2], "little") == 258:
            whole[at + 8 : at + 10] = (64).to_bytes(2, "little")
    found = pages_of(bytes(whole))
    assert len(found) == 3
    for i, page in enumerate(pages):
        if i == odd:
            assert found[i].startswith("TIFF: unsupported pixel type: 64-bit unsigned")
        else:
            np.testing.assert_array_equal(found[i], np.repeat(page, 8, axis=1))
    ((name, read),) = decode_slices(bytes(whole), selector=str((odd + 1) % 3))
    assert name == f"#{(odd + 1) % 3}"
    np.testing.assert_array_equal(read().pixels, np.repeat(pages[(odd + 1) % 3], 8, axis=1))


@pytest.mark.parametrize("big", [False, True])
def test_each_page_can_be_the_first(big):
    pages = [Image.fromarray(GRAY + i) for i in range(3)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], big_tiff=big)
    offsets = page_offsets(file.getvalue())
    assert len(offsets) == 3
    for i, offset in enumerate(offsets):
        alone = Image.open(io.BytesIO(starting_at(file.getvalue(), offset)))
        np.testing.assert_array_equal(np.asarray(alone), GRAY + i)


@pytest.mark.parametrize("loops", [0, 1])
def test_a_chain_that_ends_early_or_runs_in_a_circle_ends(loops):
    data = bytearray(tiff(GRAY, GRAY))
    first, second = page_offsets(bytes(data))
    count = int.from_bytes(data[second : second + 2], "little")
    at = second + 2 + 12 * count
    data[at : at + 4] = (first if loops else 1 << 30).to_bytes(4, "little")
    assert page_offsets(bytes(data)) == [first, second]


def described(text, pages=1):
    images = [Image.fromarray(GRAY)] * pages
    file = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if pages > 1 else {}
    images[0].save(file, "TIFF", description=text, **more)
    return file.getvalue()


IMAGEJ = "ImageJ=1.53k\nimages={}\nslices={}\nhyperstack=false\n"


@pytest.mark.parametrize(
    "text",
    [
        IMAGEJ.format(4, 4),
        json.dumps({"shape": [4, 6, 8]}),
        json.dumps({"shape": [2, 2, 6, 8]}),
    ],
)
def test_a_page_that_stands_for_a_stack_is_refused(text):
    refused(
        described(text),
        r"TIFF: the description declares 4 slices, found 1 pages; save one page per slice",
    )
    refused(described(text, 3), "declares 4 slices, found 3 pages")
    assert len(pages_of(described(text, 4))) == 4


@pytest.mark.parametrize(
    "text",
    [
        "a scan; images=4",
        "ImageJ=1.53k\nunit=mm\n",
        IMAGEJ.format(1, 1),
        json.dumps({"shape": [6, 8]}),
        json.dumps({"shape": "none"}),
        '{"shape": [',
        json.dumps({"shape": {"a": 1}}),
    ],
)
def test_other_descriptions_change_nothing(text):
    (pixels,) = pages_of(described(text))
    np.testing.assert_array_equal(pixels, GRAY)


def test_a_plain_file_has_no_description():
    np.testing.assert_array_equal(decode(saved(Image.fromarray(GRAY), "TIFF")).pixels, GRAY)


def test_a_page_of_one_pixel_can_stand_for_a_stack():
    file = io.BytesIO()
    Image.fromarray(GRAY[:1, :1]).save(file, "TIFF", description=json.dumps({"shape": [4, 1, 1]}))
    refused(file.getvalue(), "declares 4 slices, found 1 pages")
