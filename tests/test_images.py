"""Files to slices: each form against a reference, each kind of damage refused in one line."""

import io
import os
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_files import (
    ALPHA,
    COLOUR,
    DEEP,
    GRAY,
    close,
    decode,
    read_image,
    refused,
    same,
    saved,
    tiff,
)

from organ_infer import ImageError
from organ_infer.images.pillow import slice_of_image

FRAME = (b"fcTL", struct.pack(">IIIIIHHBB", 0, 7, 9, 0, 0, 1, 1, 0, 0))
IMPLAUSIBLE = "implausible: color image; CT slices are gray"


def luma(rgb):
    """ITU-R 601, to the nearest byte."""
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


# EXIF orientation -> where the pixels go, as the standard words it: the 0th row, the 0th column
TURNED = {
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p.T, 2),
    8: np.rot90,
}


# What is read.


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "GIF", "JPEG2000", "WEBP"])
def test_gray_of_8_bits_is_read_as_it_is(form):
    found = decode(saved(GRAY, form, **({"lossless": True} if form == "WEBP" else {})))
    same(found, GRAY)
    if form not in ("GIF", "WEBP"):  # these hold color only
        assert found.warnings == ()


def test_jpeg_is_what_pillow_decodes():
    data = saved(GRAY, "JPEG", quality=95)
    same(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PGM"])
def test_gray_of_16_bits_never_goes_through_8(form):
    # Pillow before 11 writes no PGM of 16 bits
    data = b"P5 7 9 65535\n" + DEEP.astype(">u2").tobytes() if form == "PGM" else saved(DEEP, form)
    same(decode(data), DEEP, np.uint16)
    assert decode(data).warnings == ()


def test_big_endian_tiff_of_16_bits():
    data = saved(Image.frombytes("I;16B", (7, 9), DEEP.astype(">u2").tobytes()), "TIFF")
    same(decode(data), DEEP, np.uint16)


def test_signed_tiff_is_hounsfield_units():
    units = (DEEP.astype(np.int32) - 32_768).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray(units.astype(np.int32)).save(file, "TIFF")
    with pytest.raises(ImageError, match="32-bit pixels are not supported"):
        decode(file.getvalue())
    for order in "<>":
        same(decode(tiff(units, order=order, t339=2)), units, np.int16)
    refused(tiff(GRAY, t339=2), "signed 8-bit")


def test_one_bit_is_black_and_white():
    same(decode(saved(Image.fromarray(GRAY > 127))), np.where(GRAY > 127, 255, 0))


def test_color_becomes_luma_and_says_so():
    found = decode(saved(COLOUR))
    close(found, luma(COLOUR))
    assert found.warnings == ("converted from color to gray", IMPLAUSIBLE)
    found = decode(saved(np.dstack([GRAY] * 3)))
    same(found, GRAY)
    assert found.warnings == ("converted from color to gray",)


def test_alpha_lies_on_black():
    found = decode(saved(np.dstack([COLOUR, ALPHA])))
    close(found, luma(COLOUR * (ALPHA[..., None] / 255)))
    assert found.warnings == (
        "converted from color to gray",
        "alpha composited on black",
        IMPLAUSIBLE,
    )
    found = decode(saved(Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])))
    close(found, GRAY * (ALPHA / 255))
    assert found.warnings == ("alpha composited on black",)


def test_a_palette_is_looked_up():
    image = Image.fromarray(COLOUR).quantize(8)
    found = decode(saved(image))
    close(found, luma(np.asarray(image.convert("RGB"))))
    assert found.warnings == ("converted from palette to gray", IMPLAUSIBLE)
    same(decode(saved(image, transparency=bytes(8))), np.zeros((9, 7)))


@pytest.mark.parametrize(
    ("pixels", "clear"),
    [(np.full((3, 3), 90, np.uint8), 90), (np.full((3, 3), 900, np.uint16), 900)],
)
def test_a_transparent_gray_value_is_black(pixels, clear):
    pixels[0, 0] = 5
    found = decode(saved(pixels, transparency=clear))
    same(found, np.where(pixels == clear, 0, pixels), pixels.dtype)
    assert found.warnings == ("alpha composited on black",)


def png(width, height, depth, kind, rows, *chunks):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    extra = b"".join(chunk(*c) for c in chunks)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + pixels + chunk(b"IEND", b"")


def test_a_transparent_value_counts_in_the_files_own_depth():
    same(decode(png(2, 1, 4, 0, [b"\x7c"], (b"tRNS", b"\0\x07"))), [[0, 0xCC]])
    same(decode(png(4, 1, 2, 0, [b"\x1b"], (b"tRNS", b"\0\x02"))), [[0, 85, 0, 255]])


def test_16_bit_color_says_that_8_bits_were_read():
    found = decode(png(1, 1, 16, 2, [b"\x10\xff" * 3]))
    same(found, [[0x10]])
    assert found.warnings[0] == "16-bit color or alpha read at 8 bits"
    with pytest.raises(ImageError, match="16-bit color with a transparent color"):
        decode(png(1, 1, 16, 2, [b"\x10\xff" * 3], (b"tRNS", b"\x10\xff" * 3)))


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("loaded", [False, True])
def test_a_pillow_tiff_is_reoriented_once(number, loaded):
    image = Image.open(io.BytesIO(tiff(GRAY, t274=number)))
    if loaded:
        image.load()
    same(slice_of_image(image), TURNED.get(number, np.asarray)(GRAY))


def test_a_pillow_image_s_transparent_gray_counts_in_the_file_s_bits():
    data = png(2, 1, 2, 0, [b"\xc0"], (b"tRNS", b"\0\3"))  # white, black; white is transparent
    same(decode(data), [[0, 0]])
    same(slice_of_image(Image.open(io.BytesIO(data))), [[0, 0]])
    loaded = Image.open(io.BytesIO(data))
    loaded.load()  # how many bits it had is gone
    assert "transparent gray value read as 8-bit; reopen the image, or pass its path" in (
        slice_of_image(loaded).warnings
    )
    one_bit = png(2, 1, 1, 0, [b"\x80"], (b"tRNS", b"\0\1"))
    for image in (decode(one_bit), slice_of_image(Image.open(io.BytesIO(one_bit)))):
        same(image, [[0, 0]])


@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientation_is_applied_and_said(number):
    exif = Image.Exif()
    exif[0x0112] = number
    expected = TURNED.get(number, np.asarray)
    said = (f"reoriented by its EXIF orientation ({number})",) if number > 1 else ()
    for data, pixels in {
        saved(GRAY, exif=exif): GRAY,
        tiff(GRAY, t274=number): GRAY,
        tiff(DEEP, t274=number): DEEP,
        saved(GRAY, "TIFF", exif=exif, compression="tiff_lzw"): GRAY,
    }.items():
        found = decode(data)
        same(found, expected(pixels), pixels.dtype)
        assert found.warnings == said
    jpeg = saved(GRAY, "JPEG", exif=exif)
    same(decode(jpeg), expected(np.asarray(Image.open(io.BytesIO(jpeg)))))


def test_gray_and_alpha_of_16_bits_keep_them():
    """Pillow alone keeps 8 of them."""
    alpha = DEEP[::-1]
    both = np.dstack([DEEP, alpha]).astype(">u2")
    rows = [row.tobytes() for row in both]
    expected = np.rint(DEEP / 65_535 * alpha)
    found = decode(png(7, 9, 16, 4, rows))
    same(found, expected, np.uint16)
    assert found.warnings == ("alpha composited on black",)
    refused(
        png(7, 9, 16, 4, rows, (b"acTL", struct.pack(">II", 2, 0)), FRAME),
        "frames of 16-bit gray with alpha",
    )


def test_a_tiff_of_12_bits_is_scaled_to_16():
    pixels = DEEP[:, :6] >> 4
    same(decode(tiff(pixels, bits=12)), np.rint(pixels / 4095 * 65_535), np.uint16)


@pytest.mark.parametrize(
    "data", [tiff(COLOUR.astype(np.uint16) * 257), b"P6 1 1 65535 " + b"\x10\xff" * 3]
)
def test_16_bit_color_of_other_formats_says_so_too(data):
    assert decode(data).warnings[0] == "16-bit color or alpha read at 8 bits"


def test_jpeg_2000_of_16_bits():
    deep = saved(DEEP, "JPEG2000")
    same(decode(deep), DEEP, np.uint16)
    assert decode(saved(COLOUR, "JPEG2000")).warnings == (
        "converted from color to gray",
        IMPLAUSIBLE,
    )


@pytest.mark.parametrize("maxval", [1, 3, 100, 255, 256, 4095, 65_535])
def test_pnm_counts_to_its_own_maximum(maxval):
    pixels = DEEP.astype(np.int64) % (maxval + 1)
    raw = pixels.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    top, dtype = (255, np.uint8) if maxval < 256 else (65_535, np.uint16)
    for data in (
        b"P5 7 9 %d " % maxval + raw,
        b"P2 7 9 %d " % maxval + " ".join(map(str, pixels.ravel())).encode() + b"\n",
    ):
        found = decode(data)
        assert found.pixels.dtype == dtype
        np.testing.assert_allclose(found.pixels, pixels / maxval * top, atol=0.51)


def test_bmp_and_cmyk_and_ycbcr():
    for data in (saved(COLOUR, "BMP"), saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF")):
        close(decode(data), luma(COLOUR))


def test_a_tiff_in_which_0_is_white_is_inverted():
    data = bytearray(saved(DEEP, "TIFF"))
    at = data.index(struct.pack("<HHII", 262, 3, 1, 1))
    data[at : at + 12] = struct.pack("<HHII", 262, 3, 1, 0)
    same(decode(bytes(data)), 65_535 - DEEP, np.uint16)


@pytest.mark.parametrize(
    "array", [GRAY, DEEP, DEEP.astype(">u2"), (DEEP // 2).astype(np.int16), np.asfortranarray(GRAY)]
)
def test_npy_of_one_slice(array):
    file = io.BytesIO()
    np.save(file, array)
    same(decode(file.getvalue()), array, array.dtype.newbyteorder("="))


# What is refused.


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (GRAY.astype(np.float32), "found float32"),
        (GRAY > 3, "found bool"),
        (np.zeros((2, 3, 4), np.uint8), r"\(2, 3, 4\) looks like color"),
        (np.zeros((1, 2, 3, 5), np.uint8), r"found uint8 \(1, 2, 3, 5\)"),
        (np.zeros((0, 4), np.uint8), "the image is empty"),
        (np.array([[{}]], object), r"found object|pickle"),
    ],
)
def test_npy_of_anything_else_is_refused(array, words):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    refused(file.getvalue(), words)


def test_an_npy_that_claims_more_than_it_holds_is_refused_before_memory_is_taken():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (9_000, 9_000)}
    )
    refused(file.getvalue() + b"few", "3 bytes of pixels")
    refused(b"\x93NUMPY\x01\x00\x10\x00{'descr': evil()}", "damaged or not supported")
    refused(b"\x93NUMPY\x09\x00", "version")


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0", b"\0" * 300, b"PK\x05\x06", b"<svg>"]
)
def test_what_is_no_image_is_refused(data):
    refused(data, "unknown image format" if data else "the file is empty")


def test_float_pixels_are_refused():
    refused(
        saved(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), "pixel mode F is not supported"
    )


def test_a_png_cut_anywhere_is_refused_or_the_same():
    """Pillow does not ask for the checksum of the empty last chunk: without it the picture is still whole."""
    data = saved(GRAY)
    for length in range(len(data)):
        try:
            same(decode(data[:length]), GRAY)
        except ImageError:
            continue
        assert length >= len(data) - 4


@pytest.mark.parametrize("pixels", [GRAY, DEEP, COLOUR], ids=["gray", "deep", "color"])
def test_a_png_with_a_flipped_bit_is_refused_or_the_same(pixels):
    data = saved(pixels)
    expected, kept = decode(data), 0
    for bit in range(0, len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = decode(bytes(flipped))
        except ImageError as e:
            assert str(e)
        else:
            np.testing.assert_array_equal(found.pixels, expected.pixels)
            kept += 1
    assert kept < len(data)


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "BMP", "GIF", "PPM"])
def test_a_cut_file_is_refused(form):
    data = saved(np.kron(GRAY, np.ones((9, 9), np.uint8)), form)
    for length in (5, len(data) // 3, len(data) // 2):
        refused(data[:length], form)


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000"])
def test_a_damaged_file_ends_in_one_kind_of_error(form):
    data = saved(GRAY, form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for at in range(0, len(data), max(1, len(data) // 80)):
            damaged = data[:at] + bytes([data[at] ^ 0xA5]) + data[at + 1 :]
            try:
                found = decode(damaged).pixels
            except ImageError as e:
                assert "\n" not in str(e)
            else:
                assert found.ndim == 2 and found.dtype.name in ("uint8", "uint16", "int16")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    refused(png(60_000, 60_000, 1, 0, [b"\0"]), "too large|exceeds limit")
    refused(png(65_535, 1_366, 8, 0, [b"\0"]), "too large")
    refused(png(65_536, 1, 8, 0, [b"\0" * 65_536]), "65,535 pixels per side")
    refused(saved(GRAY), "9 x 7|7 x 9", pixels=62)
    assert decode(saved(GRAY), pixels=63).pixels.size == 63


# Files.


def test_special_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, words in {
        tmp_path / "pipe.png": "a special file, not an image",
        "/dev/zero": "a special file, not an image",
        tmp_path: "a directory, not an image",
        tmp_path / "none": "no such file",
        "a\0b": "cannot be read",
        tmp_path / ("x" * 300): "cannot be read",
    }.items():
        with pytest.raises(ImageError, match=re.escape(words)):
            read_image(path)


def test_a_link_to_an_image_is_followed_and_a_loop_is_not(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(GRAY))
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("c.png")
    same(read_image(tmp_path / "b.png"), GRAY)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "c.png")


def test_a_file_over_the_limit_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(GRAY))
    with pytest.raises(ImageError, match="too large, at most 20 are read"):
        read_image(path, file_bytes=20)
    same(read_image(path, file_bytes=path.stat().st_size), GRAY)


def test_a_gif_s_transparent_gray_is_black():
    pixels = np.full((3, 3), 90, np.uint8)
    pixels[0] = 5
    found = decode(saved(pixels, "GIF", transparency=90))
    same(found, np.where(pixels == 90, 0, pixels))
    assert "alpha composited on black" in found.warnings


def test_a_loaded_pillow_image_s_transparent_gray_is_warned_of_below_16():
    """Four bits hold no more: from 16 on it can only be of 8."""
    for clear, warned in ((0, True), (15, True), (16, False), (200, False)):
        image = Image.open(io.BytesIO(saved(np.full((2, 2), 3, np.uint8), transparency=clear)))
        image.load()
        assert any("read as 8-bit" in text for text in slice_of_image(image).warnings) == warned, (
            clear
        )


def test_a_pillow_png_is_reoriented_by_its_exif():
    for number, turn in TURNED.items():
        exif = Image.Exif()
        exif[0x0112] = number
        image = Image.open(io.BytesIO(saved(GRAY, exif=exif)))
        found = slice_of_image(image)
        same(found, turn(GRAY))
        assert found.warnings == (f"reoriented by its EXIF orientation ({number})",)


@pytest.mark.parametrize("number", [0, 1, 9, "x", None])
def test_an_exif_orientation_that_is_none_turns_nothing(number, monkeypatch):
    monkeypatch.setattr(Image.Image, "getexif", lambda image: {0x0112: number})
    same(slice_of_image(Image.fromarray(GRAY)), GRAY)
    assert slice_of_image(Image.fromarray(GRAY)).warnings == ()


def test_exif_that_cannot_be_read_turns_nothing_and_is_told(monkeypatch):
    def fails(image):
        raise ValueError("odd\n" + "x" * 100)

    monkeypatch.setattr(Image.Image, "getexif", fails)
    found = slice_of_image(Image.fromarray(GRAY))
    same(found, GRAY)
    assert found.warnings == (f"unreadable EXIF ignored (odd {'x' * 76})",)


def test_a_frame_given_alone_says_so():
    image = Image.open(
        io.BytesIO(
            saved(
                Image.fromarray(GRAY),
                "GIF",
                save_all=True,
                append_images=[Image.fromarray(GRAY.copy()[::-1])],
            )
        )
    )
    image.seek(1)
    assert slice_of_image(image).warnings[0] == "only frame 1 of 2 was used"


def test_a_pillow_image_with_alpha_lies_on_black_in_every_mode():
    """Against its own conversion to RGBA."""
    gray = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])
    for image in (gray, gray.convert("La")):
        close(slice_of_image(image), GRAY * (ALPHA / 255))
        assert slice_of_image(image).warnings == ("alpha composited on black",)
    palette = Image.fromarray(COLOUR).quantize(8).convert("PA")
    palette.putalpha(Image.fromarray(ALPHA))
    close(
        slice_of_image(palette),
        luma(np.asarray(palette.convert("RGBA"))[..., :3] * (ALPHA[..., None] / 255)),
    )
    assert slice_of_image(palette).warnings[:2] == (
        "converted from palette to gray",
        "alpha composited on black",
    )
    multiplied = slice_of_image(Image.fromarray(np.dstack([COLOUR, ALPHA])).convert("RGBa"))
    np.testing.assert_allclose(multiplied.pixels, luma(COLOUR * (ALPHA[..., None] / 255)), atol=2.5)
    assert multiplied.warnings[:2] == ("converted from color to gray", "alpha composited on black")


@pytest.mark.parametrize("mode", ["RGBX", "YCbCr", "CMYK"])
def test_a_pillow_image_in_any_colors_is_luma_without_alpha(mode):
    found = slice_of_image(Image.fromarray(COLOUR).convert(mode))
    np.testing.assert_allclose(found.pixels, luma(COLOUR), atol=2.5)
    assert found.warnings == ("converted from color to gray", IMPLAUSIBLE)


def test_a_pillow_image_of_another_mode_is_refused():
    with pytest.raises(
        ImageError, match=r"^image: pixel mode HSV is not supported; save it as gray of 8 or 16"
    ):
        slice_of_image(Image.fromarray(COLOUR).convert("HSV"))
    same(
        slice_of_image(Image.frombytes("I;16B", (7, 9), DEEP.astype(">u2").tobytes())),
        DEEP,
        np.uint16,
    )


def test_black_and_white_of_a_pnm_of_16_bits_are_the_ends_of_their_range():
    same(decode(b"P5 2 1 65535 \0\0\xff\xff"), [[0, 65_535]], np.uint16)
    same(decode(b"P2 2 1 65535 0 65535\n"), [[0, 65_535]], np.uint16)
