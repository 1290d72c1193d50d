"""OrganClassifier.predict_volume: the same answers as for the crops alone, and one answer per organ."""

import numpy as np
import pytest
from conftest import CLASSES, PAIRED, constant_graph, write_bundle
from support.dict_mask import DictMask, block

from organ_infer import InputError, OrganClassifier, OrganInferError, Prediction
from organ_infer.bundle.manifest import Task
from organ_infer.volumes.crops import Crop, organ_crops
from organ_infer.volumes.organs import organ_predictions
from organ_infer.volumes.types import Volume

SHAPE = (60, 50, 40)
HU = np.random.default_rng(8).integers(-300, 400, SHAPE, np.int16)
# Stored as NIfTI usually is: x to the right, y to the front, the first axis contiguous.
VOLUME = Volume(np.asfortranarray(HU), np.diag([-1.0, -1.0, 2.0, 1.0]), "scan.nii.gz")
MASK = DictMask(
    {
        "liver": block(SHAPE, (10, 40), (5, 30), (10, 30)),
        "spleen": block(SHAPE, (0, 12), (30, 44), (20, 33)),
        "kidney-right": block(SHAPE, (45, 48), (20, 24), (3, 7)),
    },
    structures={"kidney-right": ("kidney_right",)},
)


@pytest.fixture(scope="module")
def classifier(bundle):
    with OrganClassifier(bundle, device="cpu", threads=1) as opened:
        yield opened


def by_hand(name):
    """The crops of an organ of MASK, cut by hand: (index, pixels) from the feet to the head."""
    (x0, x1, y0, y1), indices = {
        # 5 mm are 5 voxels. The middle 60 % of 20, 13 and 4 slices are 12, 7 and 2.
        "liver": ((5, 45, 0, 35), range(14, 26)),
        "spleen": ((0, 17, 25, 49), range(23, 30)),
        "kidney-right": ((40, 53, 15, 29), range(4, 6)),
    }[name]
    # Rows grow to the left and columns to the back, so both axes are reversed.
    return [(z, np.ascontiguousarray(HU[x0:x1, y0:y1, z][::-1, ::-1])) for z in indices]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_slices_get_the_answers_of_predict_for_the_same_crops(classifier, bundle, batch_size):
    with OrganClassifier(bundle, device="cpu", threads=1, batch_size=batch_size) as other:
        found = other.predict_volume(VOLUME, MASK)
    assert [organ.expected for organ in found] == list(MASK)
    for organ in found:
        cut = by_hand(organ.expected)
        assert [one.index for one in organ.slices] == [index for index, _ in cut]
        assert [one.position for one in organ.slices] == [2.0 * index for index, _ in cut]
        expected = classifier.predict([pixels for _, pixels in cut])
        for one, prediction in zip(organ.slices, expected, strict=True):
            assert one.prediction.probabilities == pytest.approx(prediction.probabilities, abs=1e-6)
            assert one.prediction.label == prediction.label
            assert one.prediction.path is None


def test_the_mean_of_the_slices_is_the_organ_s_answer(classifier):
    for organ in classifier.predict_volume(VOLUME, MASK, slices="all"):
        rows = np.array([one.prediction.probabilities for one in organ.slices])
        assert organ.probabilities == pytest.approx(rows.mean(axis=0), abs=1e-12)
        assert organ.index == rows.mean(axis=0).argmax()
        assert organ.label == CLASSES[organ.index]
        assert organ.probability == organ.probabilities[organ.index]
        assert organ.agrees is (organ.label == organ.expected)
    assert organ.structures == ("kidney_right",) and organ.view == "axial"


def test_warnings_name_the_border_and_few_voxels_beside_those_of_the_pixels(classifier):
    liver, spleen, kidney = classifier.predict_volume(VOLUME, MASK)
    assert liver.warnings == ()
    assert ["touches the border" in text for text in spleen.warnings] == [True]
    assert ["only 48 voxels" in text for text in kidney.warnings] == [True]
    for organ in (liver, spleen, kidney):
        assert all(
            one.prediction.warnings[: len(organ.warnings)] == organ.warnings for one in organ.slices
        )
    flat = Volume(np.zeros(SHAPE, np.int16), VOLUME.affine, "flat")
    (one, *_) = classifier.predict_volume(flat, MASK)[0].slices
    assert "constant image" in one.prediction.warnings[0]


def test_a_structure_as_large_as_a_whole_slice_is_implausible(classifier):
    wide = Volume(HU, np.diag([6.0, 6.0, 2.0, 1.0]), "wide")
    body = DictMask({"liver": block(SHAPE, (1, 59), (1, 49), (10, 12))})
    (organ,) = classifier.predict_volume(wide, body)
    # 60 x 50 voxels of 6 mm: rows run along x, so the height is 360 mm.
    assert organ.slices[0].prediction.warnings == (
        "implausible: 300 x 360 mm; likely a whole slice, crop it around one organ",
    )


def test_an_organ_of_many_small_voxels_is_no_whole_slice(classifier):
    # 440 x 420 voxels of 0.4 mm
    hu = HU[:, :, :8].repeat(8, axis=0).repeat(9, axis=1)
    fine = Volume(hu, np.diag([0.4, 0.4, 1.0, 1.0]), "fine")
    liver = DictMask({"liver": block(fine.hu.shape, (10, 450), (10, 430), (2, 4))})
    (organ,) = classifier.predict_volume(fine, liver, margin_mm=0)
    assert organ.slices[0].prediction.warnings == ()


def prediction(**probabilities):
    row = [probabilities.get(name.replace("-", "_"), 0.0) for name in CLASSES]
    index = int(np.argmax(row))
    return Prediction(None, CLASSES[index], index, row[index], tuple(row), "", 0.0)


def answer(expected, *predictions):
    task = Task("organamnist", "axial", tuple(CLASSES), tuple(map(tuple, PAIRED)))
    made = [
        Crop(expected, "axial", i, 0.0, np.zeros((2, 2), np.int16), (2.0, 2.0), ())
        for i in range(len(predictions))
    ]
    (organ,) = organ_predictions(DictMask({}), task, made, predictions)
    return organ


def test_the_mean_decides_and_not_the_majority():
    unsure = prediction(liver=0.51, spleen=0.49)
    organ = answer("spleen", unsure, unsure, prediction(spleen=0.99, liver=0.01))
    assert organ.label == "spleen" and organ.agrees
    assert organ.probability == pytest.approx((0.49 + 0.49 + 0.99) / 3)


@pytest.mark.parametrize(
    ("expected", "agrees", "only_side"),
    [("kidney-left", True, False), ("kidney-right", False, True), ("liver", False, False)],
)
def test_an_answer_agrees_differs_or_differs_in_the_side_only(expected, agrees, only_side):
    organ = answer(expected, prediction(kidney_left=0.6, kidney_right=0.4))
    assert (organ.agrees, organ.only_side_differs) == (agrees, only_side)


def test_the_organs_are_packed_in_batches_of_the_batch_size(bundle, monkeypatch):
    with OrganClassifier(bundle, device="cpu", threads=1, batch_size=6) as opened:
        sizes, pack = [], opened._pack
        monkeypatch.setattr(
            opened, "_pack", lambda slices: sizes.append(len(slices)) or pack(slices)
        )
        organs = opened.predict_volume(VOLUME, MASK)
    # 12 + 7 + 2 slices
    assert sizes == [6, 6, 6, 3] and [len(organ.slices) for organ in organs] == [12, 7, 2]


def test_the_options_of_images_do_not_turn_volumes_and_tta_counts(bundle, classifier):
    expected = classifier.predict_volume(VOLUME, MASK)
    with OrganClassifier(bundle, device="cpu", threads=1, orientation="PL") as turned:
        found = turned.predict_volume(VOLUME, MASK)
    assert [o.probabilities for o in found] == [o.probabilities for o in expected]
    with OrganClassifier(bundle, device="cpu", threads=1, tta=True) as shifted:
        assert shifted.predict_volume(VOLUME, MASK)[0].probabilities != expected[0].probabilities


def test_progress_is_reported_before_the_first_batch_and_after_each(bundle):
    seen = []
    with OrganClassifier(bundle, batch_size=5) as classifier:
        organs = classifier.predict_volume(
            VOLUME, MASK, on_progress=lambda done, total: seen.append((done, total))
        )
    total = sum(len(organ.slices) for organ in organs)
    assert total > 10
    assert seen == [(done, total) for done in (*range(0, total, 5), total)]


def test_margin_and_slices_are_those_of_organ_crops(classifier):
    found = classifier.predict_volume(VOLUME, MASK, margin_mm=1.0, slices="all")
    made = organ_crops(VOLUME, MASK, orientation="LP", margin_mm=1.0, slices="all")
    assert [one.index for organ in found for one in organ.slices] == [crop.index for crop in made]
    rows = classifier.predict_proba([np.ascontiguousarray(crop.pixels) for crop in made])
    shown = [one.prediction.probabilities for organ in found for one in organ.slices]
    np.testing.assert_allclose(shown, rows, atol=1e-6)


def test_a_mask_without_a_known_class_is_refused(classifier):
    with pytest.raises(InputError, match=r"^mask.nii.gz: the model has no class 'stomach', but bl"):
        classifier.predict_volume(VOLUME, DictMask({"stomach": MASK["liver"]}))
    with pytest.raises(InputError, match=r"contains no structure of a class \(not mapped: 1, 2\)"):
        classifier.predict_volume(VOLUME, DictMask({}, unmapped=("1", "2")))
    with pytest.raises(InputError, match=r"contains no structure of a class; choose"):
        classifier.predict_volume(VOLUME, DictMask({}))
    with pytest.raises(InputError, match=r"^mask: expected a Mask, found dict"):
        classifier.predict_volume(VOLUME, {"liver": MASK["liver"]})
    with pytest.raises(InputError, match=r"^volume: expected a Volume, found str"):
        classifier.predict_volume("scan.nii.gz", MASK)


@pytest.mark.parametrize(
    ("field", "words"),
    [("orientation", "no volumes, .* no orientation"), ("window", "no volumes, .* no window")],
)
def test_a_model_without_orientation_or_window_takes_no_volumes(tmp_path, field, words):
    def change(manifest):
        manifest["input"][field] = None

    folder = write_bundle(tmp_path / "b", {"a.onnx": constant_graph({"liver": 1.0})}, change=change)
    with (
        OrganClassifier(folder, device="cpu", threads=1) as opened,
        pytest.raises(InputError, match=words),
    ):
        opened.predict_volume(VOLUME, MASK)


def test_a_coronal_model_gets_coronal_crops(tmp_path):
    def change(manifest):
        manifest["task"]["view"] = "coronal"
        manifest["input"]["orientation"] = ["F", "L"]

    folder = write_bundle(tmp_path / "b", {"a.onnx": constant_graph({"liver": 1.0})}, change=change)
    with OrganClassifier(folder, device="cpu", threads=1) as opened:
        liver, *_ = opened.predict_volume(VOLUME, MASK)
    assert liver.view == "coronal" and liver.agrees
    # y grows to the front: the middle 15 of the slices 5 to 29, and the position grows to the back.
    assert [one.index for one in liver.slices] == list(range(24, 9, -1))
    assert [one.position for one in liver.slices] == [float(-y) for y in range(24, 9, -1)]


def test_a_closed_classifier_says_so(bundle):
    opened = OrganClassifier(bundle, device="cpu", threads=1)
    opened.close()
    with pytest.raises(OrganInferError, match="closed"):
        opened.predict_volume(VOLUME, MASK)
