"""Images are read alike whatever process-wide switches of Pillow the host program has set."""

import io
import threading

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from support.image_files import decode, refused, saved

from organ_infer import ImageError
from organ_infer.images import decode_slices, pillow
from organ_infer.images.png_metadata import without_metadata

NOISE = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)


@pytest.fixture
def lenient(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF", "WEBP", "JPEG2000"])
def test_truncated_files_are_refused_though_the_host_loads_them(lenient, form):
    data = saved(Image.fromarray(NOISE), form)
    decode(data)
    for part in (0.5, 0.9):
        refused(data[: int(len(data) * part)], form)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_switch_stays_off_until_the_last_thread_is_done(lenient):
    """The first to leave must not switch it on while the second decodes."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with pillow._strict_pillow():
            first_in.set()
            second_in.wait(30)
        first_out.set()

    def second():
        first_in.wait(30)
        with pillow._strict_pillow():
            second_in.set()
            first_out.wait(30)
            seen.append(ImageFile.LOAD_TRUNCATED_IMAGES)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False] and ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_host_that_does_not_load_truncated_images_keeps_its_switch():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pillow._strict_pillow():
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_switch_is_on_between_the_frames(lenient):
    file = io.BytesIO()
    image = Image.fromarray(NOISE)
    image.save(file, "TIFF", save_all=True, append_images=[image])
    for _, read in decode_slices(file.getvalue()):
        assert ImageFile.LOAD_TRUNCATED_IMAGES
        read()
    assert ImageFile.LOAD_TRUNCATED_IMAGES


# Unused metadata is never a reason to refuse a file.


def with_metadata(**options):
    texts = PngImagePlugin.PngInfo()
    for kind in ("add_text", "add_itxt"):
        getattr(texts, kind)("Comment", "x" * (3 << 20), zip=True)
    texts.add_text("Plain", "y" * (3 << 20))
    return saved(
        Image.fromarray(NOISE), "PNG", pnginfo=texts, icc_profile=bytes(3 << 20), **options
    )


def test_large_texts_and_profiles_of_a_png_are_ignored():
    found = decode(with_metadata())
    np.testing.assert_array_equal(found.pixels, NOISE)
    assert found.warnings == ()


def test_the_orientation_in_a_png_stays():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(with_metadata(exif=exif))
    np.testing.assert_array_equal(found.pixels, NOISE.T[:, ::-1])
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    by_text = saved(Image.fromarray(NOISE), "PNG", pnginfo=texts)
    np.testing.assert_array_equal(decode(by_text).pixels, NOISE[::-1, ::-1])


def test_a_png_cut_in_its_metadata_is_refused():
    data = with_metadata()
    for length in (60, 5_000, len(data) - 20):
        with pytest.raises(ImageError):
            decode(data[:length])


@pytest.mark.parametrize(("size", "stays"), [(65_536, True), (65_537, False)])
def test_a_text_with_an_orientation_stays_up_to_64_kib(size, stays):
    from support.png_files import chunk

    key = b"XML:com.adobe.xmp\0"
    text = chunk(b"iTXt", key + b"x" * (size - len(key)))
    data = saved(Image.fromarray(NOISE))
    with_text = data[:33] + text + data[33:]
    assert without_metadata(with_text) == (with_text if stays else data)
