"""What is a whole scan, a list or another file instead of a slice: one line says so, with what to do."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import constant_graph, write_bundle
from support.image_files import dicom, npy, saved
from support.phantoms import phantom

from organ_infer import ImageError, ImageFailure, InputError, OrganClassifier
from organ_infer.cli import main
from organ_infer.images.registry import decode_slices
from organ_infer.images.types import Limits
from organ_infer.volumes import Volume, open_mask, open_volume

RAMP = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
STORED = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28)
AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
AIR_WARNING = "implausible: a body in air; likely a whole slice, crop it around one organ"


def scan_in_air():
    """Nine slices of a body with dark skin, int16 (9, 30, 40)."""
    # without the slices above the organs
    return (phantom((40, 30, 12)).hu.transpose(2, 1, 0)[:9] - np.int16(20)).clip(min=-1024)


@pytest.fixture
def run(bundle, monkeypatch, capfd):
    """Runs the command in this process, with bytes as standard input. Returns its code, output and messages."""

    def run(*arguments, stdin=b""):
        stream = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(stdin)), isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stream)
        code = main([*map(str, arguments), "--bundle", str(bundle)])
        return SimpleNamespace(
            returncode=code, **dict(zip(("stdout", "stderr"), capfd.readouterr(), strict=True))
        )

    return run


# Whole slices in Hounsfield units.


def test_files_and_arrays_get_the_warning_once(bundle):
    whole = scan_in_air()
    large = np.full((500, 500), -1000, np.int16)
    with OrganClassifier(bundle) as classifier:
        for result in classifier.predict(whole):
            assert AIR_WARNING in result.warnings
        (result,) = classifier.predict(large)
        assert sum("likely a whole slice" in text for text in result.warnings) == 1
        data = dicom((whole[3] + 1024).astype(np.uint16), **HU, ImageOrientationPatient=AXIAL)
        (result,) = classifier.predict_bytes(data)
        assert AIR_WARNING in result.warnings
        (result,) = classifier.predict(whole[3][8:20, 12:25])
        assert AIR_WARNING not in result.warnings


def test_an_array_of_a_whole_scan_gets_one_note(run, tmp_path):
    whole = scan_in_air()
    np.save(tmp_path / "scan.npy", whole)
    done = run("--format", "csv", tmp_path / "scan.npy")
    assert done.returncode == 0
    assert done.stderr == (
        "organ-infer: note: 9 slices are likely those of a whole scan, an array without its orientation; pass the scan"
        " as NIfTI or DICOM to organ-infer volume, or Volume(hu, affine, source) to predict_volume\n"
    )
    for k in range(5):
        data = dicom((whole[k] + 1024).astype(np.uint16), **HU, ImageOrientationPatient=AXIAL)
        (tmp_path / f"{k}.dcm").write_bytes(data)
    done = run("--format", "csv", *tmp_path.iterdir())
    assert (
        "14 slices are likely those of a whole scan; organ-infer volume SCAN --mask" in done.stderr
    )


ADVICE = r"Volume\(hu, affine, source\) to predict_volume"


@pytest.mark.parametrize(
    ("array", "has_advice"),
    [
        (np.zeros((128, 128, 30), np.int16), True),
        (np.zeros((130, 128, 30), np.float32), True),
        (np.zeros((30, 200, 180), np.float64), True),
        (np.zeros((128, 128, 2), np.int32), True),
        (np.zeros((128, 127, 30), np.float32), False),
        (np.zeros((200, 200), np.float32), False),
    ],
)
def test_an_array_with_the_shape_of_a_scan_is_told(classifier, array, has_advice):
    (failure,) = classifier.predict_bytes(npy(array))
    assert isinstance(failure, ImageFailure)
    assert ("Volume(hu, affine, source) to predict_volume" in failure.error) == has_advice
    if array.dtype == np.int16:
        with pytest.raises(InputError, match=ADVICE):
            classifier.predict(array)


@pytest.mark.parametrize("name", ["scan.npy", "scan.npz", "SCAN.NPZ"])
def test_an_array_is_no_scan_and_no_mask_because_it_has_no_affine(tmp_path, name):
    path = tmp_path / name
    with open(path, "wb") as file:
        save = np.save if name.endswith("npy") else np.savez
        save(file, np.zeros((20, 30, 40), np.int16))
    volume = Volume(np.zeros((20, 30, 40), np.int16), np.eye(4), "")
    for read in (open_volume, lambda path: open_mask(path, volume)):
        with pytest.raises(ImageError, match=r"an array without its affine; .* Volume\(hu, affine"):
            read(path)


# Other modalities.


def modality_error(data, **limits):
    with pytest.raises(ImageError) as told:
        for _, read in decode_slices(data, Limits(**limits)):
            read()
    return str(told.value)


def test_any_modality_is_advised_only_if_the_file_could_be_classified():
    mr = {**HU, "Modality": "MR", "ImageOrientationPatient": AXIAL}
    advised = (
        "DICOM: modality MR, not CT; pass --any-modality or any_modality=True to classify it anyway"
    )
    plain = "DICOM: modality MR, not CT; pass CT slices"
    whole = dicom(STORED, **mr)
    for plane in ("axial", None):
        assert modality_error(whole, plane=plane) == advised
    assert modality_error(whole, plane="coronal") == plain
    unknown = dicom(STORED, **HU, Modality="MR")
    assert modality_error(unknown, plane="axial") == advised
    for data in (
        dicom(STORED.view(np.int16), Modality="MR"),
        dicom(STORED, **mr | {"ImageOrientationPatient": SAGITTAL}),
        dicom(STORED, **mr | {"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]}),
        dicom(STORED, **mr, PixelData=b"\0\0"),
        dicom(np.stack([RAMP] * 3, 2), **mr, SamplesPerPixel=3, PhotometricInterpretation="RGB"),
    ):
        assert modality_error(data, plane="axial") == plain


def test_what_is_advised_works_and_what_is_not_would_fail(tmp_path):
    bundle = write_bundle(tmp_path / "axial", {"a.onnx": constant_graph({"liver": 1.0})})
    mr = {**HU, "Modality": "MR"}
    with OrganClassifier(bundle) as classifier:
        for direction, works in ((AXIAL, True), (SAGITTAL, False)):
            data = dicom(STORED, **mr, ImageOrientationPatient=direction)
            (refused,) = classifier.predict_bytes(data)
            assert ("--any-modality" in refused.error) == works
            (asked,) = classifier.predict_bytes(data, any_modality=True)
            assert asked.ok == works


# Lists and scans in the place of images.


def test_a_list_on_standard_input_is_pointed_to_files_from(run):
    advice = "; for a list of paths use --files-from -"
    for text in ("a.png\nb.png\n", "caf\u00e9.png\r\n" * 3000, "x"):
        done = run("-", stdin=text.encode())
        assert done.returncode == 1
        assert done.stderr.rstrip("\n").endswith(advice)
        assert "-: unknown image format" in done.stderr
    for data in (b"a\0b", b"\xff\xfe", b"\x89PNG\r\n\x1a\n", "\u20ac".encode()[:2] + b"x"):
        done = run("-", stdin=data)
        assert done.returncode == 1 and advice not in done.stderr


def test_skipped_scans_are_named(run, tmp_path):
    (tmp_path / "a.png").write_bytes(saved(RAMP))
    (tmp_path / "sub").mkdir()
    for name in ("notes.txt", "ct.nii.gz", "sub/SEG.NRRD"):
        (tmp_path / name).write_bytes(b"x")
    advice = "; pass a scan with its mask to organ-infer volume: "
    done = run("-q", "-r", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("-r", tmp_path)
    assert done.stderr == (
        "organ-infer: note: skipped in directories: 1 (files that are no images), 2 (scans or masks)"
        f"{advice}{tmp_path}/ct.nii.gz, {tmp_path}/sub/SEG.NRRD\n"
    )
    for name in ("1.nii", "2.nii", "3.mha"):
        (tmp_path / "sub" / name).write_bytes(b"x")
    done = run(tmp_path / "sub", tmp_path, "-r")
    assert done.stderr.endswith(
        f"{advice}{tmp_path}/sub/1.nii, {tmp_path}/sub/2.nii, {tmp_path}/sub/3.mha, ...\n"
    )


def test_scans_below_a_directory_without_images_are_told(run, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "ct.nii").write_bytes(b"x")
    done = run("-r", tmp_path)
    assert done.returncode == 2 and (
        "no image in this directory, but scans or masks; pass a scan with its mask to organ-infer volume"
        in done.stderr
    )
    assert "use --recursive" in run(tmp_path).stderr


# Streams.


def test_a_stream_that_was_read_to_its_end_is_not_called_empty(classifier, tmp_path):
    data = saved(RAMP)
    stream = io.BytesIO(data)
    assert classifier.predict_bytes(stream)[0].ok
    (failure,) = classifier.predict_bytes(stream, name="upload")
    assert failure == ImageFailure("upload", "the stream is at its end; rewind it with seek(0)")
    stream.seek(0)
    assert classifier.predict_bytes(stream)[0].ok
    (failure,) = classifier.predict_bytes(io.BytesIO(b""))
    assert failure.error == "the file is empty"

    class NoPosition(io.BytesIO):
        def tell(self):
            raise OSError("not seekable")

    assert classifier.predict_bytes(NoPosition(b""))[0].error == "the file is empty"


def test_formats_in_capitals_are_formats(run, three_images):
    done = run("--format", "JSONL", three_images[0])
    assert done.returncode == 0 and json.loads(done.stdout)["path"] == three_images[0]
