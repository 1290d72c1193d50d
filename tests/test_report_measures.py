"""What the report works out itself: per class, over sides, intervals, mistakes, reliability, sample slices."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom
from sklearn.metrics import precision_recall_fscore_support

from train import metrics
from train.report import measures, pictures

few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in steps of a twentieth, so that some are equal and some lie on the edges of bins; labels."""
    count, classes = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parts = generator.multinomial(20, generator.dirichlet(np.ones(classes)), count)
    return parts / 20, generator.integers(0, classes, count)


def test_precision_is_of_the_column_and_recall_of_the_row():
    first, second, third = measures.per_class(np.array([[6, 2, 0], [1, 3, 0], [5, 0, 3]]))
    assert first == {"precision": 6 / 12, "recall": 6 / 8, "f1": 0.6, "support": 8}
    assert second == {"precision": 3 / 5, "recall": 3 / 4, "f1": pytest.approx(2 / 3), "support": 4}
    assert third == {"precision": 1.0, "recall": 3 / 8, "f1": pytest.approx(6 / 11), "support": 8}


def test_a_class_that_is_never_right_scores_0_and_one_never_said_has_no_precision():
    never_right, other = measures.per_class(np.array([[0, 4], [2, 1]]))
    assert never_right == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 4}
    never_said = measures.per_class(np.array([[0, 4], [0, 1]]))[0]
    assert never_said == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 4}
    never_seen = measures.per_class(np.array([[0, 0], [2, 1]]))[0]
    assert never_seen == {"precision": 0.0, "recall": None, "f1": 0.0, "support": 0}
    assert other["precision"] == 1 / 5


@few
@given(answers())
def test_per_class_figures_are_scikit_learns(given):
    probabilities, labels = given
    predicted, classes = probabilities.argmax(1), range(probabilities.shape[1])
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, predicted), 1)
    found = measures.per_class(confusion)
    expected = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    for key, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        for row, value in zip(found, values, strict=True):
            assert row[key] is None if np.isnan(value) else row[key] == pytest.approx(value)


@pytest.mark.parametrize(
    ("label", "organ"),
    [
        ("kidney-left", "kidney"),
        ("kidney-right", "kidney"),
        ("liver", "liver"),
        ("left", "left"),
        ("left-lung", "left-lung"),
        ("upright", "upright"),
    ],
)
def test_the_organ_of_a_class_is_its_name_without_the_side(label, organ):
    assert metrics.organ_of(label) == organ


def test_merging_sides_needs_a_name_for_each_class():
    confusion = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    assert metrics.side_merged_accuracy(confusion, ("a-left", "a-right", "b")) == 4 / 5
    assert metrics.side_merged_accuracy(confusion, ("a-left", "a-right")) is None
    assert metrics.side_merged_accuracy(np.diag([1, 0]), ("a", "b")) == 1.0


@pytest.mark.parametrize(("right", "wrong"), [(80, 20), (3, 97), (900, 100), (1, 0)])
def test_the_interval_is_that_of_as_many_slices_drawn_anew(right, wrong):
    confusion = np.array([[right // 2, wrong // 3], [wrong - wrong // 3, right - right // 2]])
    total = right + wrong
    low, high = measures.accuracy_interval(confusion)
    expected = binom.ppf([0.025, 0.975], total, right / total) / total
    assert (low, high) == pytest.approx(expected, abs=1.01 / total)
    assert measures.accuracy_interval(confusion) == (low, high)
    assert measures.accuracy_interval(None) is None


@few
@given(answers(), st.integers(0, 12))
def test_the_surest_mistakes_are_the_wrong_slices_of_highest_probability(given, count):
    probabilities, labels = given
    wrong = [
        (-float(row.max()), i, int(label), int(row.argmax()))
        for i, (row, label) in enumerate(zip(probabilities, labels, strict=True))
        if row.argmax() != label
    ]
    expected = [(i, true, said, -top) for top, i, true, said in sorted(wrong)[:count]]
    found = measures.confident_mistakes(probabilities, labels[:, None], count)
    assert [(m.index, m.true, m.predicted, m.probability) for m in found] == expected


def test_no_probabilities_hold_no_mistakes():
    assert measures.confident_mistakes(np.empty((0, 3)), np.array([1, 2]), 4) == []


@few
@given(answers())
def test_reliability_is_counted_bin_by_bin(given):
    probabilities, labels = given
    points = measures.reliability(probabilities, np.concatenate([labels, labels])[:, None])
    expected = []
    for high in range(1, 16):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            # in twentieths: a probability on an edge counts to the bin below
            if (high - 1) * 20 < round(row.max() * 20) * 15 <= high * 20
        ]
        if inside:
            expected.append((*np.mean(inside, axis=0), len(inside)))
    found = list(zip(points.confidence, points.accuracy, points.counts, strict=True))
    assert len(found) == len(expected)
    for values, others in zip(found, expected, strict=True):
        assert values == pytest.approx(others)


def test_a_probability_of_nothing_counts_to_the_first_bin():
    points = measures.reliability(np.zeros((2, 2)), np.array([0, 1]))
    assert (points.counts.tolist(), points.accuracy.tolist(), points.confidence.tolist()) == (
        [2],
        [0.5],
        [0],
    )


def test_a_probability_that_is_rounded_above_1_counts_to_the_last_bin():
    points = measures.reliability(np.array([[1.0, 0.0], [1 + 1e-9, 0.0]]), np.array([0, 1]))
    assert (points.counts.tolist(), points.accuracy.tolist()) == ([2], [0.5])


# pictures


def picture(address: str) -> np.ndarray:
    assert address.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize("size", [1, 28, 64, 96])
def test_small_slices_are_shown_pixel_by_pixel(size):
    image = np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)
    assert np.array_equal(picture(pictures.data_uri(image)), image)


def test_large_slices_are_reduced_to_96_pixels_by_their_mean():
    blocks = np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8)
    image = np.repeat(np.repeat(blocks, 2, 0), 2, 1)
    assert np.array_equal(picture(pictures.data_uri(image)), blocks)
    assert picture(pictures.data_uri(np.zeros((224, 224), np.uint8))).shape == (96, 96)


def test_slices_that_do_not_lie_in_one_piece_are_shown_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (30, 20), np.uint8)
    assert np.array_equal(picture(pictures.data_uri(image.T[::-1])), image.T[::-1])


@few
@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_samples_are_different_slices_of_the_class_in_order(size, count, seed):
    labels = np.random.default_rng(seed).integers(0, 3, size)
    found = pictures.samples(labels, 1, count)
    of_class = np.flatnonzero(labels == 1)
    assert len(found) == min(count, len(of_class)) and found == sorted(set(found))
    assert set(found) <= set(of_class)
    if len(of_class) > count + 2:  # spread evenly, and neither the first nor the last
        places = np.searchsorted(of_class, found)
        gaps = np.diff([0, *places, len(of_class) - 1])
        assert gaps.max() - gaps.min() <= 1
    else:
        assert found == of_class[:count].tolist()
