"""Scans and masks that no other orientation, place or label explains: no organs, values that are no HU, sizes, votes."""

import dataclasses
import math

import numpy as np
import pytest
from support.phantoms import phantom

from organ_infer.audit import KINDS
from organ_infer.audit import evidence as evidence_module
from organ_infer.audit.evidence import Evidence
from organ_infer.audit.explanations import (
    Step,
    _label_changes_merged,
    explain,
    fit_of,
    fit_of_labels,
    state_of,
)
from organ_infer.audit.implausible import VALUES, densities, no_organs, other_values, sizes, turned
from organ_infer.audit.structures import Move, structures_of
from organ_infer.engine.ensemble import Answer
from organ_infer.images.axes import NO_CROP, orientation_names
from organ_infer.volumes.types import Mask, Volume

SHAPE = (60, 52, 60)
# HU that tell the organs apart, within the ranges of their density.
CENTERS = {"liver": 60, "spleen": 50, "kidney-right": 33, "kidney-left": 31, "femur-left": 700}
OTHERS = ("bladder", "femur-right", "heart", "lung-left", "lung-right", "pancreas")
CLASSES = tuple(sorted((*CENTERS, *OTHERS)))
SURE, REST = 0.92, 0.01


@pytest.fixture(scope="module")
def patient():
    body = phantom(shape=SHAPE, spacing=(5.0, 5.0, 5.0))
    hu = body.hu.copy()
    for number, value in enumerate(CENTERS.values(), 1):
        hu[body.labels == number] = value
    codes = {name: number for number, name in enumerate(CENTERS, 1)}
    return Volume(hu, body.affine, "scan.nii.gz"), body.labels, codes


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    """The phantom's organs have only eight pixels and more."""
    monkeypatch.setattr(evidence_module, "LEAST_PIXELS", 6)


def middle(pixels):
    height, width = pixels.shape
    return int(pixels[height // 2, width // 2])


def sure(column):
    row = np.full(9, REST, np.float32)
    row[column] = SURE
    return row


def model(slices, column=0):
    """Answer of a model that knows organs by the HU in the middle of a slice.

    Args:
        slices: int16 (H, W) each.
        column: The orientation of slices with an organ.
    """
    probabilities = np.full((len(slices), len(CLASSES)), 0.1 / 10)
    orientation = np.tile(sure(8), (len(slices), 1))
    for i, pixels in enumerate(slices):
        near = [name for name, hu in CENTERS.items() if abs(hu - middle(pixels)) <= 1]
        probabilities[i, CLASSES.index(near[0] if near else "heart")] = 0.9
        if near:
            orientation[i] = sure(column)
    return Answer(probabilities, orientation)


def without_orientation(slices):
    return Answer(model(slices).probabilities, None)


def evidence_of(volume, labels, codes, classify=model):
    mask = Mask([np.asfortranarray(labels)], codes)
    structures = tuple(structures_of(volume, mask, 10))
    return Evidence(volume, structures, CLASSES, ("L", "P"), (40, 400), 5.0, classify)


def steps_of(*case):
    return explain(evidence_of(*case))[1]


def misplaced(labels, codes, *names):
    """The organs as boxes in the fat around all of them, away from the border."""
    wrong = labels.copy()
    places = [(25, 4, 45), (36, 4, 45), (25, 4, 30), (36, 4, 30), (25, 4, 15)]
    for name, (x, y, z) in zip(names, places, strict=False):
        wrong[labels == codes[name]] = 0
        wrong[x : x + 8, y : y + 5, z : z + 12] = codes[name]
    return wrong


# Organs that are none.


def test_intact_organs_are_organs(patient):
    assert steps_of(*patient) == []


@pytest.mark.parametrize("name", ["liver", "kidney-left"])
def test_an_organ_whose_mask_is_around_none_is_named(patient, name):
    volume, labels, codes = patient
    (step,) = steps_of(volume, misplaced(labels, codes, name), codes)
    assert (step.kind, step.message) == (
        "no organ crop",
        f"the crops of {name} show no organ; check where its mask is",
    )
    assert step.kind in KINDS and step.evidence >= 3
    assert step.organs == (list(codes).index(name),)


def test_organs_that_are_none_are_one_finding(patient):
    volume, labels, codes = patient
    for names, advice in (
        (("spleen", "femur-left"), "check where their masks are"),
        (
            tuple(codes),
            "check that the mask belongs to the scan, and that its values are Hounsfield units",
        ),
    ):
        (step,) = steps_of(volume, misplaced(labels, codes, *names), codes)
        total = f"the crops of {len(names)} of 5 organs show no organ: {', '.join(names)}; {advice}"
        assert (step.kind, step.message) == ("no organ crop", total)


def test_a_model_without_orientation_gives_the_findings_of_before(patient):
    volume, labels, codes = patient
    wrong = misplaced(labels, codes, "liver")
    (step,) = steps_of(volume, wrong, codes, without_orientation)
    assert step.message == "label liver looks like heart"
    evidence = evidence_of(*patient, without_orientation)
    assert evidence.view().orientations is None and turned(evidence, state_of(evidence)) == []


def test_the_fit_of_labels_leaves_the_orientation_out(patient):
    evidence, other = (evidence_of(*patient, which) for which in (model, without_orientation))
    assert fit_of_labels(evidence) == pytest.approx(fit_of(other))
    assert fit_of_labels(other) == pytest.approx(fit_of(other))
    assert fit_of(evidence) < fit_of(other)
    named = dataclasses.replace(state_of(evidence), labels=("spleen", *list(CENTERS)[1:]))
    expected = other.score(other.view(), named.labels) + 5 * math.log(11)
    assert fit_of_labels(evidence, named) == pytest.approx(expected)


def with_first(evidence, **changes):
    """The evidence with changes of its first structure."""
    first = dataclasses.replace(evidence.structures[0], **changes)
    return dataclasses.replace(
        evidence, structures=(first, *evidence.structures[1:]), _seen_before={}
    )


def test_an_organ_that_is_none_counts_as_a_guess(patient):
    volume, labels, codes = patient
    evidence = evidence_of(volume, misplaced(labels, codes, "liver"), codes)
    box = evidence.structures[0].box
    for state, expected in (
        ({}, math.log(SURE) - math.log(11)),
        ({"is_cut": True}, 0.25 * math.log(SURE) - 0.75 * math.log(11)),
        # One voxel of 5 mm from the border of the volume.
        ({"box": (box[0], slice(1, box[1].stop), box[2])}, 0.25 * math.log(SURE) - math.log(11)),
        ({"is_small": True}, -0.25 * math.log(11)),
    ):
        changed = with_first(evidence, **state)
        view = changed.view()
        # Whatever is in a larger box.
        view.orientations[0] = sure(8)
        score = changed.organ_scores(view, [NO_CROP] * 5)[0]
        assert score == pytest.approx(expected, abs=1e-6)


def test_the_cost_of_organs_that_are_none_grows_with_their_number(patient):
    volume, labels, codes = patient
    for names in (("liver",), ("liver", "spleen", "kidney-left")):
        (step,) = steps_of(volume, misplaced(labels, codes, *names), codes)
        gain = step.after.score - step.before.score
        assert step.evidence == pytest.approx(gain - 2.0 - 2.0 * len(names))


def test_the_orientation_counts_in_the_score_of_an_organ(patient):
    evidence, other = (evidence_of(*patient, which) for which in (model, without_orientation))
    view, plain = evidence.view(), other.view()
    assert view.orientations.shape == (5, 9)
    assert view.orientations[:, 0] == pytest.approx([SURE] * 5)
    # The floor of a probability.
    view.orientations[0, 0] = 0.001
    names = list(CENTERS)
    weights = [0.25 if one.is_cut else 1.0 for one in view.structures]
    assert {*weights} == {0.25, 1.0}
    added = evidence.organ_scores(view, names) - other.organ_scores(plain, names)
    expected = np.log([0.005, SURE, SURE, SURE, SURE]) * weights
    assert added == pytest.approx(expected, abs=1e-6)


def test_a_structure_that_has_left_the_volume_has_no_orientation(patient):
    away = evidence_of(*patient).view(move=Move(shift=(30, 0, 0)))
    for one, row in zip(away.structures, away.orientations, strict=True):
        assert np.isnan(row).all() == (one is None)
    assert None in away.structures and away.structures != (None,) * 5
    gone = evidence_of(*patient).view(move=Move(shift=(59, 0, 0)))
    assert gone.structures == (None,) * 5 and gone.orientations is None


@pytest.mark.parametrize(("side", "counts"), [(13, False), (14, True)])
def test_the_orientation_of_a_crop_of_few_pixels_does_not_count(patient, side, counts, monkeypatch):
    monkeypatch.undo()
    volume, labels, codes = patient
    part = np.zeros_like(labels)
    x, y, z = np.argwhere(labels == codes["liver"]).mean(axis=0).astype(int)
    # The margin is one voxel on each side.
    part[x - 6 : x - 8 + side, y - 8 : y + 8, z - 4 : z + 4] = codes["liver"]
    evidence = evidence_of(volume, part, {"liver": codes["liver"]}, lambda s: model(s, 3))
    view = evidence.view()
    assert evidence.orientation_weights == ((1.0,) if counts else (0.0,))
    assert bool(turned(evidence, state_of(evidence))) == counts
    plain = evidence_of(volume, part, {"liver": codes["liver"]}, without_orientation)
    added = evidence.organ_scores(view, ["liver"]) - plain.organ_scores(plain.view(), ["liver"])
    assert added == pytest.approx([math.log(REST) if counts else 0.0], abs=1e-6)


def test_organs_that_are_none_after_other_steps_are_one_finding(patient):
    evidence = evidence_of(*patient)
    start = state_of(evidence)

    def step(before, changes):
        labels = tuple(changes.get(i, name) for i, name in enumerate(before.labels))
        after = dataclasses.replace(before, labels=labels)
        return Step("wrong label", "", tuple(changes), 4.0, before, after)

    first = step(start, {0: "heart"})
    second = step(first.after, {0: NO_CROP, 1: NO_CROP})
    (merged,) = _label_changes_merged(evidence, [first, second])
    assert (merged.kind, merged.organs, merged.evidence) == ("no organ crop", (0, 1), 8.0)
    assert merged.message.startswith("the crops of 2 of 5 organs show no organ: liver, spleen;")
    (mixed,) = _label_changes_merged(
        evidence, [first, step(first.after, {0: "bladder", 1: NO_CROP})]
    )
    assert (
        mixed.message
        == "labels exchanged: liver looks like bladder, spleen looks like no organ crop"
    )


# Votes.


@pytest.mark.parametrize("column", range(1, 8))
def test_organs_that_look_turned_together_are_a_finding(patient, column):
    evidence = evidence_of(*patient, lambda slices: model(slices, column))
    (finding,) = turned(evidence, state_of(evidence))
    name = orientation_names(("L", "P"))[column]
    # Not the femur, which is cut off.
    assert finding.kind == "orientation" and finding.organs == tuple(CENTERS)[:4]
    assert finding.evidence == pytest.approx(4 * math.log(SURE / REST), rel=1e-4)
    whole = evidence.structures[:4]
    slices = sum(len(one.crops(patient[0].hu, evidence.grid(), 5.0)) for one in whole)
    assert finding.message.startswith(f"its {slices} crops look ")
    assert name.split(":")[-1] in finding.message
    advice = "check the orientation in its header (affine or ImageOrientationPatient)"
    assert finding.message.endswith(advice)
    assert finding.numbers == {"organs that voted": 4} and len(finding.pictures) == 4


def nothing(slices):
    """Answer of a model that sees no organ anywhere."""
    probabilities = np.full((len(slices), len(CLASSES)), 1 / len(CLASSES))
    return Answer(probabilities, np.tile(sure(8), (len(slices), 1)))


def test_organs_that_look_like_none_together_are_a_finding(patient):
    evidence = evidence_of(*patient, nothing)
    (finding,) = no_organs(evidence, state_of(evidence))
    assert (finding.kind, finding.organs) == ("no organ crop", tuple(CENTERS))
    assert finding.message.startswith("the crops of 5 of 5 organs show no organ: liver, ")
    assert finding.evidence == pytest.approx(5 * math.log(SURE / REST) - 5, rel=1e-4)
    assert turned(evidence, state_of(evidence)) == []
    # One organ says nothing about the scan.
    volume, labels, _ = patient
    alone = evidence_of(volume, labels, {"liver": 1}, nothing)
    assert no_organs(alone, state_of(alone)) == []
    # Blurred organs look like none, but each like an organ of its class.
    blurred = evidence_of(*patient, lambda slices: model(slices, 8))
    (weaker,) = no_organs(blurred, state_of(blurred))
    difference = 5 * math.log(0.9 * 11)
    assert finding.evidence - weaker.evidence == pytest.approx(difference, rel=1e-4)
    other = evidence_of(*patient, lambda slices: model(slices, 3))
    assert no_organs(other, state_of(other)) == []


def test_organs_that_look_as_required_have_no_turned(patient):
    evidence = evidence_of(*patient)
    assert turned(evidence, state_of(evidence)) == no_organs(evidence, state_of(evidence)) == []


def test_each_organ_counts_once(patient):
    volume, labels, codes = patient

    def classify(slices):
        answer = model(slices)
        for i, pixels in enumerate(slices):
            if middle(pixels) == CENTERS["liver"]:
                answer.orientation[i] = sure(3)
        return answer

    # The liver has seven slices. The spleen has one.
    one_slice = np.where(labels == codes["liver"], labels, 0)
    z = int(np.argwhere(labels == codes["spleen"])[:, 2].mean())
    one_slice[:, :, z] = labels[:, :, z]
    both = {name: codes[name] for name in ("liver", "spleen")}
    evidence = evidence_of(volume, one_slice, both, classify)
    assert turned(evidence, state_of(evidence)) == []
    alone = evidence_of(volume, one_slice, {"liver": codes["liver"]}, classify)
    assert "turned by 180 degrees" in turned(alone, state_of(alone))[0].message


def test_fragments_and_parts_of_organs_do_not_vote_on_the_orientation(patient):
    volume, labels, codes = patient
    evidence = evidence_of(volume, labels, codes, lambda slices: model(slices, 3))

    def voters(**changes):
        structures = tuple(dataclasses.replace(one, **changes) for one in evidence.structures[1:])
        changed = dataclasses.replace(evidence, structures=(evidence.structures[0], *structures))
        return [finding.organs for finding in turned(changed, state_of(changed))]

    assert voters() == [tuple(CENTERS)[:4]]
    assert voters(is_small=True) == voters(is_cut=True) == [("liver",)]
    fragments = tuple(dataclasses.replace(one, is_small=True) for one in evidence.structures)
    none = dataclasses.replace(evidence, structures=fragments)
    assert turned(none, state_of(none)) == []


def test_parts_of_organs_vote_on_whether_they_are_organs_and_fragments_do_not(patient):
    evidence = evidence_of(*patient, nothing)

    def voters(**changes):
        structures = tuple(dataclasses.replace(one, **changes) for one in evidence.structures[2:])
        changed = dataclasses.replace(evidence, structures=(*evidence.structures[:2], *structures))
        return [finding.organs for finding in no_organs(changed, state_of(changed))]

    assert voters(is_cut=True) == [tuple(CENTERS)]
    assert voters(is_small=True) == [("liver", "spleen")]


def test_there_is_no_vote_once_a_step_has_moved_scan_or_mask(patient):
    evidence = evidence_of(*patient, lambda slices: model(slices, 3))
    state = state_of(evidence)
    assert turned(evidence, dataclasses.replace(state, axes=np.diag([1, 1, -1]))) == []
    assert turned(evidence, dataclasses.replace(state, move=Move(shift=(1, 0, 0)))) == []
    none = dataclasses.replace(state, labels=("liver", *[NO_CROP] * 4))
    assert turned(evidence, none)[0].organs == ("liver",)


# Values.

WRONG = {
    "negated; multiply them by -1": lambda hu: -hu,
    "1,024 too low; add 1,024": lambda hu: hu - 1024,
    "doubled; halve them": lambda hu: hu * 2,
    "halved; double them": lambda hu: hu // 2,
}


@pytest.mark.parametrize("what", WRONG)
def test_values_that_are_no_hounsfield_units_are_named(patient, what):
    volume, labels, codes = patient
    scan = dataclasses.replace(volume, hu=WRONG[what](volume.hu.astype(np.int16)))
    evidence = evidence_of(scan, labels, codes)
    (finding,) = other_values(evidence, 0.0)
    assert (finding.kind, finding.message) == ("values", f"the values of the scan look {what}")
    before, after = state_of(evidence), state_of(evidence_of(*patient))
    # Halved values are rounded.
    assert finding.evidence == pytest.approx(after.score - before.score - 4, abs=0.1)
    assert finding.organs == tuple(CENTERS) and len(finding.pictures) == 5
    # The steps explain more.
    assert other_values(evidence, finding.evidence + 0.01) == []


def test_values_that_are_right_are_no_finding(patient):
    assert other_values(evidence_of(*patient), 0.0) == []


def test_other_values_that_fit_worse_than_chance_are_no_finding(patient):
    volume, labels, codes = patient
    noise = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    evidence = evidence_of(dataclasses.replace(volume, hu=noise), labels, codes)
    assert fit_of(evidence) < 0 and other_values(evidence, 0.0) == []


def test_undoing_does_not_wrap_around():
    hu = np.array([-32768, -1024, 0, 41, 3071, 32767], np.int16)
    for what, undo in VALUES.items():
        result = undo(hu)
        assert result.dtype == np.int16 and hu[0] == -32768
        order = -1 if what.startswith("negated") else 1
        assert (np.diff(result.astype(int)) * order >= 0).all()
    assert VALUES["negated; multiply them by -1"](hu).tolist() == [
        32767,
        1024,
        0,
        -41,
        -3071,
        -32767,
    ]
    assert VALUES["1,024 too low; add 1,024"](hu).tolist() == [-31744, 0, 1024, 1065, 4095, 32767]
    assert VALUES["doubled; halve them"](hu).tolist() == [-16384, -512, 0, 20, 1535, 16383]
    assert VALUES["halved; double them"](hu).tolist() == [-32768, -2048, 0, 82, 6142, 32766]


# Sizes.


def test_a_mask_of_one_voxel_is_a_finding(patient):
    volume, labels, codes = patient
    dot = labels.copy()
    dot[labels == codes["liver"]] = 0
    x, y, z = np.argwhere(labels == codes["liver"]).mean(axis=0).astype(int)
    dot[x, y, z] = codes["liver"]
    evidence = evidence_of(volume, dot, codes)
    (finding,) = sizes(evidence, state_of(evidence))
    assert (finding.kind, finding.evidence, finding.organs) == ("size", 4.0, ("liver",))
    assert finding.message == "liver is too small: 0.125 mL, expected 300 to 5,000; check its mask"
    assert finding.numbers == {"log likelihood": "-4.0"} and len(finding.pictures) == 1


def test_a_mask_of_the_whole_body_is_a_finding(patient):
    volume, labels, codes = patient
    body = np.zeros_like(labels)
    body[2:-2, 2:-2, 2:-2] = codes["spleen"]
    evidence = evidence_of(volume, body, codes)
    (finding,) = sizes(evidence, state_of(evidence))
    assert finding.message.startswith("spleen is too large: ")
    assert finding.message.endswith(" mL, expected 20 to 2,500; check its mask")


def test_a_size_within_four_times_the_range_and_near_the_border_is_no_finding(patient):
    evidence = evidence_of(*patient)
    state = state_of(evidence)
    assert sizes(evidence, state) == []

    def found(labels=state.labels, **changes):
        one = dataclasses.replace(evidence.structures[0], **changes)
        changed = dataclasses.replace(evidence, structures=(one, *evidence.structures[1:]))
        return sizes(changed, dataclasses.replace(state, labels=labels))

    assert found(volume_ml=76.0) == [] and found(volume_ml=19_000.0) == []
    assert len(found(volume_ml=74.0)) == len(found(volume_ml=21_000.0)) == 1
    # The class that it looks like has this size.
    assert found(labels=("spleen", *state.labels[1:]), volume_ml=74.0) == []
    assert found(labels=(NO_CROP, *state.labels[1:]), volume_ml=74.0) == []
    # One voxel of 5 mm from the border, and two.
    x, y, z = evidence.structures[0].box
    for axis, size in enumerate(SHAPE):
        for start, stop, is_found in ((1, 30, False), (2, 30, True), (20, size - 1, False)):
            box = [x, y, z]
            box[axis] = slice(start, stop)
            assert bool(found(volume_ml=74.0, box=tuple(box))) == is_found
            # A fragment is found unless it touches the border.
            small = {"volume_ml": 1.0, "box": tuple(box), "is_small": True}
            assert len(found(**small)) == 1 and found(**small, is_cut=True) == []


# Densities.


def test_a_density_far_from_that_of_the_organ_is_a_finding(patient):
    volume, labels, codes = patient
    hu = volume.hu.copy()
    hu[labels == codes["liver"]] = -1000
    evidence = evidence_of(dataclasses.replace(volume, hu=hu), labels, codes)
    (finding,) = densities(evidence, state_of(evidence))
    assert (finding.kind, finding.evidence, finding.organs) == ("density", 4.0, ("liver",))
    assert finding.message == (
        "liver has a median of -1,000 HU, expected -40 to 250; check where its mask is, and the values of the scan"
    )
    assert len(finding.pictures) == 1


@pytest.mark.parametrize(
    ("hu", "is_found"), [(-139, False), (-140, True), (349, False), (350, True)]
)
def test_a_density_within_a_hundred_of_the_range_is_none(patient, hu, is_found):
    evidence = evidence_of(*patient)
    state = state_of(evidence)
    state.view.medians[0] = hu
    assert bool(densities(evidence, state)) == is_found
    # No organ, a fragment, and one that has left the volume.
    none = dataclasses.replace(state, labels=(NO_CROP, *state.labels[1:]))
    assert densities(evidence, none) == []
    one = dataclasses.replace(state.view.structures[0], is_small=True)
    for changed in (one, None):
        view = dataclasses.replace(state.view, structures=(changed, *state.view.structures[1:]))
        assert densities(evidence, dataclasses.replace(state, view=view)) == []


# One shifted organ.


@pytest.mark.parametrize("classify", [model, without_orientation])
def test_one_shifted_organ_is_named_with_its_distance(patient, classify):
    volume, labels, codes = patient
    off = np.where(labels == codes["spleen"], 0, labels)
    x, y, z = np.argwhere(labels == codes["spleen"]).T
    # 30 mm toward the front, where nothing else is.
    off[x, y - 6, z] = codes["spleen"]
    (step,) = steps_of(volume, off, codes, classify)
    assert step.message == "spleen: mask shifted by 30 mm toward the front"
    assert (step.kind, step.organs) == ("mask shifted", (1,))
    alone = evidence_of(volume, off, {"spleen": codes["spleen"]}, classify)
    gain = step.after.score - step.before.score
    spread = step.before.view.spread - step.after.view.spread
    assert step.before.score == pytest.approx(state_of(alone).score)
    assert step.evidence == pytest.approx(gain + 3 * spread - 4 - 1)


def test_organs_are_not_shifted_one_by_one_if_the_mask_is(patient):
    volume, labels, codes = patient
    (step,) = steps_of(volume, np.roll(labels, 6, axis=1), codes)
    assert step.message == "mask shifted by 30 mm toward the back" and len(step.organs) == 5
