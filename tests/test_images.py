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

from organ_infer import ImageError
from organ_infer.images import decode, read_image

GRAY = np.random.default_rng(3).integers(0, 256, (9, 7), np.uint8)
DEEP = np.random.default_rng(4).integers(0, 65_536, (9, 7), np.uint16)
COLOUR = np.random.default_rng(5).integers(0, 256, (9, 7, 3), np.uint8)
ALPHA = np.random.default_rng(6).integers(0, 256, (9, 7), np.uint8)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def luma(rgb):
    """ITU-R 601, to the nearest byte."""
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


def same(found, expected, dtype=np.uint8):
    assert found.pixels.dtype == dtype
    np.testing.assert_array_equal(found.pixels, expected)


def close(found, expected):
    assert found.pixels.dtype == np.uint8
    np.testing.assert_allclose(found.pixels, expected, atol=1.01)


# What is read.


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "GIF", "JPEG2000", "WEBP"])
def test_gray_of_8_bits_is_read_as_it_is(form):
    found = decode(saved(GRAY, form, **({"lossless": True} if form == "WEBP" else {})))
    same(found, GRAY)
    if form not in ("GIF", "WEBP"):  # these hold colour only
        assert found.warnings == ()


def test_jpeg_is_what_pillow_decodes():
    data = saved(GRAY, "JPEG", quality=95)
    same(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_gray_of_16_bits_never_goes_through_8(form):
    same(decode(saved(DEEP, form)), DEEP, np.uint16)
    assert decode(saved(DEEP, form)).warnings == ()


def test_big_endian_tiff_of_16_bits():
    data = saved(Image.frombytes("I;16B", (7, 9), DEEP.astype(">u2").tobytes()), "TIFF")
    same(decode(data), DEEP, np.uint16)


def test_signed_tiff_is_hounsfield_units():
    units = (DEEP.astype(np.int32) - 32_768).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray(units.astype(np.int32)).save(file, "TIFF")
    with pytest.raises(ImageError, match="32-bit pixels are not read"):
        decode(file.getvalue())
    # the same pixels as 16 bits, signed: a TIFF by hand
    head = b"II*\0" + struct.pack("<I", 8)
    tags = [(256, 4, 7), (257, 4, 9), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 134), (277, 3, 1)]
    tags += [(278, 4, 9), (279, 4, 126), (339, 3, 2)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = head + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    assert len(data) == 134
    same(decode(data + units.astype("<i2").tobytes()), units, np.int16)


def test_one_bit_is_black_and_white():
    same(decode(saved(Image.fromarray(GRAY > 127))), np.where(GRAY > 127, 255, 0))


def test_colour_becomes_luma_and_says_so():
    found = decode(saved(COLOUR))
    close(found, luma(COLOUR))
    assert found.warnings == ("converted from colour to gray",)
    same(decode(saved(np.dstack([GRAY] * 3))), GRAY)


def test_alpha_lies_on_black():
    found = decode(saved(np.dstack([COLOUR, ALPHA])))
    close(found, luma(COLOUR * (ALPHA[..., None] / 255)))
    assert found.warnings == ("converted from colour to gray", "alpha composited on black")
    found = decode(saved(Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])))
    close(found, GRAY * (ALPHA / 255))
    assert found.warnings == ("alpha composited on black",)


def test_a_palette_is_looked_up():
    image = Image.fromarray(COLOUR).quantize(8)
    found = decode(saved(image))
    close(found, luma(np.asarray(image.convert("RGB"))))
    assert found.warnings == ("converted from palette to gray",)
    same(decode(saved(image, transparency=bytes(8))), np.zeros((9, 7)))


@pytest.mark.parametrize(
    ("pixels", "clear"), [(np.full((3, 3), 90, np.uint8), 90), (np.full((3, 3), 900, np.uint16), 900)]
)
def test_a_transparent_gray_value_is_black(pixels, clear):
    pixels[0, 0] = 5
    found = decode(saved(pixels, transparency=clear))
    same(found, np.where(pixels == clear, 0, pixels), pixels.dtype)
    assert found.warnings == ("alpha composited on black",)


def png(width, height, depth, kind, rows, *chunks):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    extra = b"".join(chunk(*c) for c in chunks)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + pixels + chunk(b"IEND", b"")


def test_a_transparent_value_counts_in_the_files_own_depth():
    same(decode(png(2, 1, 4, 0, [b"\x7c"], (b"tRNS", b"\0\x07"))), [[0, 0xCC]])
    same(decode(png(4, 1, 2, 0, [b"\x1b"], (b"tRNS", b"\0\x02"))), [[0, 85, 0, 255]])


def test_16_bit_colour_says_that_8_bits_were_read():
    found = decode(png(1, 1, 16, 2, [b"\x10\xff" * 3]))
    same(found, [[0x10]])
    assert found.warnings[0] == "16-bit colour or alpha read at 8 bits"
    with pytest.raises(ImageError, match="16-bit colour with a transparent colour"):
        decode(png(1, 1, 16, 2, [b"\x10\xff" * 3], (b"tRNS", b"\x10\xff" * 3)))


@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientation_is_applied_and_said(number):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = number
    data = saved(GRAY, exif=exif)
    found = decode(data)
    same(found, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert found.warnings == ((f"turned as its EXIF orientation {number} says",) if number > 1 else ())


def test_the_first_of_many_frames_says_so():
    other = Image.fromarray(255 - GRAY)
    found = decode(saved(Image.fromarray(GRAY), "TIFF", save_all=True, append_images=[other]))
    same(found, GRAY)
    assert found.warnings == ("the first of 2 frames",)


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


def refused(data, words, **limits):
    with pytest.raises(ImageError, match=words) as caught:
        decode(data, **limits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (GRAY.astype(np.float32), "found float32"),
        (GRAY > 3, "found bool"),
        (np.zeros((2, 3, 4), np.uint8), r"found uint8 \(2, 3, 4\)"),
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
    "data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0", b"\0" * 300, b"PK\x03\x04", b"<svg>"]
)
def test_what_is_no_image_is_refused(data):
    refused(data, "no image of a known format" if data else "an empty file")


def test_float_pixels_are_refused():
    refused(saved(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), "pixels of mode F are not read")


def test_a_png_cut_anywhere_is_refused_or_the_same():
    """Pillow does not ask for the checksum of the empty last chunk: without it the picture is still whole."""
    data = saved(GRAY)
    for length in range(len(data)):
        try:
            same(decode(data[:length]), GRAY)
        except ImageError:
            continue
        assert length >= len(data) - 4


@pytest.mark.parametrize("pixels", [GRAY, DEEP, COLOUR], ids=["gray", "deep", "colour"])
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
    refused(png(65_536, 1, 8, 0, [b"\0" * 65_536]), "65,535 a side")
    refused(saved(GRAY), "9 x 7|7 x 9", pixel_limit=62)
    assert decode(saved(GRAY), pixel_limit=63).pixels.size == 63


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
        read_image(path, file_limit=20)
    same(read_image(path, file_limit=path.stat().st_size), GRAY)


# DICOM.


def dicom(pixels, **fields):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "CT", "MONOCHROME2", 1
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


STORED = (DEEP >> 4).astype(np.uint16)
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def test_dicom_becomes_hounsfield_units():
    same(decode(dicom(STORED, **HU)), STORED.astype(np.int32) - 1024, np.int16)
    found = decode(dicom(STORED, RescaleSlope=100, RescaleIntercept=-1024))
    same(found, np.clip(STORED.astype(np.int32) * 100 - 1024, -32_768, 32_767), np.int16)
    same(
        decode(dicom(STORED, **HU, PhotometricInterpretation="MONOCHROME1")),
        STORED.astype(np.int32) - 1024,
        np.int16,
    )


def test_dicom_without_a_rescale_is_read_as_shown():
    found = decode(dicom(GRAY, PhotometricInterpretation="MONOCHROME1"))
    same(found, 255 - GRAY)
    assert "inverted: the file says that 0 is white" in found.warnings


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], ("P", "L")),
        ([-1, 0, 0, 0, 1, 0], ("P", "R")),
        ([0, 1, 0, 1, 0, 0], ("L", "P")),
        ([1, 0, 0, 0, 0, -1], ("F", "L")),
        ([0.99, 0.1, 0, -0.1, 0.99, 0], ("P", "L")),
    ],
)
def test_dicom_says_how_it_lies(cosines, expected):
    assert decode(dicom(STORED, **HU, ImageOrientationPatient=cosines)).orientation == expected


def test_dicom_that_cannot_be_a_ct_slice_is_refused():
    refused(dicom(STORED, **HU, ImageOrientationPatient=[0.7, 0.7, 0, -0.7, 0.7, 0]), "oblique")
    refused(dicom(STORED, **HU)[:200], "DICOM")
    refused(dicom(STORED, **HU, SamplesPerPixel=3), "colour is not read")


def test_dicom_without_pydicom_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(b"\0" * 128 + b"DICM", r"pip install 'organ-infer\[dicom\]'")


def test_a_dicom_slice_is_turned_to_the_model(bundle, tmp_path):
    """A usual axial slice (rows to the back, columns to the left) is the transpose of what the model takes."""
    from organ_infer import ImageFailure, OrganClassifier

    usual, coronal = tmp_path / "usual", tmp_path / "coronal"
    usual.write_bytes(dicom(STORED, **HU, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    coronal.write_bytes(dicom(STORED, **HU, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]))
    with OrganClassifier(bundle, device="cpu", orientation="LP") as opened:  # the file knows better
        expected = opened.predict_proba((STORED.astype(np.int32) - 1024).astype(np.int16).T)[0]
        turned, refusal = opened.predict_paths([usual, coronal])
    assert turned.probabilities == tuple(expected.tolist())
    assert isinstance(refusal, ImageFailure) and "coronal plane, this model's is axial" in refusal.error
