"""Metrics against cases worked out by hand."""

import math

import numpy as np
import pytest

from export.temperature import expected_calibration_error
from train.ensemble import mean_probabilities
from train.metrics import area_under_curve, measure

# three classes, six slices; predicted 0 0 1 1 2 0, true 0 0 1 2 2 1
LABELS = np.array([0, 0, 1, 2, 2, 1])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4], [0.0, 0.1, 0.9], [0.5, 0.4, 0.1]]
)


def test_accuracy_precision_recall_f1_by_hand():
    m = measure(PROBABILITIES, LABELS)
    assert m["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert m["accuracy"] == m["recall"] == pytest.approx(4 / 6)
    assert m["precision"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert m["f1"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_auc_is_the_unweighted_mean_of_one_against_the_rest():
    # class 0: scores of the true 0.8 0.6 against 0.2 0.1 0.0 0.5, all above: 1; class 1: 0.7 0.4 against
    # 0.1 0.3 0.5 0.1: 7 of 8 pairs; class 2: 0.4 0.9 against four of 0.1: 1
    assert measure(PROBABILITIES, LABELS)["auc"] == pytest.approx((1 + 7 / 8 + 1) / 3)


def test_auc_without_a_class_is_undefined_and_null():
    assert area_under_curve(PROBABILITIES, np.array([0, 0, 1, 1, 1, 1])) is None
    assert measure(PROBABILITIES, np.zeros(6, int))["auc"] is None


def test_ece_by_hand():
    # two bins of 15 are in use: (0.8, right), (0.8, wrong) and (0.5, right): (2/3) * |0.5 - 0.8| + (1/3) * 0.5
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.5, 0.5]])
    assert expected_calibration_error(p, np.array([0, 1, 0])) == pytest.approx(2 / 3 * 0.3 + 1 / 3 * 0.5)
    assert expected_calibration_error(np.eye(2), np.array([0, 1])) == 0


def test_broken_probabilities_are_refused():
    bad = PROBABILITIES.copy()
    bad[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        measure(bad, LABELS)
    with pytest.raises(ValueError, match="expected"):
        measure(PROBABILITIES[:2], LABELS)


def test_the_ensemble_averages_probabilities_not_logits():
    a, b = np.array([[0.9, 0.1]], np.float32), np.array([[0.2, 0.8]], np.float32)
    np.testing.assert_allclose(mean_probabilities([a, b]), [[0.55, 0.45]], rtol=1e-6)
