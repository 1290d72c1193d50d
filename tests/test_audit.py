"""What explains a mask that does not fit its scan: on a large phantom, with a model that knows organs by their HU."""

import dataclasses
import itertools
import math
import types
from dataclasses import replace

import numpy as np
import pytest
from support.phantoms import phantom

from organ_infer.audit import KINDS, anatomy, scan
from organ_infer.audit.evidence import Evidence
from organ_infer.audit.explanations import (
    Step,
    _label_changes_merged,
    axes_message,
    explain,
    state_of,
)
from organ_infer.audit.structures import UNMOVED, Move, Structure, moves_of_axes, structures_of
from organ_infer.engine.ensemble import Answer
from organ_infer.volumes.types import Mask, Volume

SHAPE = (60, 52, 60)
# HU that tell the organs apart, within the ranges of their density.
NAMES = ("liver", "spleen", "kidney-right", "kidney-left", "femur-left")
CENTERS = (60, 50, 33, 31, 700)
CLASSES = ("bladder", *NAMES, "femur-right", "heart", "lung-left", "lung-right", "pancreas")
IDENTITY = np.eye(3, dtype=np.int64)


@pytest.fixture(scope="module")
def patient():
    body = phantom(shape=SHAPE, spacing=(5.0, 5.0, 5.0))
    # The phantom's noise of 15 HU would hide which organ is which.
    hu = body.hu.copy()
    for number, value in enumerate(CENTERS, 1):
        hu[body.labels == number] = value
    codes = {name: number for number, name in enumerate(NAMES, 1)}
    return Volume(hu, body.affine, "scan.nii.gz"), body.labels, codes


def by_density(slices):
    """Answer of a model that looks at the HU of the middle of each slice, and gives no orientation."""
    answers = np.full((len(slices), len(CLASSES)), 0.01)
    for row, pixels in zip(answers, slices, strict=True):
        height, width = pixels.shape
        middle = pixels[height // 2, width // 2]
        nearest = int(np.abs(np.array(CENTERS) - middle).argmin())
        is_organ = abs(CENTERS[nearest] - int(middle)) <= 5
        row[CLASSES.index(NAMES[nearest]) if is_organ else 0] = 0.9
    return Answer(answers / answers.sum(axis=1, keepdims=True), None)


def evidence_of(volume, labels, codes):
    mask = Mask([np.asfortranarray(labels)], codes)
    structures = tuple(structures_of(volume, mask, 10))
    return Evidence(volume, structures, CLASSES, ("L", "P"), (40, 400), 5.0, by_density)


def findings_of(volume, labels, codes):
    _, steps = explain(evidence_of(volume, labels, codes))
    return [(step.kind, step.message) for step in steps]


def test_a_mask_that_fits_gives_no_finding(patient):
    assert findings_of(*patient) == []


@pytest.mark.parametrize(
    ("signs", "message"),
    [
        ((-1, 1, 1), "left-right flipped"),
        ((1, 1, -1), "head-feet flipped"),
        ((-1, -1, 1), "turned by 180 degrees"),
    ],
)
def test_a_header_with_wrong_directions_is_named(patient, signs, message):
    volume, labels, codes = patient
    affine = np.diag([*signs, 1.0]) @ volume.affine
    turned = Volume(volume.hu, affine, volume.source)
    assert findings_of(turned, labels, codes) == [("orientation", f"{message}: scan and mask")]


def test_sides_that_are_swapped_are_named(patient):
    volume, labels, codes = patient
    swapped = {**codes, "kidney-left": codes["kidney-right"], "kidney-right": codes["kidney-left"]}
    expected = [("labels swapped", "labels swapped: kidney-left <-> kidney-right")]
    assert findings_of(volume, labels, swapped) == expected


def test_two_organs_that_are_swapped_are_named(patient):
    volume, labels, codes = patient
    swapped = {**codes, "liver": codes["femur-left"], "femur-left": codes["liver"]}
    expected = [("labels swapped", "labels swapped: femur-left <-> liver")]
    assert findings_of(volume, labels, swapped) == expected


def test_a_label_of_another_organ_is_named(patient):
    volume, labels, codes = patient
    renamed = {"bladder" if name == "liver" else name: code for name, code in codes.items()}
    assert findings_of(volume, labels, renamed) == [
        ("wrong label", "label bladder looks like liver")
    ]


def test_labels_that_are_exchanged_in_a_cycle_are_one_finding(patient):
    volume, labels, codes = patient
    cycle = dict(zip(NAMES, (codes[name] for name in (*NAMES[1:], NAMES[0])), strict=True))
    ((kind, message),) = findings_of(volume, labels, cycle)
    assert kind == "labels swapped"
    for name, other in zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True):
        assert f"{name} looks like {other}" in message


def test_changes_of_the_same_labels_are_one_finding_without_those_taken_back(patient):
    volume, labels, codes = patient
    evidence = evidence_of(volume, labels, codes)
    start = state_of(evidence)

    def step(before, changes):
        """Relabel structures by their index."""
        after = replace(
            before, labels=tuple(changes.get(i, name) for i, name in enumerate(before.labels))
        )
        return Step("labels swapped", "", tuple(changes), 4.0, before, after)

    names = start.labels
    first = step(start, {0: "heart", 1: "bladder", 2: names[0]})
    back = step(first.after, {1: names[1]})
    (merged,) = _label_changes_merged(evidence, [first, back])
    assert (
        merged.message
        == f"labels exchanged: {names[0]} looks like heart, {names[2]} looks like {names[0]}"
    )
    assert (merged.kind, merged.organs, merged.evidence) == ("labels swapped", (0, 2), 8.0)
    assert (merged.before.labels, merged.after.labels) == (names, back.after.labels)
    one = step(back.after, {2: names[2]})
    (merged,) = _label_changes_merged(evidence, [first, back, one])
    assert (merged.kind, merged.message) == ("wrong label", f"label {names[0]} looks like heart")
    # nothing is left
    assert _label_changes_merged(evidence, [first, back, one, step(one.after, {0: names[0]})]) == []
    # other organs, and steps of another kind
    apart = [first, step(first.after, {3: "pancreas"})]
    assert _label_changes_merged(evidence, apart) == apart
    moved = replace(first, kind="mask shifted", organs=(0, 1, 2, 3, 4), after=start)
    assert _label_changes_merged(evidence, [moved, first, back])[0] == moved
    assert _label_changes_merged(evidence, [moved, first]) == [moved, first]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_mask_is_found_with_its_distance(patient, axis):
    volume, labels, codes = patient
    off = np.zeros_like(labels)
    to, of = [slice(None)] * 3, [slice(None)] * 3
    to[axis], of[axis] = slice(6, None), slice(0, -6)
    off[tuple(to)] = labels[tuple(of)]
    ((kind, message),) = findings_of(volume, off, codes)
    towards = ("left", "back", "head")[axis]
    assert kind == "mask shifted"
    assert message == f"mask shifted by 30 mm toward the {towards}"


def test_a_mask_that_is_flipped_alone_is_told_from_a_flipped_scan(patient):
    volume, labels, codes = patient
    mask_only = findings_of(volume, np.flip(labels, 0), codes)
    scan_only = findings_of(Volume(np.flip(volume.hu, 0), volume.affine, ""), labels, codes)
    assert mask_only == [("mask placement", "left-right flipped: the mask, not the scan")]
    assert scan_only == [("mask placement", "left-right flipped: the scan, not the mask")]


def test_every_step_has_a_known_kind_and_enough_evidence(patient):
    volume, labels, codes = patient
    swapped = {**codes, "liver": codes["spleen"], "spleen": codes["liver"]}
    state, steps = explain(evidence_of(volume, labels, swapped))
    assert steps and all(step.kind in KINDS and step.evidence >= 3 for step in steps)
    assert state.score > steps[0].before.score


def shifted(labels):
    off = np.zeros_like(labels)
    off[6:] = labels[:-6]
    return off


def test_the_evidence_is_the_gain_less_the_cost(patient):
    volume, labels, codes = patient

    def renamed(**names):
        return {names.get(name.replace("-", "_"), name): code for name, code in codes.items()}

    flipped = Volume(volume.hu, np.diag([-1.0, 1, 1, 1]) @ volume.affine, "")
    sides = renamed(kidney_left="kidney-right", kidney_right="kidney-left")
    two = renamed(liver="femur-left", femur_left="liver")
    cycle = dict(zip(NAMES, (codes[name] for name in (*NAMES[1:], NAMES[0])), strict=True))
    for case, cost in (
        ((flipped, labels, codes), 1.0),
        ((volume, labels, sides), 1.0),
        ((volume, labels, two), 3.0),
        ((volume, labels, renamed(liver="bladder")), 2.0),
        ((volume, labels, cycle), 2.0 + 5),
        ((volume, np.flip(labels, 0), codes), 4.0),
        ((volume, shifted(labels), codes), 4.0),
    ):
        _, (step,) = explain(evidence_of(*case))
        gain = step.after.score - step.before.score
        spread = step.before.view.spread - step.after.view.spread
        assert step.evidence == pytest.approx(gain + 3.0 * spread - cost)


# Structures.


def test_moved_structures_are_those_of_the_moved_mask(patient):
    volume, labels, codes = patient
    cube = labels[:52, :52, :52]
    scan_cube = Volume(volume.hu[:52, :52, :52], volume.affine, "")
    structures = structures_of(scan_cube, Mask([np.asfortranarray(cube)], codes), 10)
    moves = [*moves_of_axes(cube.shape)[::5], Move(shift=(4, -3, 2))]
    for move in moves:
        array = np.transpose(cube, move.axes)
        array = array[tuple(slice(None, None, -1 if flip else 1) for flip in move.flips)]
        expected = np.zeros_like(array)
        to = tuple(slice(max(s, 0), 52 + min(s, 0)) for s in move.shift)
        of = tuple(slice(max(-s, 0), 52 + min(-s, 0)) for s in move.shift)
        expected[to] = array[of]
        others = structures_of(scan_cube, Mask([np.asfortranarray(expected)], codes), 10)
        for one, other in zip(structures, others, strict=True):
            moved = one.moved(move, cube.shape)
            assert moved.box == other.box, (move, one.name)
            assert all((a == b).all() for a, b in zip(moved.occupied, other.occupied, strict=True))
            assert moved.center == pytest.approx(other.center, abs=0.6)
            inside = expected[tuple(moved.points.T)]
            assert (inside == codes[one.name]).all()


def test_a_structure_that_leaves_the_volume_is_gone(patient):
    volume, labels, codes = patient
    liver = structures_of(volume, Mask([np.asfortranarray(labels)], codes), 10)[0]
    assert liver.moved(UNMOVED, SHAPE) is liver
    assert liver.moved(Move(shift=(1, 0, 0)), SHAPE).points[:, 0].min() >= 1
    assert liver.moved(Move(shift=(59, 0, 0)), SHAPE) is None


def test_moves_keep_the_shape():
    assert len(moves_of_axes((4, 4, 4))) == 47
    assert len(moves_of_axes((4, 4, 5))) == 15
    assert len(moves_of_axes((3, 4, 5))) == 7


def test_large_structures_are_sampled_evenly():
    labels = np.ones((40, 50, 60), np.uint8)
    (one,) = structures_of(
        Volume(np.zeros(labels.shape, np.int16), np.eye(4), ""), Mask([labels], {"liver": 1}), 10
    )
    assert isinstance(one, Structure) and len(one.points) == 3000
    assert one.center == pytest.approx([19.5, 24.5, 29.5], abs=0.5)
    assert one.volume_ml == pytest.approx(120.0) and one.is_cut


def test_crops_are_seven_of_the_middle_slices(patient):
    evidence = evidence_of(*patient)
    grid = evidence.grid()
    liver = evidence.structures[0]
    crops = liver.crops(evidence.volume.hu, grid, 5.0)
    indices = [index for index, _ in crops]
    side = liver.box[2]
    assert len(crops) == 7 and indices == sorted(indices)
    assert side.start + 0.2 * (side.stop - side.start) <= indices[0]
    assert indices[-1] < side.stop - 0.2 * (side.stop - side.start)


# Evidence.


@pytest.mark.parametrize(
    ("state", "weight"),
    [({}, 1.0), ({"is_cut": True}, 0.75), ({"is_small": True}, 0.25)],
)
def test_cut_and_small_structures_count_less(patient, state, weight):
    evidence = evidence_of(*patient)
    view = evidence.view()
    liver = dataclasses.replace(view.structures[0], is_cut=False, is_small=False, volume_ml=1000.0)
    view = dataclasses.replace(
        view, structures=(dataclasses.replace(liver, **state), *view.structures[1:])
    )
    labels = [one.name for one in evidence.structures]
    for probability, counted in ((0.5, 0.5), (0.0, 0.005)):
        view.probabilities[0, CLASSES.index("liver")] = probability
        scores = evidence.organ_scores(view, labels)
        assert scores[0] == pytest.approx(weight * math.log(counted))


def test_a_structure_that_is_gone_has_no_answer_and_the_largest_spread(patient):
    evidence = evidence_of(*patient)
    away = evidence.view(move=Move(shift=(59, 0, 0)))
    assert away.structures == (None,) * 5
    assert (away.probabilities == 1 / 11).all()
    # the variance of as many -1000 as 400 HU
    assert away.spread == pytest.approx(5 * math.log(700.0**2))
    labels = [one.name for one in evidence.structures]
    assert evidence.organ_scores(away, labels) == pytest.approx([math.log(0.005)] * 5)


def test_the_spread_is_that_of_the_homogeneous_organs(patient):
    volume, labels, codes = patient
    hu = volume.hu.copy()
    hu[labels == codes["liver"]] = np.resize([40, 80], (labels == codes["liver"]).sum())
    evidence = evidence_of(dataclasses.replace(volume, hu=hu), labels, codes)
    variance = np.clip(evidence.structures[0].hounsfield(hu), -1000, 400).var()
    assert 300 < variance < 500
    # the femur does not count, and the others are constant
    expected = math.log(variance + 15.0**2) + 3 * math.log(15.0**2)
    assert evidence.view().spread == pytest.approx(expected)


# Anatomy.


def test_densities_outside_their_range_count_little_by_little():
    assert anatomy.density_score("lung-left", -800) == 0
    assert anatomy.density_score("lung-left", -325) == pytest.approx(-1)
    assert anatomy.density_score("spleen", -800) == -4
    assert anatomy.density_score("brain", -800) == 0


def test_a_part_of_an_organ_may_be_small_but_not_large():
    assert anatomy.size_score("liver", 150, is_whole=True) == pytest.approx(-2)
    assert anatomy.size_score("liver", 150, is_whole=False) == 0
    assert anatomy.size_score("pancreas", 1000, is_whole=False) == -4


def test_the_order_of_organs_speaks_against_a_mirrored_body():
    names = ("liver", "spleen", "kidney-left", "kidney-right")
    centers = np.array([[-70, -180, 390], [110, -120, 390], [80, -125, 350], [-70, -130, 345]])
    right = anatomy.order_score(names, centers.astype(float))
    wrong = anatomy.order_score(names, centers * [-1.0, 1.0, 1.0])
    assert -0.5 < right < 0 and wrong < right - 10


def test_every_packaged_class_has_a_row():
    assert {name for pair in anatomy.SIDE_PAIRS for name in pair} <= set(anatomy.ORGANS)
    assert set(anatomy.ORGANS) == set(CLASSES)


def test_axes_are_described():
    described = set()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            axes = np.zeros((3, 3), np.int64)
            axes[np.arange(3), order] = signs
            if (axes != IDENTITY).any():
                described.add(axes_message(axes))
    assert len(described) == 47
    assert {"left-right flipped", "turned by 90 degrees clockwise"} <= described


# The result of a scan.


@pytest.fixture
def classifier(patient):
    """What `audit_scan` uses of a classifier."""
    spec = types.SimpleNamespace(orientation=("L", "P"), window=(40, 400))

    def predict_volume(volume, mask, *, margin_mm):
        view = state_of(evidence_of(volume, *patient[1:])).view
        return [
            types.SimpleNamespace(
                expected=name,
                structures=(name,),
                label=name,
                probability=0.9,
                probabilities=tuple(row),
                agrees=True,
                slices=(1, 2, 3),
                warnings=(),
            )
            for name, row in zip(mask, view.probabilities, strict=True)
        ]

    return types.SimpleNamespace(
        manifest=types.SimpleNamespace(input=spec),
        classes=CLASSES,
        predict_volume=predict_volume,
        _slice_answers=by_density,
    )


def test_findings_have_pictures_and_numbers(patient, classifier):
    volume, labels, codes = patient
    swapped = {**codes, "liver": codes["femur-left"], "femur-left": codes["liver"]}
    mask = Mask([np.asfortranarray(labels)], swapped, source="mask.nii.gz", unmapped=("aorta",))
    audit = scan.audit_scan(classifier, volume, mask)
    (finding,) = audit.findings
    assert (audit.scan, audit.mask, audit.unmapped) == ("scan.nii.gz", "mask.nii.gz", ("aorta",))
    assert finding.organs == ("liver", "femur-left") and len(finding.pictures) == 2
    assert finding.numbers["organs that agree"] == "3 -> 5"
    liver = finding.pictures[0]
    assert (liver.organ, liver.label) == ("liver", "femur-left")
    assert liver.pixels.dtype == np.uint8 and liver.pixels.max() == 255
    assert audit.organs[0].median_hu == 700


def test_a_mask_of_other_numbers_is_one_finding(patient, classifier):
    volume, labels, codes = patient
    cycle = dict(zip(NAMES, (codes[name] for name in (*NAMES[1:], NAMES[0])), strict=True))
    wrong, right = (Mask([np.asfortranarray(labels)], which) for which in (cycle, codes))
    audit = scan.audit_scan(
        classifier, volume, wrong, other_masks=lambda: {"amos22": right, "word": wrong}
    )
    ((kind, message),) = [(finding.kind, finding.message) for finding in audit.findings]
    assert (kind, message) == (
        "label map",
        "the numbers of the mask fit the label map amos22, not the one that was used",
    )


def test_a_label_map_must_fit_better_than_what_was_found(patient, classifier):
    volume, labels, codes = patient
    cycle = dict(zip(NAMES, (codes[name] for name in (*NAMES[1:], NAMES[0])), strict=True))
    wrong, right = (Mask([np.asfortranarray(labels)], which) for which in (cycle, codes))
    (finding,) = scan.audit_scan(
        classifier, volume, wrong, other_masks=lambda: {"amos22": right}
    ).findings
    before, after = (state_of(evidence_of(volume, labels, which)).score for which in (cycle, codes))
    # both have five organs, so that guessing is as likely
    assert finding.evidence == pytest.approx(after - before - 2.0)
    assert finding.numbers["organs that agree"] == "0 of 5 -> 5 of 5"
    chance = 5 * math.log(11)
    assert (
        finding.numbers["log likelihood against chance"]
        == f"{before + chance:.1f} -> {after + chance:.1f}"
    )
    for masks in ({}, {"word": wrong}):
        (kept,) = scan.audit_scan(
            classifier, volume, wrong, other_masks=lambda masks=masks: masks
        ).findings
        assert kept.kind == "labels swapped"


def test_other_label_maps_are_not_read_without_doubt(patient, classifier):
    volume, labels, codes = patient
    mask = Mask([np.asfortranarray(labels)], codes)
    asked = []
    audit = scan.audit_scan(classifier, volume, mask, other_masks=lambda: asked.append(1) or {})
    assert audit.findings == () and asked == []


@pytest.mark.parametrize(("different", "is_found"), [(1, False), (2, False), (3, True), (5, True)])
def test_many_different_structures_are_a_finding_even_if_nothing_explains_them(
    patient, different, is_found
):
    evidence = evidence_of(*patient)
    state = state_of(evidence)
    for i in range(different):
        column = CLASSES.index(state.labels[i])
        state.view.probabilities[i] = 0.9 / 10
        state.view.probabilities[i, column] = 0.09
    whole = tuple(
        dataclasses.replace(one, is_cut=False, is_small=False) for one in state.view.structures
    )
    state = dataclasses.replace(state, view=dataclasses.replace(state.view, structures=whole))
    findings = scan._unexplained(evidence, state)
    assert bool(findings) == is_found
    if is_found:
        assert findings[0].organs == NAMES[:different] and findings[0].evidence >= 3
        assert findings[0].message.startswith(f"{different} of 5 whole structures look different")


def test_a_mask_that_nothing_explains_is_a_finding(patient, classifier):
    volume, _, codes = patient
    # Boxes of air and fat, in the order of the organs.
    labels = np.zeros(SHAPE, np.uint8)
    for code, (x, y, z) in zip(
        codes.values(),
        [(8, 8, 40), (46, 40, 40), (8, 40, 30), (46, 30, 30), (46, 20, 6)],
        strict=True,
    ):
        labels[x : x + 6, y : y + 6, z : z + 8] = code
    audit = scan.audit_scan(classifier, volume, Mask([np.asfortranarray(labels)], codes))
    assert audit.findings and audit.findings[0].evidence >= 3


def test_a_label_map_that_fits_worse_than_chance_is_no_finding(patient, classifier):
    volume, _, codes = patient
    noise = np.random.default_rng(0).integers(0, 6, SHAPE, np.uint8)
    wrong = Mask([np.asfortranarray(noise)], codes)
    # One wrong organ is less wrong than five.
    fewer = Mask([np.asfortranarray(noise)], {"bladder": 1})
    audit = scan.audit_scan(classifier, volume, wrong, other_masks=lambda: {"lits": fewer})
    # The best of many poor explanations is none either.
    ((kind, message),) = [(finding.kind, finding.message) for finding in audit.findings]
    assert kind == "unexplained" and "fits the scan worse than random labels" in message
    assert set(audit.findings[0].organs) == {*NAMES} and audit.findings[0].evidence > 3
