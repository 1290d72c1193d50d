"""A file that ends early: every length of a small one of each format, and what `check_complete` takes for an end."""

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from support.damaged_files import answer, outcome, turned
from support.image_files import COLOUR, DEEP, GRAY, dicom, npy, npz, saved, tiff
from support.png_files import chunk, head

from organ_infer import ImageError
from organ_infer.images.registry import FORMATS, SUFFIXES, open_slices
from organ_infer.images.truncation import _png_row_bytes, check_complete

SMALL = GRAY[:4, :5]
STACKED = np.stack([SMALL, SMALL[::-1], SMALL // 2])


def paged(form, **options):
    first, *others = map(Image.fromarray, STACKED)
    return saved(first, form, save_all=True, append_images=others, **options)


FILES = {
    "PNG": saved(SMALL),
    "PNG, frames": paged("PNG"),
    "PNG, palette": saved(Image.fromarray(COLOUR).quantize(4)),
    "JPEG": saved(SMALL, "JPEG"),
    "JPEG, progressive": saved(COLOUR, "JPEG", progressive=True),
    "TIFF": tiff(SMALL),
    "TIFF, big-endian": tiff(DEEP[:4, :5], order=">"),
    "TIFF, pages": tiff(*STACKED),
    "TIFF, deflated": saved(SMALL, "TIFF", compression="tiff_adobe_deflate"),
    "BMP": saved(Image.fromarray(SMALL).convert("RGB"), "BMP"),
    "GIF": saved(SMALL, "GIF"),
    "GIF, frames": paged("GIF"),
    "PBM": b"P4 3 2\n\xa0\x40",
    "PGM": saved(SMALL, "PPM"),
    "PGM in digits": b"P2 3 2 255\n1 22 3 44 5 255\n",
    "PPM": saved(COLOUR[:2, :2], "PPM"),
    "PPM in digits": b"P3 1 2 9\n1 2 3 4 5 6 ",
    "WebP, lossless": saved(SMALL, "WEBP", lossless=True),
    "WebP": saved(COLOUR, "WEBP"),
    "JPEG 2000": saved(SMALL, "JPEG2000"),
    "JPEG 2000, bare": saved(SMALL, "JPEG2000", no_jp2=True),
    ".npy": npy(SMALL),
    ".npy, stack": npy(STACKED.astype(np.int16)),
    ".npz": npz(a=SMALL, b=STACKED),
    ".npz, deflated": npz(True, a=STACKED),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_length_is_refused_or_the_same(name):
    data = FILES[name]
    expected = answer(data)
    assert expected
    kept = [n for n in range(len(data)) if outcome(data[:n], expected) != "refused"]
    assert all(outcome(data[:n], expected) == "same" for n in kept)
    # What may be missing: the checksum of an empty last chunk; white space; the zeros that pad a frame.
    assert all(len(data) - n <= 4 for n in kept), kept


@pytest.mark.filterwarnings("ignore")
def test_dicom_cut_at_any_length_is_refused_or_the_same():
    data = dicom(SMALL.astype(np.uint16), RescaleSlope=1, RescaleIntercept=-9)
    expected = answer(data)
    found = {n: outcome(data[:n], expected) for n in range(len(data))}
    assert set(found.values()) <= {"refused", "same"} and found[len(data) - 1] == "refused"


# One format after another.


def whole(data, name):
    """Whether `check_complete` lets it pass; its only other end is the line of an ImageError."""
    try:
        check_complete(data, next(row for row in FORMATS if row.name == name))
    except ImageError as e:
        assert str(e) == f"{name}: the end of the file is missing; it is truncated or damaged"
        return False
    return True


def test_formats_that_say_themselves_where_they_end_are_not_asked():
    assert all(whole(b"", name) for name in ("JPEG", "BMP", "WEBP", "DICOM"))
    assert not any(whole(b"", name) for name in ("PNG", "TIFF", "GIF", "JPEG2000"))


def scanned(width, height, bits, interlaced):
    """Bytes of all rows, pixel by pixel, by the pattern that the PNG specification prints (Adam7)."""
    adam = [
        "16462646",
        "77777777",
        "56565656",
        "77777777",
        "36463646",
        "77777777",
        "56565656",
        "77777777",
    ]
    rows = {}
    for y in range(height):
        for x in range(width):
            key = (int(adam[y % 8][x % 8]) if interlaced else 0, y)
            rows[key] = rows.get(key, 0) + bits
    return sum(1 + -(-row // 8) for row in rows.values())


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 24, 32, 48, 64])
def test_the_rows_of_a_png_are_as_many_bytes_as_its_specification_says(bits):
    for width in range(1, 18):
        for height in range(1, 11):
            for interlaced in (0, 1):
                found = _png_row_bytes(width, height, bits, interlaced)
                assert found == scanned(width, height, bits, interlaced), (
                    width,
                    height,
                    interlaced,
                )


def png_of(stream, width=4, height=3, depth=8, kind=0, before=b"", pieces=1, after=b""):
    at = [len(stream) * i // pieces for i in range(pieces + 1)]
    middle = b"".join(chunk(b"IDAT", stream[a:b]) for a, b in pairwise(at))
    start = b"\x89PNG\r\n\x1a\n" + head(width, height, bytes([depth, kind, 0, 0, 0]))
    return start + before + middle + after + chunk(b"IEND")


def test_a_png_has_exactly_its_rows():
    size = 3 * 5
    for count in (0, 1, size - 1, size, size + 1, 200_000):
        assert whole(png_of(zlib.compress(bytes(count))), "PNG") == (count == size), count


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 131_072, 131_073])
def test_rows_and_chunks_of_any_size_are_counted_alike(size):
    """Around the blocks in which it is inflated, and of what is and is not compressible."""
    for raw in (bytes(size), np.random.default_rng(1).bytes(size)):
        for level in (0, 9):
            stream = zlib.compress(raw, level)
            for pieces in (1, 3):
                assert whole(png_of(stream, size - 1, 1, pieces=pieces), "PNG") == (size > 1)
                assert not whole(png_of(stream, size, 1, pieces=pieces), "PNG")
                assert not whole(png_of(stream[:-1], size - 1, 1, pieces=pieces), "PNG")
                assert size < 3 or not whole(png_of(stream, size - 2, 1, pieces=pieces), "PNG")


def test_a_png_s_stream_ends_with_its_checksum():
    stream = zlib.compress(bytes(15))
    assert whole(png_of(stream), "PNG")
    assert not whole(png_of(stream[:-1]), "PNG") and not whole(png_of(stream[:-4]), "PNG")
    assert not whole(png_of(stream[:-1] + b"\0"), "PNG") and not whole(png_of(b""), "PNG")


def test_a_palette_must_be_there_where_pixels_need_one():
    stream, palette = zlib.compress(bytes(15)), chunk(b"PLTE", bytes(6))
    assert whole(png_of(stream, kind=3, before=palette), "PNG")
    assert not whole(png_of(stream, kind=3), "PNG")
    assert whole(png_of(zlib.compress(bytes(3 * 13)), kind=2), "PNG")  # color needs none
    assert not whole(png_of(stream, kind=5), "PNG")  # no such color type


def fctl(number, width, height):
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 1, 0, 0))


def fdat(number, data):
    return chunk(b"fdAT", struct.pack(">I", number) + data)


def test_each_frame_of_a_png_has_its_own_rows():
    first, second = zlib.compress(bytes(15)), zlib.compress(bytes(2 * 3))
    begun = fctl(0, 4, 3)
    assert whole(png_of(first, before=begun, after=fctl(1, 2, 2) + fdat(2, second)), "PNG")
    parted = fdat(2, second[:5]) + fdat(3, second[5:])
    assert whole(png_of(first, before=begun, after=fctl(1, 2, 2) + parted), "PNG")
    assert whole(
        png_of(first, after=fctl(0, 2, 2) + fdat(1, second)), "PNG"
    )  # the first picture is no frame
    for frame in (
        fctl(1, 2, 3) + fdat(2, second),
        fctl(1, 2, 2),
        fctl(1, 2, 2) + fdat(2, second[:-1]),
    ):
        assert not whole(png_of(first, before=begun, after=frame), "PNG")
    two = fctl(1, 2, 2) + fdat(2, second)
    assert not whole(png_of(first[:-1], before=begun, after=two), "PNG")


def test_what_lies_behind_the_end_of_a_png_is_no_part_of_it():
    data = png_of(zlib.compress(bytes(15)))
    assert whole(data + b"anything", "PNG") and not whole(data[:-12], "PNG")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_s_chain_of_pages_is_followed_to_its_end(order, big):
    """Pages of 0, 1 and 3 tags, with bytes between them, of TIFF and of BigTIFF."""
    count, size, link = ("Q", 20, "Q") if big else ("H", 12, "I")
    mark = b"II" if order == "<" else b"MM"
    start = (
        mark + struct.pack(f"{order}HHH", 43, 8, 0) if big else mark + struct.pack(f"{order}H", 42)
    )
    data = start + struct.pack(order + link, len(start) + struct.calcsize(link) + 5) + bytes(5)
    ends = []
    for tags in (3, 0, 1):
        page = struct.pack(order + count, tags) + bytes(tags * size)
        after = len(data) + len(page) + struct.calcsize(link)
        ends.append(after)
        data += page + struct.pack(order + link, 0 if tags == 1 else after + 7) + bytes(7)
    assert whole(data, "TIFF") and whole(data[: ends[-1]], "TIFF")
    for n in range(ends[-1]):
        assert not whole(data[:n], "TIFF"), n
    at = ends[-1] - struct.calcsize(link)
    round_about = (
        data[:at] + struct.pack(order + link, len(start) + struct.calcsize(link) + 5) + data[at:]
    )
    assert whole(round_about, "TIFF")  # a chain that comes back to a page is followed once
    assert not whole(mark + struct.pack(f"{order}H", 44) + data[4:], "TIFF")


def test_a_gif_s_blocks_are_followed_to_its_trailer():
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    colored = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80 | 1, 0, 0) + bytes(3 * 4)
    extension = b"\x21\xf9" + b"\x04abcd" + b"\0"
    comment = b"\x21\xfe" + b"\x03;;;" + b"\x02;;" + b"\0"
    image = b"\x2c" + bytes(8) + b"\0" + b"\x02" + b"\x02\x44\x01" + b"\0"
    with_palette = b"\x2c" + bytes(8) + b"\x82" + bytes(3 * 8) + b"\x02" + b"\x01\x44" + b"\0"
    for parts in ([], [image], [extension, image, comment], [with_palette, image], [image] * 3):
        for start in (screen, colored):
            data = start + b"".join(parts)
            assert whole(data + b";", "GIF") and whole(data + b";more", "GIF")
            assert not any(whole(data[:n], "GIF") for n in range(len(data) + 1))
            assert not whole(data + b"\x2d;", "GIF")
    for bits in range(8):  # a palette of 2 to 256 colors
        flags = struct.pack("<HHBBB", 1, 1, 0x80 | bits, 0, 0)
        palette = b"\x01" * (3 * 2 ** (bits + 1))
        assert whole(b"GIF89a" + flags + palette + image + b";", "GIF")
        assert not whole(b"GIF89a" + flags + palette[:-1] + image + b";", "GIF")
        unused = struct.pack("<HHBBB", 1, 1, bits, 0, 0)  # no flag, no palette
        assert whole(b"GIF89a" + unused + image + b";", "GIF")


def test_digits_must_end_in_white_space():
    for kind in (b"P2", b"P3"):
        assert not whole(kind + b" 1 1 9 1", "PPM")
        assert all(
            whole(kind + b" 1 1 9 1" + space, "PPM") for space in (b" ", b"\n", b"\r", b"\t")
        )
    assert all(whole(kind + b" 1 1 255 1", "PPM") for kind in (b"P1", b"P4", b"P5", b"P6"))


def test_a_jpeg_2000_codestream_ends_in_its_mark():
    code = b"\xff\x4f" + b"abc" + b"\xff\xd9"
    assert whole(code, "JPEG2000") and whole(code + b"\0\0", "JPEG2000")
    assert not any(whole(code[:n], "JPEG2000") for n in range(2, len(code)))

    def box(kind, content, size=None):
        return struct.pack(">I", len(content) + 8 if size is None else size) + kind + content

    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    long = struct.pack(">I4sQ", 1, b"jp2c", 16 + len(code)) + code
    for last in (box(b"jp2c", code), box(b"jp2c", code, 0), long):
        assert whole(start + last, "JPEG2000")
        assert not any(whole((start + last)[:n], "JPEG2000") for n in range(2, len(start + last)))
    for last in (box(b"jp2c", code), long):
        assert whole(start + last + box(b"xml ", b"more"), "JPEG2000")
    wide = struct.pack(">I4sQ", 1, b"xml ", 16 + 3) + b"abc"
    assert whole(start + wide + box(b"jp2c", code), "JPEG2000")
    assert not whole(start, "JPEG2000") and not whole(start + box(b"jp2c", code[:-1]), "JPEG2000")
    assert not whole(
        start + struct.pack(">I4sQ", 1, b"xml ", 0) + b"abc", "JPEG2000"
    )  # it would not go on


def test_every_suffix_of_a_directory_s_images_is_a_format_that_is_read(tmp_path):
    """The names of docs/guides/formats.md, and none twice."""
    listed = [
        "png",
        "jpg",
        "jpeg",
        "tif",
        "tiff",
        "bmp",
        "gif",
        "pbm",
        "pgm",
        "ppm",
        "pnm",
        "webp",
        "jp2",
        "j2k",
        "npy",
        "npz",
        "dcm",
    ]
    assert sorted(SUFFIXES) == sorted(f".{name}" for name in listed)
    forms = {
        "jpg": "JPEG",
        "tif": "TIFF",
        "pbm": "PPM",
        "pgm": "PPM",
        "pnm": "PPM",
        "jp2": "JPEG2000",
    }
    for name in listed:
        if name in ("npy", "npz", "dcm"):
            continue
        form = "JPEG2000" if name == "j2k" else forms.get(name, name.upper())
        path = tmp_path / f"a.{name}"
        path.write_bytes(saved(SMALL, form, no_jp2=True) if name == "j2k" else saved(SMALL, form))
        names = []
        for given, read in open_slices(str(path)):
            assert read().pixels.shape == (4, 5)
            names.append(given)
        assert names == [str(path)]


def test_exif_takes_nothing_from_the_end():
    data = saved(SMALL, exif=turned())
    expected = answer(data)
    assert {outcome(data[:n], expected) for n in range(len(data) - 4)} == {"refused"}
