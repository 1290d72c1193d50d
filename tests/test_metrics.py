"""Metrics against cases worked out by hand, and against plain float64 code beside them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from organ_infer.evaluation.calibration import expected_calibration_error
from train.ensemble import mean_probabilities
from train.metrics import area_under_curve, measure

# three classes, six slices; predicted 0 0 1 1 2 0, true 0 0 1 2 2 1
LABELS = np.array([0, 0, 1, 2, 2, 1])
PROBABILITIES = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.6, 0.3, 0.1],
        [0.2, 0.7, 0.1],
        [0.1, 0.5, 0.4],
        [0.0, 0.1, 0.9],
        [0.5, 0.4, 0.1],
    ]
)


def sure_of(predicted, classes):
    """Probabilities (N, C) whose highest is that of `predicted`."""
    return np.full((len(predicted), classes), 0.1 / classes) + 0.9 * np.eye(classes)[predicted]


def test_accuracy_precision_recall_f1_by_hand():
    m = measure(PROBABILITIES, LABELS)
    assert m.confusion == [[2, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert m.accuracy == m.recall == pytest.approx(4 / 6)
    assert m.precision == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert m.f1 == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_unequal_classes_are_weighted_by_their_support():
    """Supports of 5, 2 and 1, so that the weighted and the plain mean over classes differ."""
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    m = measure(sure_of(np.array([0, 0, 0, 0, 1, 1, 2, 2]), 3), labels)
    # by class: precision 4/4, 1/2, 1/2; recall 4/5, 1/2, 1/1; F1 8/9, 1/2, 2/3
    assert m.confusion == [[4, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert m.precision == pytest.approx((5 * 1 + 2 * 1 / 2 + 1 * 1 / 2) / 8)
    assert m.recall == m.accuracy == pytest.approx(6 / 8)
    assert m.f1 == pytest.approx((5 * 8 / 9 + 2 * 1 / 2 + 1 * 2 / 3) / 8)


def test_a_class_that_is_never_predicted_has_precision_and_f1_zero():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    m = measure(sure_of(np.array([0, 0, 0, 0, 1, 1, 0, 0]), 4), labels)
    # class 2 occurs and is never predicted; class 3 neither occurs nor is predicted
    assert m.confusion == [[4, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert m.precision == pytest.approx((5 * 4 / 6 + 2 * 1 / 2 + 1 * 0) / 8)
    assert m.recall == pytest.approx(5 / 8)
    assert m.f1 == pytest.approx((5 * 8 / 11 + 2 * 1 / 2 + 1 * 0) / 8)


def by_counting(probabilities, labels):
    """Weighted precision, recall and F1 from counts alone."""
    predicted = probabilities.argmax(1)
    sums = np.zeros(3)
    for c in range(probabilities.shape[1]):
        right = np.sum((predicted == c) & (labels == c))
        precision = right / max(1, np.sum(predicted == c))
        recall = right / max(1, np.sum(labels == c))
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        sums += np.sum(labels == c) * np.array([precision, recall, f1])
    return sums / len(labels)


@st.composite
def split_answers(draw):
    """Probabilities (N, C) and labels (N,), unbalanced, with ties, some classes absent."""
    seed = draw(st.integers(0, 2**32 - 1))
    count, classes = draw(st.integers(1, 60)), draw(st.integers(2, 11))
    generator = np.random.default_rng(seed)
    scores = generator.integers(1, draw(st.sampled_from([3, 100])), (count, classes)).astype(float)
    labels = generator.choice(classes, count, p=generator.dirichlet(np.full(classes, 0.5)))
    return scores / scores.sum(1, keepdims=True), labels


@settings(max_examples=30, deadline=None)
@given(split_answers())
def test_precision_recall_and_f1_are_those_counted_by_class(answers):
    probabilities, labels = answers
    m = measure(probabilities, labels)
    assert [m.precision, m.recall, m.f1] == pytest.approx(by_counting(probabilities, labels))
    confusion = np.array(m.confusion)
    assert (confusion.sum(1) == np.bincount(labels, minlength=probabilities.shape[1])).all()
    assert m.accuracy == pytest.approx(confusion.trace() / len(labels))


def test_auc_is_the_unweighted_mean_of_one_against_the_rest():
    # class 0: scores of the true 0.8 0.6 against 0.2 0.1 0.0 0.5, all above: 1; class 1: 0.7 0.4 against
    # 0.1 0.3 0.5 0.1: 7 of 8 pairs; class 2: 0.4 0.9 against four of 0.1: 1
    assert measure(PROBABILITIES, LABELS).auc == pytest.approx((1 + 7 / 8 + 1) / 3)


def rank_statistic(probabilities, labels):
    """Mean over classes of Mann and Whitney's U, as a share of the pairs; ties count half."""
    areas = []
    for c in range(probabilities.shape[1]):
        own = labels == c
        ranks = rankdata(probabilities[:, c])
        u = ranks[own].sum() - own.sum() * (own.sum() + 1) / 2
        areas.append(u / (own.sum() * (~own).sum()))
    return np.mean(areas)


@settings(max_examples=60, deadline=None)
@given(split_answers())
def test_auc_is_the_rank_statistic_where_every_class_occurs(answers):
    probabilities, labels = answers
    found = area_under_curve(probabilities, labels)
    if len(np.unique(labels)) == probabilities.shape[1]:
        assert found == pytest.approx(rank_statistic(probabilities, labels))
    else:
        assert found is None


def test_auc_of_unequal_classes_by_the_rank_statistic():
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), [40, 12, 5, 1])
    probabilities = generator.dirichlet(np.ones(4), len(labels)).round(2)
    expected = rank_statistic(probabilities, labels)
    assert measure(probabilities, labels).auc == pytest.approx(expected)


def test_auc_without_a_class_is_undefined_and_null():
    assert area_under_curve(PROBABILITIES, np.array([0, 0, 1, 1, 1, 1])) is None
    assert measure(PROBABILITIES, np.zeros(6, int)).auc is None
    assert area_under_curve(np.ones((3, 1)), np.zeros(3, int)) is None


def test_ece_by_hand():
    # two bins of 15 are in use: (0.8, right), (0.8, wrong) and (0.5, right): (2/3) * |0.5 - 0.8| + (1/3) * 0.5
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.5, 0.5]])
    assert expected_calibration_error(p, np.array([0, 1, 0])) == pytest.approx(
        2 / 3 * 0.3 + 1 / 3 * 0.5
    )
    assert expected_calibration_error(np.eye(2), np.array([0, 1])) == 0


def top(confidences):
    """Probabilities (N, 2) of these top probabilities, all of class 0."""
    return np.stack([np.array(confidences), 1 - np.array(confidences)], axis=1)


def test_ece_has_15_bins_of_unequal_fill():
    """15 as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 3."""
    # 0.62 lies in the tenth bin (9/15, 10/15], 0.68 in the eleventh, 0.87 and 0.93 in the fourteenth, 0.97 in the last
    p = top([0.62, 0.62, 0.62, 0.62, 0.68, 0.87, 0.93, 0.97])
    labels = np.array([1, 1, 1, 0, 0, 0, 1, 0])  # 0 is right
    # sums of (right - probability): 1 - 4 * 0.62, 1 - 0.68, 1 - 0.87 - 0.93, 1 - 0.97
    by_hand = (1.48 + 0.32 + 0.80 + 0.03) / 8
    assert expected_calibration_error(p, labels) == pytest.approx(by_hand)
    assert measure(p, labels).ece == pytest.approx(by_hand)
    for bins in {*range(1, 31)} - {15}:
        assert expected_calibration_error(p, labels, bins) != pytest.approx(by_hand), bins


def test_a_probability_on_an_edge_counts_to_the_bin_below():
    # 0.8 = 12/15 ends the twelfth bin, with 0.75; 0.81 is in the thirteenth
    below = expected_calibration_error(top([0.8, 0.75]), np.array([1, 0]))
    assert below == pytest.approx(abs(1 - 0.8 - 0.75) / 2)
    above = expected_calibration_error(top([0.8, 0.81]), np.array([1, 0]))
    assert above == pytest.approx((0.8 + (1 - 0.81)) / 2)


def test_certain_answers_are_in_the_last_bin_and_none_falls_out():
    # 1 and 0.95 share the last bin: gap |1 - 1.95| of two
    assert expected_calibration_error(top([1.0, 0.95]), np.array([1, 0])) == pytest.approx(0.95 / 2)
    # rounding may lift a sum of float32 a little above 1
    above = np.array([[1.0000001, 0], [0.95, 0.05]], np.float32)
    assert expected_calibration_error(above, np.array([1, 0])) == pytest.approx(0.95 / 2, abs=1e-6)
    assert expected_calibration_error(np.zeros((2, 2)), np.array([0, 0])) == 1.0
    # the first bin ends at 1/15, so that 0.05 and 0.1 do not share it
    assert expected_calibration_error(np.array([[0.05], [0.1]]), np.array([0, 1])) == pytest.approx(
        1.05 / 2
    )
    # 0 belongs to the first bin, with 0.05
    assert expected_calibration_error(np.array([[0.0], [0.05]]), np.array([0, 0])) == pytest.approx(
        1.95 / 2
    )


def ece_by_loops(probabilities, labels, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            (max(row), int(np.argmax(row)) == label)
            for row, label in zip(probabilities.tolist(), labels, strict=True)
            if b < round(max(row) * bins, 9) <= b + 1
        ]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(value for value, _ in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@settings(max_examples=60, deadline=None)
@given(split_answers(), st.sampled_from([2, 10, 15]))
def test_ece_is_the_mean_gap_over_the_bins(answers, bins):
    probabilities, labels = answers
    probabilities = np.round(probabilities, 4) + 3e-6  # off the edges
    found = expected_calibration_error(probabilities, labels, bins)
    assert found == pytest.approx(ece_by_loops(probabilities, labels, bins), abs=1e-9)


def test_broken_probabilities_are_refused():
    for value in (math.nan, math.inf):
        bad = PROBABILITIES.copy()
        bad[0, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            measure(bad, LABELS)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (PROBABILITIES[:2], LABELS),
        (PROBABILITIES[:0], LABELS[:0]),
        (PROBABILITIES[:, 0], LABELS),
        (PROBABILITIES[None].repeat(6, 0), LABELS),
    ],
)
def test_probabilities_of_another_shape_are_refused(probabilities, labels):
    with pytest.raises(
        ValueError, match=rf"expected \(N, C\) probabilities for {len(labels)} labels"
    ):
        measure(probabilities, labels)


def test_the_ensemble_averages_probabilities_not_logits():
    a, b = np.array([[0.9, 0.1]], np.float32), np.array([[0.2, 0.8]], np.float32)
    np.testing.assert_allclose(mean_probabilities([a, b]), [[0.55, 0.45]], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.data())
def test_the_order_of_the_members_changes_no_mean(seed, count, data):
    generator = np.random.default_rng(seed)
    members = [generator.dirichlet(np.full(11, 0.3), 5).astype(np.float32) for _ in range(count)]
    order = data.draw(st.permutations(range(count)))
    found = mean_probabilities(members)
    assert found.dtype == np.float32 and found.shape == (5, 11)
    np.testing.assert_allclose(
        mean_probabilities([members[i] for i in order]), found, rtol=2e-7, atol=1e-12
    )
    np.testing.assert_allclose(
        found, sum(m.astype(float) for m in members) / count, rtol=2e-7, atol=1e-12
    )
