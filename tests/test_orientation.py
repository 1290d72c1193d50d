"""Orientation against the patient's coordinates: wherever a pixel was in the patient, there it is afterwards."""

from itertools import product
from string import ascii_uppercase

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organ_infer import InputError
from organ_infer.images.orientation import can_reorient, parse_orientation, plane_of, reorient

# DICOM PS3.3 C.7.6.2.1.1: x grows to the patient's left, y to the back, z to the head. Letter -> (axis, sign).
TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "H": "F", "F": "H"}
PLANES = {"axial": {0, 1}, "coronal": {0, 2}, "sagittal": {1, 2}}
ALL = [pair for pair in product(TOWARDS, repeat=2) if TOWARDS[pair[0]][0] != TOWARDS[pair[1]][0]]


def same_plane(one, other):
    return {TOWARDS[letter][0] for letter in one} == {TOWARDS[letter][0] for letter in other}


PAIRS = [(one, other) for one in ALL for other in ALL if same_plane(one, other)]
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5))


def in_patient(pixels, orientation):
    """{(x, y, z) from the middle of the slice: value}"""
    found = {}
    for (row, column), value in np.ndenumerate(pixels):
        place = [0.0, 0.0, 0.0]
        for letter, at, count in zip(orientation, (row, column), pixels.shape, strict=True):
            axis, sign = TOWARDS[letter]
            place[axis] = sign * (at - (count - 1) / 2)
        found[tuple(place)] = int(value)
    return found


def numbered(shape):
    return np.arange(np.prod(shape)).reshape(shape)


def test_there_are_24_orientations_in_three_planes():
    assert len(ALL) == 24 and len(PAIRS) == 3 * 8 * 8


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PAIRS), shapes)
def test_every_pixel_stays_where_it_was_in_the_patient(pair, shape):
    stored, wanted = pair
    pixels = numbered(shape)
    assert in_patient(reorient(pixels, stored, wanted), wanted) == in_patient(pixels, stored)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PAIRS), shapes)
def test_flips_and_transposes_commute_with_orientation(pair, shape):
    (rows, columns), wanted = pair
    pixels = numbered(shape)
    expected = reorient(pixels, (rows, columns), wanted)
    for changed, orientation in (
        (pixels[::-1], (OPPOSITE[rows], columns)),
        (pixels[:, ::-1], (rows, OPPOSITE[columns])),
        (pixels.T, (columns, rows)),
        (pixels[::-1].T, (columns, OPPOSITE[rows])),
    ):
        np.testing.assert_array_equal(reorient(changed, orientation, wanted), expected)
    np.testing.assert_array_equal(reorient(pixels, (rows, columns), wanted[::-1]), expected.T)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PAIRS), st.data(), shapes)
def test_reorienting_twice_is_reorienting_once(pair, data, shape):
    first, second = pair
    third = data.draw(st.sampled_from([other for other in ALL if same_plane(other, first)]))
    pixels = numbered(shape)
    np.testing.assert_array_equal(
        reorient(reorient(pixels, first, second), second, third), reorient(pixels, first, third)
    )
    np.testing.assert_array_equal(reorient(reorient(pixels, first, second), second, first), pixels)


def test_a_stack_is_reoriented_slice_by_slice_and_nothing_is_copied():
    stack = numbered((2, 3, 4, 5))
    for stored, wanted in PAIRS:
        reoriented = reorient(stack, stored, wanted)
        assert np.shares_memory(reoriented, stack)
        for i, j in np.ndindex(2, 3):
            np.testing.assert_array_equal(reoriented[i, j], reorient(stack[i, j], stored, wanted))


def test_only_slices_of_one_plane_can_be_reoriented_to_each_other():
    for one, other in product(ALL, repeat=2):
        assert can_reorient(one, other) is ((one, other) in PAIRS)
        assert (plane_of(one) == plane_of(other)) == ((one, other) in PAIRS)
    for orientation in ALL:
        assert PLANES[plane_of(orientation)] == {TOWARDS[letter][0] for letter in orientation}


def test_24_pairs_of_letters_are_read_and_all_others_are_refused():
    for letters in product(ascii_uppercase, repeat=2):
        text = "".join(letters)
        if letters in ALL:
            for value in (text, text.lower(), list(letters), letters):
                assert parse_orientation(value) == letters
        else:
            with pytest.raises(
                InputError,
                match=f"expected two letters .* row then column index .*, found '{text}'",
            ):
                parse_orientation(text)


@pytest.mark.parametrize(
    "value", ["", "L", "LPH", ("L",), ("L", 3), (3, "P"), ["L", "PA"], 7, None, b"LP"]
)
def test_what_is_no_pair_of_letters_is_refused(value):
    with pytest.raises(
        InputError, match="orientation: expected two letters of L R A P H F at right angles"
    ):
        parse_orientation(value)
