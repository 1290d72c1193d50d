"""Metrics of labeled slices: equal to scikit-learn's to the last digit, the bootstrap interval, evaluate()."""

import logging
import math
import warnings

import numpy as np
import pytest
from conftest import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    precision_score,
    recall_score,
)

from organ_infer import InputError, OrganClassifier
from organ_infer.evaluation import evaluate
from organ_infer.evaluation.bootstrap import RESAMPLES, accuracy_interval
from organ_infer.evaluation.calibration import expected_calibration_error

NAMES = ("a", "b", "c", "d", "e")


def probabilities_of(predicted, confidence=0.9, classes=NAMES):
    """float32 (N, classes): each row has `confidence` for its class."""
    rows = np.full(
        (len(predicted), len(classes)), (1 - confidence) / (len(classes) - 1), np.float32
    )
    rows[np.arange(len(predicted)), predicted] = confidence
    return rows


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.3, 1.0)),
        min_size=1,
        max_size=70,
    )
)
def test_metrics_equal_those_of_scikit_learn_to_the_last_digit(slices):
    labels, predicted = (np.array([row[i] for row in slices]) for i in (0, 1))
    probabilities = np.concatenate(
        [probabilities_of([each], confidence) for _, each, confidence in slices]
    )
    found = evaluate(probabilities, labels, NAMES)
    known = {"labels": range(5), "average": "weighted", "zero_division": 0}
    assert found.accuracy == accuracy_score(labels, predicted)
    assert found.precision == precision_score(labels, predicted, **known)
    assert found.recall == recall_score(labels, predicted, **known)
    assert found.f1 == f1_score(labels, predicted, **known)
    assert found.confusion == tuple(
        map(tuple, confusion_matrix(labels, predicted, labels=range(5)).tolist())
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = precision_recall_fscore_support(
            labels, predicted, labels=range(5), zero_division=math.nan
        )
    for i, row in enumerate(found.per_class):
        ours = [row.precision, row.recall, row.f1, row.slices]
        theirs = [None if math.isnan(column[i]) else column[i] for column in columns]
        assert ours == theirs
        assert row.predicted == (predicted == i).sum() and row.label == NAMES[i]
    assert found.ece == expected_calibration_error(probabilities, labels)


def test_the_bins_make_up_the_calibration_error():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.4] * 5, 400).astype(np.float32)
    labels = rng.integers(0, 5, 400)
    found = evaluate(probabilities, labels, NAMES)
    gaps = [
        each.slices * abs(each.accuracy - each.confidence)
        for each in found.reliability
        if each.slices
    ]
    assert len(found.reliability) == 15 and sum(each.slices for each in found.reliability) == 400
    assert sum(gaps) / 400 == pytest.approx(found.ece, abs=1e-12)
    empty = [each for each in found.reliability if not each.slices]
    assert empty and all(each.accuracy is None and each.confidence is None for each in empty)
    assert found.reliability[0].lower == 0 and found.reliability[-1].upper == 1
    for lower, upper in zip(found.reliability, found.reliability[1:], strict=False):
        assert lower.upper == upper.lower


def test_the_interval_is_that_of_resampled_slices():
    correct = np.arange(400) % 10 != 0
    found = accuracy_interval(correct, None)
    # by hand: resample the slices themselves
    rng = np.random.default_rng(5)
    drawn = correct[rng.integers(400, size=(4000, 400))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)
    assert (found.level, found.resamples, found.groups) == (0.95, RESAMPLES, None)
    assert accuracy_interval(correct, None) == found


def test_groups_that_are_right_or_wrong_together_widen_the_interval():
    groups = np.repeat(np.arange(20), 20)
    correct = groups % 5 != 0
    by_slice, by_group = accuracy_interval(correct, None), accuracy_interval(correct, groups)
    assert by_group.groups == 20
    assert by_group.high - by_group.low > 3 * (by_slice.high - by_slice.low)
    # Groups of one slice are slices.
    single = accuracy_interval(correct, np.arange(400) * 7 - 900)
    assert (single.low, single.high) == pytest.approx((by_slice.low, by_slice.high), abs=0.006)


def test_groups_may_differ_in_size():
    groups = np.array([0] * 90 + [1] * 10)
    found = accuracy_interval(groups == 0, groups)
    # Both, twice the large one, or twice the small one.
    assert (found.low, found.high) == (0.0, 1.0)
    sizes = np.array([0] * 30 + [1] * 10 + [2] * 10)
    shares = {30 * a / (30 * a + 10 * (3 - a)) for a in range(4)}
    bounds = accuracy_interval(sizes == 0, sizes)
    assert min(abs(bounds.low - share) for share in shares) < 1e-12
    assert min(abs(bounds.high - share) for share in shares) < 1e-12


def test_one_slice_or_group_has_no_interval():
    assert accuracy_interval(np.array([True]), None) is None
    assert accuracy_interval(np.arange(9) > 3, np.full(9, 3)) is None
    assert accuracy_interval(np.arange(9) > 3, np.arange(9) % 2) is not None


@pytest.mark.parametrize("value", [True, False])
def test_slices_that_are_all_right_or_all_wrong_have_no_interval(value):
    assert accuracy_interval(np.full(9, value), None) is None
    assert accuracy_interval(np.full(9, value), np.arange(9)) is None


def test_the_most_confident_mistakes_come_first():
    predicted = np.array([0, 1, 2, 3, 0, 1])
    probabilities = np.concatenate(
        [
            probabilities_of([p], c)
            for p, c in zip(predicted, [0.5, 0.7, 0.9, 0.8, 0.7, 0.6], strict=True)
        ]
    )
    labels = np.array([1, 1, 0, -1, 2, 0])
    found = evaluate(probabilities, labels, NAMES)
    # Index 1 is right, 3 has no label, and of equal ones the first would come first.
    assert [(m.index, m.label, m.predicted) for m in found.mistakes] == [
        (2, "a", "c"),
        (4, "c", "a"),
        (5, "a", "b"),
        (0, "b", "a"),
    ]
    assert [m.probability for m in found.mistakes] == pytest.approx([0.9, 0.7, 0.6, 0.5], abs=1e-6)
    assert (found.slices, found.unlabeled) == (5, 1)
    ties = probabilities_of([0] * 3000)
    ties[::2] = probabilities_of([0] * 1500, 0.8)
    many = evaluate(ties, np.ones(3000, int), NAMES)
    assert [m.index for m in many.mistakes] == list(range(1, 49, 2))


def test_the_groups_of_slices_without_a_label_do_not_count():
    labels = np.array([-1, -1, -1, 0, 0, 1, 1])
    found = evaluate(
        probabilities_of([0] * 7), labels, NAMES, groups=np.array([7, 8, 9, 3, 3, 4, 4])
    )
    assert found.interval.groups == 2 and (found.interval.low, found.interval.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 5)), np.array([0])), "probabilities: expected the shape"),
        ((np.ones((1, 4)), np.array([0])), "probabilities: expected the shape"),
        ((np.ones((1, 5)), np.array([5])), "labels below 5"),
        ((np.ones((1, 5)), np.array([-1])), "no slice has one of the model's classes"),
        ((np.ones((0, 5)), np.array([], int)), "no slice has one of the model's classes"),
        ((np.full((1, 5), math.nan), np.array([0])), "NaN or infinite"),
    ],
)
def test_wrong_arrays_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate(*arguments, NAMES)


# OrganClassifier.evaluate


def test_the_classifier_evaluates_slices(classifier, slices):
    labels = [prediction.label for prediction in classifier.predict(slices)]
    assert classifier.evaluate(slices, labels).accuracy == 1.0
    other = next(name for name in CLASSES if name not in labels)
    found = classifier.evaluate(slices, [other] * 4 + labels[4:], groups=["p"] * 20 + ["q"] * 20)
    assert found.accuracy == 36 / 40 and found.interval.groups == 2
    assert {mistake.index for mistake in found.mistakes} == {0, 1, 2, 3}
    assert found.classes == tuple(CLASSES) == classifier.classes


def test_labels_may_be_names_indices_or_missing(classifier, slices, caplog):
    four, index = slices[:4], classifier.predict(slices[:4])[0].index
    name = CLASSES[index]
    forms = [
        [name] * 4,
        [index] * 4,
        np.full(4, index),
        np.full((4, 1), index, np.uint8),
        np.array([name] * 4),
        [name.upper().replace("-", "_"), f" {name} ", name.replace("-", " "), np.int64(index)],
    ]
    expected = classifier.evaluate(four, forms[0])
    assert all(classifier.evaluate(four, form) == expected for form in forms)
    with caplog.at_level(logging.WARNING, "organ_infer"):
        found = classifier.evaluate(four, [name, None, math.nan, "aorta"])
    assert (found.slices, found.unlabeled, found.unknown_labels) == (1, 2, {"aorta": 1})
    assert "labels: not a class of the model, left out: aorta (1)" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["liver"] * 3, r"labels: expected one per slice, 4 in all, found 3"),
        ("liver", r"labels: expected one per slice, found 'liver'; pass a list"),
        (np.zeros((4, 2), int), r"labels: expected one per slice"),
        (7, r"labels: expected one per slice"),
        ([0, 1, 2, 11], r"labels\[3\]: expected a class or its index from 0 to 10, found 11"),
        ([0, 1, -1, 0], r"labels\[2\]: expected a class or its index"),
        ([True, 1, 1, 0], r"labels\[0\]: expected a class or its index"),
        ([1.5, 1, 1, 0], r"labels\[0\]: expected a class or its index"),
        (["aorta"] * 4, r"labels: no slice has one of the model's classes"),
        ([None] * 4, r"labels: no slice has one of the model's classes"),
    ],
)
def test_wrong_labels_are_refused(classifier, slices, labels, message):
    with pytest.raises(InputError, match=message):
        classifier.evaluate(slices[:4], labels)


def test_wrong_groups_are_refused(classifier, slices):
    for groups, message in (
        (["a"], "groups: expected one per slice, 4 in all, found 1"),
        ([[]] * 4, "groups: expected names or numbers"),
    ):
        with pytest.raises(InputError, match=message):
            classifier.evaluate(slices[:4], ["liver"] * 4, groups=groups)


def test_a_closed_classifier_evaluates_nothing(bundle, slices):
    from organ_infer import OrganInferError

    closed = OrganClassifier(bundle, device="cpu")
    closed.close()
    with pytest.raises(OrganInferError, match="closed"):
        closed.evaluate(slices[:1], ["liver"])
