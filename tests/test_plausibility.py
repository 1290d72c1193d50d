"""Plausibility checks: slices that are hardly a crop around one organ are classified with a warning."""

import io
import json
import math
import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.data_files import DATA, needs_organamnist
from support.image_files import dicom, saved

from organ_infer._packing import pack
from organ_infer.bundle.manifest import Input
from organ_infer.plausibility import (
    WHOLE_SLICE_SIDE,
    _border_indices,
    _reduced,
    _skin_brightness,
    pixel_warnings,
    shape_warnings,
)

SPEC = Input(size=28, mean=0.5, std=0.5, window=(40, 400))
CROP = np.random.default_rng(5).integers(60, 190, (28, 28), np.uint8)


def warning_of(pixels, spec=SPEC):
    """One slice's, without the word before it."""
    window = spec.window if pixels.dtype == np.int16 else None
    packed = pack(pixels, spec.size, mean=spec.mean, std=spec.std, window=window)
    (found,) = pixel_warnings(packed, spec)
    assert all(text.startswith("implausible: ") for text in found) and len(found) <= 1
    return "".join(found)


# The thresholds that docs/guides/formats.md promises, from both sides, in numbers of their own.

SPECS = [
    SPEC,
    Input(size=28, mean=0.1, std=0.3),
    Input(size=20, mean=0.5, std=0.5),
    Input(size=21, mean=0.5, std=0.5),
]


@pytest.fixture(autouse=True)
def fresh_border_indices():
    """No test depends on what another one has computed."""
    _border_indices.cache_clear()


def packed_as(pixels, spec):
    """float32 (1, 1, S, S) from gray of 0 to 1 (S, S)"""
    return ((pixels - spec.mean) / spec.std).astype(np.float32)[None, None]


def gray_with(size, count, value, *, edge):
    """Gray (S, S) of 0.5 with `count` other pixels, the outermost first or the innermost (so that the edge is gray)."""
    from_edge = np.minimum(
        *np.minimum(np.indices((size, size)), size - 1 - np.indices((size, size)))
    )
    order = np.argsort(from_edge, axis=None, kind="stable")
    pixels = np.full(size * size, 0.5)
    pixels[(order if edge else order[::-1])[:count]] = value
    return pixels.reshape(size, size)


def warnings_of(pixels, spec):
    (found,) = pixel_warnings(packed_as(pixels, spec), spec)
    return found


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [1.0, 0.98, 0.0, 0.02])
def test_90_percent_of_black_or_white_is_implausible_and_one_pixel_less_is_not(spec, value):
    pixels = spec.size**2
    enough = -(-pixels * 90 // 100)
    center = gray_with(spec.size, enough, value, edge=False)
    (text,) = warnings_of(center, spec)
    assert (
        text
        == "implausible: 90% of the pixels are black or white; likely a wrong window or no CT slice"
    )
    assert warnings_of(gray_with(spec.size, enough - 1, value, edge=False), spec) == ()


@pytest.mark.parametrize("spec", SPECS)
def test_black_and_white_are_counted_together(spec):
    pixels = gray_with(spec.size, -(-(spec.size**2) * 90 // 100), 1.0, edge=False)
    half = np.flatnonzero(pixels == 1)[::2]
    pixels.flat[half] = 0.0
    assert "90% of the pixels are black or white" in warnings_of(pixels, spec)[0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [0.025, 0.975])
def test_within_2_percent_of_black_or_white_counts_and_more_does_not(spec, value):
    nearly = gray_with(spec.size, spec.size**2 - 2, value, edge=False)
    assert warnings_of(nearly, spec) == ()
    clipped = np.where(nearly == value, 0.015 if value < 0.5 else 0.985, nearly)
    assert "100% of the pixels are black or white" in warnings_of(clipped, spec)[0]


@pytest.mark.parametrize("spec", SPECS)
def test_90_percent_of_the_outermost_pixels_black_is_implausible_and_one_pixel_less_is_not(spec):
    enough = -(-4 * (spec.size - 1) * 90 // 100)
    assert warnings_of(gray_with(spec.size, enough, 0.0, edge=True), spec) == (
        "implausible: black border; likely a whole slice, crop it around one organ",
    )
    assert warnings_of(gray_with(spec.size, enough - 1, 0.0, edge=True), spec) == ()
    assert (
        warnings_of(gray_with(spec.size, 4 * (spec.size - 1), 1.0, edge=True), spec) == ()
    )  # white is no air


@pytest.mark.parametrize("spec", SPECS)
def test_a_span_under_25_percent_is_implausible_and_one_above_is_not(spec):
    for low in (0.1, 0.5, 0.7):
        narrow, wide = np.full((2, spec.size, spec.size), low)
        narrow[3, 4], wide[3, 4] = low + 0.2445, low + 0.2555
        assert warnings_of(narrow, spec) == (
            "implausible: pixels span 24% of black to white; likely a constant image or a wrong window",
        )
        assert warnings_of(wide, spec) == ()


def test_a_span_of_just_25_percent_is_not_under_25_percent():
    """0 to 0.25 is exact in float32; black border, so that there is a warning of something else."""
    around = np.full((28, 28), 0.25)
    around[0] = 0.0
    assert warnings_of(around, SPEC) == ()
    around[-1] = around[:, 0] = around[:, -1] = 0.0
    assert "black border" in warnings_of(around, SPEC)[0]


@pytest.mark.parametrize(
    ("field", "implausible"),
    [
        ((250, 250), True),
        ((249.9, 299.9), False),
        ((300, 30), True),
        ((30, 300), True),
        ((204, 186), False),
        (None, False),
    ],
)
def test_a_field_larger_than_an_organ_is_that_of_a_whole_slice(field, implausible):
    warning = "implausible: {1:.0f} x {0:.0f} mm; likely a whole slice, crop it around one organ"
    expected = (warning.format(*field),) if implausible else ()
    assert shape_warnings(256, 320, field) == expected


def test_a_slice_of_many_pixels_has_one_warning_about_its_size():
    (warning,) = shape_warnings(512, 512, (415, 415))
    assert "512 x 512 pixels" in warning


@pytest.mark.parametrize(
    ("shape", "spacing", "words"),
    [
        ((256, 256), [1.6, 1.6], "410 x 410 mm"),
        ((160, 320), [1.0, 1.0], "320 x 160 mm"),
        ((320, 160), [0.5, 2.0], "320 x 160 mm"),
        ((256, 256), [0.8, 0.8], ""),
        ((256, 256), [0, 1.6], ""),
        ((256, 256), ["NaN", 1.6], ""),
        ((256, 256), [], ""),
        ((256, 256), None, ""),
    ],
)
def test_a_whole_dicom_slice_is_known_by_its_millimeters(
    classifier, tmp_path, shape, spacing, words
):
    pydicom = pytest.importorskip("pydicom")
    pixels = np.random.default_rng(5).integers(900, 1200, shape, np.uint16)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    data = pydicom.dcmread(io.BytesIO(dicom(pixels, **rescale)))
    if spacing is not None:
        with pydicom.config.disable_value_validation():
            data.PixelSpacing = [str(value) for value in spacing]
    data.save_as(tmp_path / "slice.dcm")
    (result,) = classifier.predict_paths([tmp_path / "slice.dcm"])
    found = [text for text in result.warnings if " mm;" in text]
    expected = f"implausible: {words}; likely a whole slice, crop it around one organ"
    assert found == ([expected] if words else [])


def test_the_field_of_an_enhanced_multiframe_is_that_of_its_frame(classifier, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pixels = np.random.default_rng(5).integers(900, 1200, (2, 256, 256), np.uint16)
    data = pydicom.dcmread(io.BytesIO(dicom(pixels, RescaleSlope=1, RescaleIntercept=-1024)))
    data.PerFrameFunctionalGroupsSequence = groups = [pydicom.Dataset(), pydicom.Dataset()]
    for group, spacing in zip(groups, (0.5, 1.5), strict=True):
        measures = pydicom.Dataset()
        measures.PixelSpacing = [spacing, spacing]
        group.PixelMeasuresSequence = [measures]
    data.save_as(tmp_path / "frames.dcm")
    results = list(classifier.predict_paths([tmp_path / "frames.dcm"]))
    assert [any("384 x 384 mm" in text for text in result.warnings) for result in results] == [
        *(False, True)
    ]


def test_a_side_of_400_pixels_is_that_of_a_whole_slice():
    assert shape_warnings(400, 401) == (
        "implausible: 401 x 400 pixels; likely a whole slice, crop it around one organ",
    )
    assert shape_warnings(399, 2000) == shape_warnings(2000, 399) == ()


@pytest.mark.parametrize(("apart", "implausible"), [(9, False), (10, True), (11, True)])
def test_colors_10_of_255_apart_on_average_are_implausible(
    classifier, tmp_path, apart, implausible
):
    """Half of the pixels are gray, the others twice as far apart."""
    color = np.dstack([CROP, CROP, CROP])
    color[::2, :, 1] += np.uint8(2 * apart)
    Image.fromarray(color).save(tmp_path / "a.png")
    (found,) = classifier.predict_paths([tmp_path / "a.png"])
    assert ("implausible: color image; CT slices are gray" in found.warnings) == implausible


def test_each_slice_of_a_batch_gets_its_own():
    kinds = [gray_with(28, 0, 0, edge=True), CROP / 255, gray_with(28, 108, 0.0, edge=True),
             gray_with(28, 750, 1.0, edge=False), CROP[::-1] / 255]  # fmt: skip
    found = pixel_warnings(np.concatenate([packed_as(pixels, SPEC) for pixels in kinds]), SPEC)
    words = ["span 0%", None, "black border", "96% of the pixels", None]
    assert [len(texts) for texts in found] == [1, 0, 1, 1, 0]
    assert all(word in texts[0] for texts, word in zip(found, words, strict=True) if word)
    assert pixel_warnings(packed_as(CROP / 255, SPEC), SPEC) == [()]


@needs_organamnist
def test_what_validation_reaches_is_what_the_docs_say(validation):
    """Computed from the stored bytes: 44 % and more, 84 % and 82 % at most."""
    gray = validation / 255
    span = gray.max(axis=(1, 2)) - gray.min(axis=(1, 2))
    black, clipped = gray <= 0.02, (gray <= 0.02) | (gray >= 0.98)
    edge = np.ones((28, 28), bool)
    edge[1:-1, 1:-1] = False
    least, most, most_at_edge = (
        span.min(),
        clipped.mean(axis=(1, 2)).max(),
        black[:, edge].mean(axis=1).max(),
    )
    page = (ROOT / "docs" / "guides" / "formats.md").read_text()
    stated = re.search(
        r"\| (\d+) % and more \|.*?\| (\d+) % at most \|.*?\| (\d+) % at most \|", page, re.S
    )
    found = [math.floor(least * 100), math.ceil(most * 100), math.ceil(most_at_edge * 100)]
    assert found == list(map(int, stated.groups()))


@pytest.fixture(scope="module")
def validation():
    return np.load(DATA / "organamnist.npz")["val_images"]


@needs_organamnist
def test_no_slice_of_validation_is_implausible(validation):
    assert len(validation) == 6491
    assert not any(pixel_warnings(pack(validation), SPEC))


@needs_organamnist
@pytest.mark.parametrize(
    ("low", "high", "least"),
    [(-1350, 150, 1.0), (-1024, 3072, 1.0), (-450, 1050, 0.25), (-75, 175, 0.0)],
)
def test_slices_of_validation_through_other_windows(validation, low, high, least):
    """Soft tissue through a lung window, none, and one of bones; a narrower one of soft tissue is fine."""
    units = validation.astype(np.float32) * (400 / 255) - 160
    pixels = np.clip((units - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    found = [bool(warnings) for warnings in pixel_warnings(pack(pixels), SPEC)]
    assert least <= np.mean(found) <= least + 0.05


def test_a_crop_is_not_implausible():
    for size in (20, 28, 224):
        assert warning_of(CROP, Input(size=size, mean=0.5, std=0.5)) == ""
    assert warning_of(CROP, Input(size=28, mean=0.1, std=0.3)) == ""
    assert warning_of(CROP.astype(np.int16) - 100) == ""


@pytest.mark.parametrize("pixels", [np.zeros((28, 28), np.uint8), np.full((5, 9), 90, np.uint8),
                                    np.full((28, 28), 65_535, np.uint16), np.full((28, 28), -1000, np.int16),
                                    CROP.astype(np.uint16) * 16, CROP // 4])  # fmt: skip
def test_one_gray_is_a_constant_image_or_a_wrong_window(pixels):
    for spec in (SPEC, Input(size=28, mean=0.1, std=0.3, window=(40, 400))):
        assert "of black to white; likely a constant image or a wrong window" in warning_of(
            pixels, spec
        )


def test_black_and_white_alone_is_a_wrong_window():
    assert "100% of the pixels are black or white" in warning_of(
        np.where(CROP > 120, 255, 0).astype(np.uint8)
    )
    assert "black or white" in warning_of((CROP.astype(np.int16) - 120) * 400)


def test_a_black_border_is_a_whole_slice():
    whole = np.zeros((128, 128), np.uint8)
    whole[20:110, 10:118] = np.kron(CROP, np.ones((5, 5), np.uint8))[:90, :108]
    assert "black border" in warning_of(whole)
    assert warning_of(whole[20:110, 10:118]) == ""


def body_in_air(side, skin=-100, width=1.1):
    """HU (side, side): an ellipse of muscle with a rim, in air, a little wider than the slice."""
    y, x = (np.indices((side, side)) + 0.5) / side - 0.5
    far = np.hypot(x / (width / 2), y / (width * 0.4))
    units = np.where(far <= 1, skin, -1000)
    units[far <= 0.88] = 50 + np.random.default_rng(1).integers(-40, 40, int((far <= 0.88).sum()))
    # an arc of a table, lungs, and a spine
    units[(np.abs(far - 1.25) < 0.01) & (y > 0.2)] = 200
    units[np.hypot(np.abs(x) - 0.2, y) < 0.1] = -900
    units[np.hypot(x, y - 0.2) < 0.06] = 400
    return units.astype(np.int16)


BODY_IN_AIR = "a body in air; likely a whole slice, crop it around one organ"


@pytest.mark.parametrize("size", [20, 28, 64, 100])
@pytest.mark.parametrize("side", [64, 101, 128, 300, 512])
def test_a_body_with_skin_in_air_is_a_whole_slice_whatever_its_size(side, size):
    spec = Input(size=size, mean=0.4, std=0.3, window=(40, 400))
    whole = body_in_air(side)
    assert warning_of(whole, spec) == f"implausible: {BODY_IN_AIR}"
    gray = (np.clip((whole + 160) / 400, 0, 1) * 255).round().astype(np.uint8)
    assert (
        warning_of(gray, spec) == warning_of(np.rot90(gray), spec) == f"implausible: {BODY_IN_AIR}"
    )
    # an organ in black lungs has no dark rim, and a part of a body no four black corners
    assert warning_of(body_in_air(side, skin=50), spec) == ""
    assert warning_of(np.ascontiguousarray(whole[side // 3 :, : side // 2]), spec) == ""


def test_one_corner_with_tissue_is_no_body_in_air():
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        whole = body_in_air(128)
        corner = whole[slice(None, 8) if row == 0 else slice(-8, None), :]
        corner[:, slice(None, 8) if column == 0 else slice(-8, None)] = 60
        assert warning_of(whole) == ""


@pytest.mark.parametrize(("skin", "is_whole"), [(0.14, True), (0.16, False)])
def test_skin_under_15_percent_of_white_is_that_of_a_body(skin, is_whole):
    pixels = np.zeros((28, 28))
    pixels[4:-4] = skin
    pixels[5:-5] = 0.7
    found = warnings_of(pixels, SPEC)
    assert found == ((f"implausible: {BODY_IN_AIR}",) if is_whole else ())


def test_air_in_a_body_is_not_around_it():
    """Air that no straight line of black pixels joins with the outside: its dark rim is no skin."""
    pixels = np.zeros((28, 28))
    pixels[2:-2] = 0.25
    pixels[3:-3] = 0.7
    pixels[4:-4, 3:-3] = 0.05
    pixels[5:-5, 4:-4] = 0.0
    assert warnings_of(pixels, SPEC) == ()


@pytest.mark.parametrize("turns", range(4))
def test_air_is_reached_from_every_side(turns):
    """A notch in the body whose rim is dark enough to bring the mean under the limit."""
    pixels = np.zeros((28, 28))
    pixels[2:-2] = 0.25
    pixels[3:-3] = 0.7
    pixels[5:-5, 3:] = 0.05
    pixels[6:-6, 4:] = 0.0
    (found,) = warnings_of(np.ascontiguousarray(np.rot90(pixels, turns)), SPEC)
    assert found == f"implausible: {BODY_IN_AIR}"


@pytest.mark.parametrize("size", [28, 29, 64, 224])
def test_large_inputs_are_reduced_like_large_slices(size):
    gray = np.random.default_rng(size).integers(0, 256, (size, size), np.uint8)
    expected = pack(gray, 28)[0, 0] * 0.5 + 0.5
    np.testing.assert_allclose(_reduced((gray / 255).astype(np.float32)), expected, atol=1e-5)


def test_a_network_of_one_pixel_has_corners():
    assert "0% of black" in warning_of(np.zeros((5, 5), np.uint8), Input(size=1, mean=0.5, std=0.5))


@needs_organamnist
def test_the_skin_of_validation_is_what_the_docs_say(validation):
    """Of the crops with four black corners."""
    crops = validation[(validation[:, ::27, ::27] <= 0.02 * 255).all(axis=(1, 2))]
    least = min(map(_skin_brightness, (crops / 255).astype(np.float32)))
    page = (ROOT / "docs" / "guides" / "formats.md").read_text()
    stated = re.search(
        r"a body in air;.*?\| (\d+) % and more, of the (\d+) with black corners \|", page
    )
    assert [math.floor(least * 100), len(crops)] == list(map(int, stated.groups()))


@needs_organamnist
@pytest.mark.parametrize("side", [64, 128, 224])
def test_enlarged_slices_of_validation_are_seldom_a_body_in_air(validation, side):
    """Enlarging blurs the edge of a heart in black lungs. The smooth scaling of 15 % of them is enough to tell."""
    chosen = validation[::7]
    large = [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        for image in chosen
    ]
    found = [bool(warnings) for warnings in pixel_warnings(pack(large), SPEC)]
    assert np.mean(found) <= 0.005


def test_the_size_of_a_whole_slice():
    assert shape_warnings(512, 512) == (
        "implausible: 512 x 512 pixels; likely a whole slice, crop it around one organ",
    )
    assert shape_warnings(WHOLE_SLICE_SIDE, WHOLE_SLICE_SIDE)
    assert (
        shape_warnings(WHOLE_SLICE_SIDE - 1, 2000)
        == shape_warnings(2000, WHOLE_SLICE_SIDE - 1)
        == ()
    )


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_real_whole_slices_are_implausible(classifier, name):
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    (found,) = classifier.predict_paths([get_testdata_file(name, download=False)])
    size, around = found.warnings
    assert size.startswith("implausible: 512 x 512 pixels") and around.startswith(
        "implausible: black border"
    )


def test_predictions_carry_the_warnings_of_every_kind_of_input(classifier, tmp_path):
    """As a path that is read in C or not, in a batch of others, as an array, as a Pillow image."""
    large, flat = np.kron(CROP, np.ones((18, 18), np.uint8)), np.full((28, 28), 90, np.uint8)
    for name, pixels in {"a": CROP, "b": large, "c": flat}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(tmp_path / f"{name}.tif")
    expected = [[], ["implausible: 504 x 504 pixels"], ["implausible: pixels span 0%"]]
    pictures = [Image.open(tmp_path / f"{name}.png") for name in "abc"]
    paths = [tmp_path / f"{name}.{form}" for form in ("png", "tif") for name in "abc"]
    for found in (
        classifier.predict_paths(paths[:3]),
        classifier.predict_paths(paths[3:]),
        classifier.predict([CROP, large, flat]),
        classifier.predict(pictures),
    ):
        for prediction, starts in zip(found, expected, strict=True):
            assert prediction.label and len(prediction.warnings) == len(starts)
            assert all(map(str.startswith, prediction.warnings, starts))


def test_a_color_photograph_is_implausible_and_gray_as_color_is_not(classifier, tmp_path):
    photograph = np.dstack([CROP, CROP[::-1], CROP[:, ::-1]])
    colorless = np.dstack([CROP] * 3)
    for name, pixels in {"a.jpg": photograph, "b.jpg": colorless}.items():
        Image.fromarray(pixels).save(tmp_path / name, quality=90)
    found, gray = classifier.predict_paths([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert found.warnings == (
        "converted from color to gray",
        "implausible: color image; CT slices are gray",
    )
    assert gray.warnings == ("converted from color to gray",)


def test_the_command_warns_and_exits_with_0(command, tmp_path):
    path = tmp_path / "a.dcm"
    cosines = [1, 0, 0, 0, 1, 0]
    path.write_bytes(
        dicom(
            CROP.astype(np.uint16),
            RescaleSlope=1,
            RescaleIntercept=2000,
            ImageOrientationPatient=cosines,
        )
    )
    (tmp_path / "b.png").write_bytes(saved(CROP))
    done = command(path, tmp_path / "b.png")
    assert done.returncode == 0 and done.stdout.count("\n") == 2
    assert done.stderr.startswith(
        f"organ-infer: warning: {path}: implausible: pixels span 0% of black"
    )
    (row,) = map(json.loads, command("--format", "jsonl", path).stdout.splitlines())
    assert len(row["warnings"]) == 1 and row["label"]
    done = command("--strict", "--format", "jsonl", path, tmp_path / "b.png")
    assert done.returncode == 1
    failure, good = map(json.loads, done.stdout.splitlines())
    (warning,) = row["warnings"]
    assert failure == {"path": str(path), "error": f"{warning} (refused by --strict)"}
    assert good["label"] and "error" not in good
    assert done.stderr == f"organ-infer: error: {path}: {failure['error']}\n"


def test_strict_keeps_slices_with_other_warnings_and_lists_every_reason(command, tmp_path):
    color = np.repeat(CROP[..., None], 3, axis=2)
    (tmp_path / "gray.png").write_bytes(saved(color))
    color = color.copy()
    color[..., 0] //= 2
    color[:, :, 1:] = 0
    (tmp_path / "red.png").write_bytes(saved(color))
    done = command("--strict", "--format", "jsonl", tmp_path / "gray.png", tmp_path / "red.png")
    gray, red = map(json.loads, done.stdout.splitlines())
    assert gray["warnings"] == ["converted from color to gray"]
    reasons = red["error"].removesuffix(" (refused by --strict)").split("; implausible: ")
    assert reasons[0] == "implausible: color image; CT slices are gray" and len(reasons) == 2
    assert "converted" not in red["error"] and done.returncode == 1
