"""What can hardly be a crop around one organ is classified, with a word on why it is doubtful."""

import json

import numpy as np
import pytest
from at_hand import DATA, needs_organamnist
from image_files import dicom, saved
from PIL import Image

from organ_infer._packing import pack
from organ_infer.doubts import WHOLE_SIDE, doubts_of_packed, doubts_of_shape
from organ_infer.manifest import Input

HOW = Input(size=28, mean=0.5, std=0.5, window=(40, 400))
CROP = np.random.default_rng(5).integers(60, 190, (28, 28), np.uint8)


def doubts(pixels, how=HOW):
    """One slice's, without the word before it."""
    window = how.window if pixels.dtype == np.int16 else None
    packed = pack(pixels, how.size, mean=how.mean, std=how.std, window=window)
    (found,) = doubts_of_packed(packed, how)
    assert all(text.startswith("doubtful: ") for text in found) and len(found) <= 1
    return "".join(found)


@pytest.fixture(scope="module")
def validation():
    return np.load(DATA / "organamnist.npz")["val_images"]


@needs_organamnist
def test_no_slice_of_validation_is_doubtful(validation):
    assert len(validation) == 6491
    assert not any(doubts_of_packed(pack(validation), HOW))


@needs_organamnist
@pytest.mark.parametrize(
    ("low", "high", "least"), [(-1350, 150, 1.0), (-1024, 3072, 1.0), (-450, 1050, 0.25), (-75, 175, 0.0)]
)
def test_slices_of_validation_through_other_windows(validation, low, high, least):
    """Soft tissue through a lung window, none, and one of bones; a narrower one of soft tissue is fine."""
    units = validation.astype(np.float32) * (400 / 255) - 160
    pixels = np.clip((units - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    found = [bool(said) for said in doubts_of_packed(pack(pixels), HOW)]
    assert least <= np.mean(found) <= least + 0.05


def test_a_crop_is_not_doubtful():
    for size in (20, 28, 224):
        assert doubts(CROP, Input(size=size, mean=0.5, std=0.5)) == ""
    assert doubts(CROP, Input(size=28, mean=0.1, std=0.3)) == ""
    assert doubts(CROP.astype(np.int16) - 100) == ""


@pytest.mark.parametrize("pixels", [np.zeros((28, 28), np.uint8), np.full((5, 9), 90, np.uint8),
                                    np.full((28, 28), 65_535, np.uint16), np.full((28, 28), -1000, np.int16),
                                    CROP.astype(np.uint16) * 16, CROP // 4])  # fmt: skip
def test_one_gray_is_a_constant_image_or_a_wrong_window(pixels):
    for how in (HOW, Input(size=28, mean=0.1, std=0.3, window=(40, 400))):
        assert "of black to white: a constant image, or a wrong window" in doubts(pixels, how)


def test_black_and_white_alone_is_a_wrong_window():
    assert "100% of its pixels are black or white" in doubts(np.where(CROP > 120, 255, 0).astype(np.uint8))
    assert "black or white" in doubts((CROP.astype(np.int16) - 120) * 400)


def test_black_all_around_is_a_whole_slice():
    whole = np.zeros((128, 128), np.uint8)
    whole[20:110, 10:118] = np.kron(CROP, np.ones((5, 5), np.uint8))[:90, :108]
    assert "black all around" in doubts(whole)
    assert doubts(whole[20:110, 10:118]) == ""


def test_the_size_of_a_whole_slice():
    assert doubts_of_shape(512, 512) == (
        "doubtful: 512 x 512 pixels, as of a whole slice, not of a crop around one organ",
    )
    assert doubts_of_shape(WHOLE_SIDE, WHOLE_SIDE)
    assert doubts_of_shape(WHOLE_SIDE - 1, 2000) == doubts_of_shape(2000, WHOLE_SIDE - 1) == ()


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_real_whole_slices_are_doubtful(classifier, name):
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    (found,) = classifier.predict_paths([get_testdata_file(name, download=False)])
    size, around = found.warnings
    assert size.startswith("doubtful: 512 x 512 pixels") and around.startswith("doubtful: black all around")


def test_doubts_stand_in_predictions_however_the_slice_comes(classifier, tmp_path):
    """As a path that is read in C or not, in a batch of others, as an array, as a Pillow image."""
    large, flat = np.kron(CROP, np.ones((18, 18), np.uint8)), np.full((28, 28), 90, np.uint8)
    for name, pixels in {"a": CROP, "b": large, "c": flat}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(tmp_path / f"{name}.tif")
    expected = [[], ["doubtful: 504 x 504 pixels"], ["doubtful: its pixels span 0%"]]
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


def test_a_colour_photograph_is_doubtful_and_gray_as_colour_is_not(classifier, tmp_path):
    photograph = np.dstack([CROP, CROP[::-1], CROP[:, ::-1]])
    colourless = np.dstack([CROP] * 3)
    for name, pixels in {"a.jpg": photograph, "b.jpg": colourless}.items():
        Image.fromarray(pixels).save(tmp_path / name, quality=90)
    found, gray = classifier.predict_paths([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert found.warnings == ("converted from colour to gray", "doubtful: in colour, and a CT slice is gray")
    assert gray.warnings == ("converted from colour to gray",)


def test_the_command_says_what_is_doubtful_and_ends_well(command, tmp_path):
    path = tmp_path / "a.dcm"
    lies = [1, 0, 0, 0, 1, 0]
    path.write_bytes(
        dicom(CROP.astype(np.uint16), RescaleSlope=1, RescaleIntercept=2000, ImageOrientationPatient=lies)
    )
    (tmp_path / "b.png").write_bytes(saved(CROP))
    done = command(path, tmp_path / "b.png")
    assert done.returncode == 0 and done.stdout.count("\n") == 2
    assert done.stderr.startswith(f"organ-infer: warning: {path}: doubtful: its pixels span 0% of black")
    (row,) = map(json.loads, command("--format", "jsonl", path).stdout.splitlines())
    assert len(row["warnings"]) == 1 and row["label"]
