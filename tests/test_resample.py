"""A bundle whose manifest says `linear` or `cubic` resamples so, whatever way slices come in."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASSES, write_bundle
from PIL import Image
from support.altered_bundles import seal
from support.dict_mask import DictMask, block
from support.tiny_graphs import SIZE, linear_graph

from organ_infer import BundleError, OrganClassifier
from organ_infer._packing import pack
from organ_infer.bundle.files import read_manifest
from organ_infer.bundle.manifest import RESAMPLE
from organ_infer.volumes.types import Volume

MATRIX = np.random.default_rng(21).normal(size=(SIZE * SIZE, 11)).astype(np.float32)
CROP = np.random.default_rng(22).integers(0, 256, (31, 23), np.uint8)
HU = np.random.default_rng(23).integers(-300, 400, (31, 23)).astype(np.int16)


@pytest.fixture(params=RESAMPLE)
def resample(request):
    return request.param


@pytest.fixture
def bundle_of(tmp_path):
    """Writes the bundle that resamples in this way, sealed. Its logits are linear in every input pixel."""

    def write(resample):
        def change(manifest):
            manifest["input"].update(size=SIZE, resample=resample)

        graph = linear_graph(MATRIX).SerializeToString()
        return seal(write_bundle(tmp_path / resample, {"linear.onnx": graph}, change=change))

    return write


@pytest.fixture
def opened(bundle_of, resample):
    with OrganClassifier(bundle_of(resample), device="cpu", threads=1) as classifier:
        yield classifier


def probabilities(image, resample, **window):
    """float64 (11,), computed without the runtime's classes."""
    logits = pack(image, SIZE, resample=resample, **window).reshape(-1).astype(float) @ MATRIX
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def assert_resampled(found, image, resample, **window):
    """The probabilities of this way to resample, and of no other."""
    for other in RESAMPLE:
        expected = probabilities(image, other, **window)
        assert np.allclose(found, expected, atol=1e-4) == (other == resample), other


def test_arrays(opened, resample):
    assert_resampled(opened.predict_proba(CROP), CROP, resample)
    assert_resampled(opened.predict_proba([HU])[0], HU, resample, window=(40, 400))
    both = opened.predict_proba([CROP, HU])
    assert_resampled(both[0], CROP, resample)
    assert_resampled(both[1], HU, resample, window=(40, 400))


def test_files_that_are_read_in_c_and_files_that_pillow_reads(opened, resample, tmp_path):
    paths = [tmp_path / name for name in ("plain.png", "rows.tif", "plain.bmp")]
    for path in paths:
        Image.fromarray(CROP).save(path)
    for result in opened.predict_paths(paths):
        assert_resampled(result.probabilities, CROP, resample)


def test_bytes(opened, resample, tmp_path):
    Image.fromarray(CROP).save(tmp_path / "crop.png")
    (result,) = opened.predict_bytes((tmp_path / "crop.png").read_bytes())
    assert_resampled(result.probabilities, CROP, resample)


def test_the_crops_of_a_volume(opened, resample):
    shape = (31, 23, 5)
    hu = np.repeat(HU[:, :, None], 5, axis=2)
    mask = DictMask({"liver": block(shape, (0, 31), (0, 23), (0, 5))})
    volume = Volume(np.asfortranarray(hu), np.diag([-1.0, -1.0, 2.0, 1.0]), "scan.nii.gz")
    (organ,) = opened.predict_volume(volume, mask)
    crop = np.ascontiguousarray(HU[::-1, ::-1])
    for one in organ.slices:
        assert_resampled(one.prediction.probabilities, crop, resample, window=(40, 400))


def test_rows_of_ray(bundle_of, resample, tmp_path):
    pytest.importorskip("pyarrow")
    from organ_infer.ray import ClassifyBatch

    Image.fromarray(CROP).save(tmp_path / "crop.png")
    classify = ClassifyBatch(bundle_of(resample), base=str(tmp_path), threads=1)
    (row,) = classify({"path": ["crop.png"]}).to_pylist()
    assert_resampled([row[name] for name in CLASSES], CROP, resample)


def test_known_answers_are_those_of_the_resampling(bundle_of, resample):
    from export.golden import add_golden
    from organ_infer.bundle.golden import golden_answers, golden_slices

    folder = bundle_of(resample)
    add_golden(folder)
    stored = golden_answers(read_manifest(folder), "cpu")
    for image, answer in zip(golden_slices(), stored, strict=True):
        np.testing.assert_allclose(answer, probabilities(image, resample), atol=2e-6)


def test_manifests_name_one_of_the_three(bundle_of, resample):
    folder = bundle_of("area")
    stored = json.loads((folder / "manifest.json").read_text())
    manifest = read_manifest(folder)
    assert manifest.input.resample == stored["input"]["resample"] == "area"
    other = replace(manifest, input=replace(manifest.input, resample=resample))
    (folder / "manifest.json").write_text(other.to_json())
    assert read_manifest(folder) == other
    text = other.to_json().replace(f'"resample": "{resample}"', '"resample": "nearest"')
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"input\.resample must be one of area, linear, cubic"):
        read_manifest(folder)
