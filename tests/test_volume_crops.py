"""Crops around organs: boxes, margins, slices and orientations, against answers computed by hand."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from support.dict_mask import DictMask, block

from organ_infer import InputError
from organ_infer.volumes.crops import MIN_VOXELS, Crop, organ_crops
from organ_infer.volumes.types import Volume

SHAPE = (20, 16, 12)
# The HU of voxel (x, y, z) is x + 20 y + 400 z.
HU = (np.arange(20)[:, None, None] + 20 * np.arange(16)[:, None] + 400 * np.arange(12)).astype(
    np.int16
)


def affine(diagonal, origin=(0, 0, 0)):
    matrix = np.diag([*map(float, diagonal), 1.0])
    matrix[:3, 3] = origin
    return matrix


def crops(volume, *sides, orientation="LP", margin_mm=0, slices="all", name="liver"):
    mask = DictMask({name: block(volume.hu.shape, *sides)})
    return organ_crops(volume, mask, orientation=orientation, margin_mm=margin_mm, slices=slices)


# Orientation.


def test_an_axial_crop_of_an_lps_volume_is_the_box_as_stored():
    volume = Volume(HU, affine((1, 1, 2), (-10, -20, 30)), "scan")
    (crop,) = crops(volume, (3, 5), (4, 7), (6, 7))
    assert crop.pixels.tolist() == [
        [3 + 80 + 2400, 3 + 100 + 2400, 3 + 120 + 2400],
        [4 + 80 + 2400, 4 + 100 + 2400, 4 + 120 + 2400],
    ]
    assert (crop.name, crop.view, crop.index) == ("liver", "axial", 6)
    # 30 mm + 6 slices of 2 mm
    assert crop.position == 42.0
    assert crop.field == (2.0, 3.0)


def test_the_field_is_height_and_width_in_millimeters():
    volume = Volume(HU, affine((0.5, 2, 1)), "scan")
    # Rows run along x (3 voxels of 0.5 mm), columns along y (2 of 2 mm).
    (crop,) = crops(volume, (3, 6), (4, 6), (6, 7))
    assert crop.field == (1.5, 4.0)
    (crop,) = crops(volume, (3, 6), (4, 6), (6, 7), orientation="PL")
    assert crop.field == (4.0, 1.5)


def test_the_position_of_an_oblique_slice_is_that_of_the_crop_s_center():
    matrix = np.eye(4)
    # Each step along x is 0.25 mm toward the head. The lengths do not matter here.
    matrix[2, 0], matrix[2, 3] = 0.25, 100
    (crop,) = crops(Volume(HU, matrix, "scan"), (3, 6), (4, 6), (6, 7))
    # The center of voxels 3, 4 and 5 is 4.
    assert crop.position == pytest.approx(100 + 4 * 0.25 + 6)


def test_an_affine_of_other_numbers_than_float64_is_accepted():
    matrix = [[2, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 7], [0, 0, 0, 1]]
    (crop,) = crops(Volume(HU, matrix, "scan"), (3, 6), (4, 6), (6, 7))
    assert crop.position == 7 + 6 * 3


@pytest.mark.parametrize(
    ("diagonal", "orientation", "expected"),
    [
        # x grows to the left and y to the back, as LP does.
        ((1, 1, 1), "LP", [[83, 103], [84, 104]]),
        # NIfTI's RAS+: x grows to the right and y to the front, so both are reversed.
        ((-1, -1, 1), "LP", [[104, 84], [103, 83]]),
        ((-1, 1, 1), "LP", [[84, 104], [83, 103]]),
        ((1, -1, 1), "LP", [[103, 83], [104, 84]]),
        # The usual display has rows to the back: the transpose.
        ((1, 1, 1), "PL", [[83, 84], [103, 104]]),
        ((1, 1, 1), "RA", [[104, 84], [103, 83]]),
        ((1, 1, 1), "AR", [[104, 103], [84, 83]]),
    ],
)
def test_rows_and_columns_grow_in_the_directions_of_the_orientation(
    diagonal, orientation, expected
):
    volume = Volume(HU, affine(diagonal), "scan")
    (crop,) = crops(volume, (3, 5), (4, 6), (0, 1), orientation=orientation)
    assert crop.pixels.tolist() == expected


@pytest.mark.parametrize(
    ("orientation", "view", "expected"),
    [
        # The box is x 3 to 4, y 4 to 5, z 1 to 2. Coronal slices follow each other along y, sagittal ones along x.
        (
            "HL",
            "coronal",
            [(4, [[483, 484], [883, 884]]), (5, [[503, 504], [903, 904]])],
        ),
        (
            "FL",
            "coronal",
            [(4, [[883, 884], [483, 484]]), (5, [[903, 904], [503, 504]])],
        ),
        (
            "FP",
            "sagittal",
            [(3, [[883, 903], [483, 503]]), (4, [[884, 904], [484, 504]])],
        ),
    ],
)
def test_the_orientation_determines_the_view(orientation, view, expected):
    volume = Volume(HU, affine((1, 1, 1)), "scan")
    found = crops(volume, (3, 5), (4, 6), (1, 3), orientation=orientation)
    assert [(crop.index, crop.pixels.tolist()) for crop in found] == expected
    assert {crop.view for crop in found} == {view}
    assert [crop.position for crop in found] == [index for index, _ in expected]


def stored_in_every_way():
    """The same scan in all 48 orders and directions of its axes."""
    for axes in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            yield axes, flips


def stored(array, axes, flips):
    return array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def stored_affine(matrix, shape, axes, flips):
    result = matrix.copy()
    for new, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        step = matrix[:3, axis]
        result[:3, new] = -step if flip else step
        if flip:
            result[:3, 3] += step * (shape[axis] - 1)
    return result


@pytest.mark.parametrize("orientation", ["LP", "HL", "FP"])
def test_every_way_to_store_a_scan_gives_equal_crops(orientation):
    matrix = affine((0.8, 0.9, 2.5), (-100.5, -70.25, 12))
    organ = block(SHAPE, (3, 9), (4, 11), (2, 9))
    organ[3, 4, 2] = False
    options = {"orientation": orientation, "margin_mm": 2.0}
    expected = organ_crops(Volume(HU, matrix, "scan"), DictMask({"liver": organ}), **options)
    assert len(expected) > 2 and len({crop.pixels.shape for crop in expected}) == 1
    ways = list(stored_in_every_way())
    assert len(ways) == 48
    for axes, flips in ways:
        volume = Volume(stored(HU, axes, flips), stored_affine(matrix, SHAPE, axes, flips), "scan")
        found = organ_crops(volume, DictMask({"liver": stored(organ, axes, flips)}), **options)
        assert len(found) == len(expected), (axes, flips)
        for crop, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(crop.pixels, wanted.pixels)
            assert crop.position == pytest.approx(wanted.position, abs=1e-9)
            assert crop.field == pytest.approx(wanted.field, abs=1e-9)


def test_the_index_counts_slices_as_stored_and_the_crops_go_from_the_feet_to_the_head():
    # The first stored slice is the one next to the head.
    volume = Volume(HU, affine((1, 1, -3), (0, 0, 100)), "scan")
    found = crops(volume, (3, 5), (4, 6), (2, 5))
    assert [crop.index for crop in found] == [4, 3, 2]
    assert [crop.position for crop in found] == [88.0, 91.0, 94.0]


def rotated(degrees, axis=2):
    angle = math.radians(degrees)
    turn = np.eye(4)
    first, second = (i for i in range(3) if i != axis)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    return turn


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [-24.9, 5, 24.9, 90 + 24.9, 180 - 24.9])
def test_up_to_25_degrees_the_nearest_axes_are_taken(axis, degrees):
    quarter_turns = round(degrees / 90)
    straight = rotated(90 * quarter_turns, axis)
    sides = (3, 5), (4, 6), (1, 3)
    expected = crops(Volume(HU, straight, "scan"), *sides)
    found = crops(Volume(HU, rotated(degrees, axis), "scan"), *sides)
    assert [crop.pixels.tolist() for crop in found] == [crop.pixels.tolist() for crop in expected]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [25.1, 45, -60, 90 + 30])
def test_a_volume_more_than_25_degrees_off_is_refused(axis, degrees):
    off = abs(degrees - 90 * round(degrees / 90))
    with pytest.raises(InputError, match=rf"^scan: oblique volume, .* {off:.0f} degrees off"):
        crops(Volume(HU, rotated(degrees, axis), "scan"), (3, 5), (4, 6), (1, 3))


def test_a_sheared_volume_is_measured_by_its_worst_axis():
    matrix = np.eye(4)
    # Gantry tilt: the slices are shifted toward the back.
    matrix[1, 2] = math.tan(math.radians(24))
    assert len(crops(Volume(HU, matrix, "scan"), (3, 5), (4, 6), (1, 3))) == 2
    matrix[1, 2] = math.tan(math.radians(27))
    with pytest.raises(InputError, match="27 degrees off"):
        crops(Volume(HU, matrix, "scan"), (3, 5), (4, 6), (1, 3))


# Box and margin.


@pytest.mark.parametrize(
    ("spacing", "margin", "expected"),
    [
        # The box has 4 x 3 voxels. 5 mm are 5 voxels of 1 mm, 2 of 2.5 mm, 2 of 3 mm (1.67) and 1 of 4 mm (1.25).
        ((1, 1), 0, (4, 3)),
        ((1, 1), 5, (4 + 10, 3 + 10)),
        ((2.5, 1), 5, (4 + 4, 3 + 10)),
        ((3, 4), 5, (4 + 4, 3 + 2)),
        # Halves are rounded up, whatever the last bits of the affine are.
        ((2, 2), 5, (4 + 6, 3 + 6)),
        ((2 + 1e-12, 2 - 1e-12), 5, (4 + 6, 3 + 6)),
        ((1, 1), 0.4, (4, 3)),
        # The border of the volume ends the box: 20 x 16 voxels.
        ((1, 1), 1000, (20, 16)),
    ],
)
def test_the_margin_is_in_millimeters_on_every_side(spacing, margin, expected):
    volume = Volume(HU, affine((*spacing, 1)), "scan")
    (crop,) = crops(volume, (8, 12), (6, 9), (5, 6), margin_mm=margin)
    assert crop.pixels.shape == expected
    # It is symmetric.
    rows, columns = ((n - box) // 2 for n, box in zip(expected, (4, 3), strict=True))
    if margin < 1000:
        assert crop.pixels[rows, columns] == HU[8, 6, 5]


def test_the_margin_ends_at_the_border_of_each_side():
    volume = Volume(HU, affine((1, 1, 1)), "scan")
    (crop,) = crops(volume, (1, 3), (12, 15), (5, 6), margin_mm=3)
    assert crop.pixels.tolist() == HU[0:6, 9:16, 5].tolist()


def test_the_box_is_that_of_all_slices_and_pixels_outside_the_organ_are_kept():
    organ = block(SHAPE, (5, 6), (5, 6), (3, 4)) | block(SHAPE, (8, 10), (7, 8), (4, 5))
    found = organ_crops(
        Volume(HU, affine((1, 1, 1)), "scan"),
        DictMask({"liver": organ}),
        orientation="LP",
        margin_mm=0,
        slices="all",
    )
    assert [crop.pixels.tolist() for crop in found] == [
        HU[5:10, 5:8, 3].tolist(),
        HU[5:10, 5:8, 4].tolist(),
    ]


# Slices.


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [
        (1, 0, 0),
        (2, 0, 1),
        (3, 1, 1),
        (4, 1, 2),
        (5, 1, 3),
        (6, 1, 4),
        (7, 1, 5),
        (8, 2, 5),
        (9, 2, 6),
        (10, 2, 7),
        (12, 2, 9),
    ],
)
def test_the_middle_are_the_slices_whose_centers_are_between_a_fifth_and_four_fifths(
    count, first, last
):
    volume = Volume(HU, affine((1, 1, 1)), "scan")
    found = crops(volume, (3, 5), (4, 6), (0, count), slices="middle")
    assert [crop.index for crop in found] == list(range(first, last + 1))
    assert len(crops(volume, (3, 5), (4, 6), (0, count), slices="all")) == count


def test_slices_without_the_organ_are_skipped():
    organ = block(SHAPE, (3, 5), (4, 6), (1, 4)) | block(SHAPE, (3, 5), (4, 6), (9, 11))
    options = {"orientation": "LP", "margin_mm": 0}
    volume, mask = Volume(HU, affine((1, 1, 1)), "scan"), DictMask({"liver": organ})
    every = organ_crops(volume, mask, slices="all", **options)
    assert [crop.index for crop in every] == [1, 2, 3, 9, 10]
    middle = organ_crops(volume, mask, slices="middle", **options)
    assert [crop.index for crop in middle] == [2, 3, 9]
    # Stored from the head to the feet.
    flipped = organ_crops(Volume(HU, affine((1, 1, -1)), "scan"), mask, slices="all", **options)
    assert [crop.index for crop in flipped] == [10, 9, 3, 2, 1]
    assert all(crop.pixels[0, 0] == HU[3, 4, crop.index] for crop in flipped)


def test_organs_follow_each_other_in_the_order_of_the_mask_and_empty_ones_are_skipped():
    mask = DictMask(
        {
            "spleen": block(SHAPE, (1, 3), (1, 3), (1, 3)),
            "heart": np.zeros(SHAPE, bool),
            "bladder": block(SHAPE, (2, 5), (2, 5), (4, 5)),
        }
    )
    found = organ_crops(Volume(HU, affine((1, 1, 1)), "scan"), mask, orientation="LP", slices="all")
    assert [crop.name for crop in found] == ["spleen", "spleen", "bladder"]


# Views of the volume.


def test_crops_are_views_of_the_volume_whatever_its_strides():
    for hu in (HU, np.asfortranarray(HU), np.repeat(HU, 2, axis=0)[::-2]):
        found = crops(Volume(hu, affine((-1, -1, 1)), "scan"), (3, 9), (4, 9), (1, 8), margin_mm=1)
        assert len(found) == 7
        assert all(np.shares_memory(crop.pixels, hu) for crop in found)


# What is marked.


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_structure_that_touches_the_border_is_marked(axis, end):
    volume = Volume(HU, affine((1, 1, 1)), "scan")
    sides = [(5, 11), (5, 11), (3, 9)]
    (inside,) = {crop.warnings for crop in crops(volume, *sides)}
    assert inside == ()
    n = SHAPE[axis]
    sides[axis] = (0, 6) if end == "first" else (n - 6, n)
    (warnings,) = {crop.warnings for crop in crops(volume, *sides)}
    assert len(warnings) == 1 and "touches the border of the volume" in warnings[0]
    # One voxel away from the border it is not, and the margin does not count.
    sides[axis] = (1, 7) if end == "first" else (n - 7, n - 1)
    (warnings,) = {crop.warnings for crop in crops(volume, *sides, margin_mm=50)}
    assert warnings == ()


def test_a_structure_of_few_voxels_is_marked():
    volume = Volume(HU, affine((1, 1, 1)), "scan")
    assert MIN_VOXELS == 100
    (enough,) = crops(volume, (2, 12), (2, 12), (5, 6))
    assert enough.warnings == ()
    (few,) = crops(volume, (2, 11), (2, 13), (5, 6))
    assert few.warnings == ("the structure has only 99 voxels; likely a fragment, check the mask",)
    (one,) = crops(volume, (2, 3), (2, 3), (5, 6))
    assert one.warnings == ("the structure has only 1 voxel; likely a fragment, check the mask",)


# Refused arguments.


def good():
    return {
        "volume": Volume(HU, affine((1, 1, 1)), "scan"),
        "mask": DictMask({"liver": block(SHAPE, (3, 5), (4, 6), (1, 3))}),
        "orientation": "LP",
        "margin_mm": 5.0,
        "slices": "middle",
    }


def crops_of(volume, mask, **options):
    return organ_crops(volume, mask, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"volume": HU}, "volume: expected a Volume, found ndarray; open it with open_volume"),
        ({"mask": {"liver": HU > 0}}, "mask: expected a Mask, found dict; open it with open_mask"),
        ({"volume": Volume(HU.astype("f4"), np.eye(4), "s")}, r"s: .*found float32 \(20, 16, 12\)"),
        ({"volume": Volume(HU.astype(">i2"), np.eye(4), "s")}, "s: .*found >i2"),
        ({"volume": Volume(HU[0], np.eye(4), "s")}, r"s: .*found int16 \(16, 12\)"),
        ({"volume": Volume(HU.tolist(), np.eye(4), "s")}, "s: .*found list"),
        ({"volume": Volume(HU[:0], np.eye(4), "s")}, "s: expected 1 to 65,535 voxels per side"),
        ({"volume": Volume(HU, np.eye(3), "s")}, r"s: expected a finite affine \(4, 4\)"),
        ({"volume": Volume(HU, "none", "s")}, r"s: expected a finite affine .* found str"),
        ({"volume": Volume(HU, [[1], [2, 3]], "s")}, r"s: expected a finite affine .* found list"),
        ({"volume": Volume(HU, np.eye(4) * np.nan, "s")}, r"s: expected a finite affine \(4, 4\)"),
        ({"volume": Volume(HU, affine((1, 0, 1)), "s")}, "s: an axis of the affine has no length"),
        ({"orientation": "LL"}, "orientation: expected two letters"),
        ({"orientation": None}, "orientation: expected two letters"),
        ({"margin_mm": -1}, "margin_mm: expected a number from 0 to 1,000, found -1"),
        ({"margin_mm": math.nan}, "margin_mm: .*found nan"),
        ({"margin_mm": 1001}, "margin_mm: .*found 1001"),
        ({"margin_mm": "5"}, "margin_mm: .*found '5'"),
        ({"margin_mm": True}, "margin_mm: .*found True"),
        ({"slices": "most"}, "slices: expected 'middle' or 'all', found 'most'"),
        ({"slices": None}, "slices: expected 'middle' or 'all', found None"),
    ],
)
def test_arguments_of_another_kind_are_refused(change, words):
    assert crops_of(**good())
    with pytest.raises(InputError, match=f"^{words}"):
        crops_of(**good() | change)


def test_the_longest_axis_has_65535_voxels():
    for count in (65_535, 65_536):
        volume = Volume(np.zeros((count, 1, 1), np.int16), np.eye(4), "long")
        mask = DictMask({"liver": block(volume.hu.shape, (0, 4), (0, 1), (0, 1))})
        if count == 65_535:
            assert crops_of(**good() | {"volume": volume, "mask": mask})
        else:
            with pytest.raises(InputError, match="65,535 voxels per side"):
                crops_of(**good() | {"volume": volume, "mask": mask})


@pytest.mark.parametrize(
    "organ",
    [
        block((30, 16, 12), (3, 25), (4, 6), (1, 3)),
        block((10, 16, 40), (3, 5), (4, 6), (1, 30)),
        block(SHAPE, (3, 5), (4, 6), (1, 3)).astype(np.uint8),
    ],
)
def test_a_mask_that_does_not_fit_the_volume_is_refused(organ):
    with pytest.raises(InputError, match=r"^mask.nii.gz: 'liver' does not fit the volume"):
        crops_of(**good() | {"mask": DictMask({"liver": organ})})


def test_the_defaults_are_a_margin_of_5_mm_and_the_middle_slices():
    volume, mask = good()["volume"], DictMask({"liver": block(SHAPE, (8, 10), (7, 9), (0, 12))})
    shown = [
        (crop.index, crop.pixels.tolist()) for crop in organ_crops(volume, mask, orientation="LP")
    ]
    given = organ_crops(volume, mask, orientation="LP", margin_mm=5, slices="middle")
    assert shown == [(crop.index, crop.pixels.tolist()) for crop in given]
    assert all(isinstance(crop, Crop) for crop in given) and given[0].pixels.shape == (12, 12)
