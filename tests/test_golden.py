"""The known answers: how they are written and read, and how far an answer may be from them."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from organ_infer import BundleError
from organ_infer.bundle.golden import GOLDEN, golden_answers, golden_rows, golden_slices, tolerance
from organ_infer.bundle.precision import PRECISIONS


def manifest(metrics=None, classes=3, precisions=("fp32",)):
    forms = [types.SimpleNamespace(precision=precision) for precision in precisions]
    task = types.SimpleNamespace(classes=[f"class {i}" for i in range(classes)])
    return types.SimpleNamespace(metrics=metrics or {}, task=task, variants=lambda device: forms)


def stored(rows, device="cpu"):
    return manifest({GOLDEN: {device: rows}})


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (16, 3), elements=st.floats(0.01, 1)))
def test_answers_come_back_as_they_were_written(weights):
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    for device in ("cpu", "cuda"):
        found = golden_answers(stored(golden_rows(probabilities), device), device)
        np.testing.assert_allclose(found, probabilities, atol=5.1e-7)


def test_an_answer_is_written_with_six_digits():
    assert golden_rows(np.array([[1 / 3, 2 / 3], [0.0000004, 0.9999996]])) == [
        "0.333333 0.666667",
        "0.000000 1.000000",
    ]


def test_a_bundle_may_hold_none():
    assert golden_answers(manifest(), "cpu") is None


@pytest.mark.parametrize("total", [0.998, 0.9992, 1.0008, 1.002])
def test_one_row_that_does_not_sum_to_one_is_refused(total):
    rows = ["0.2 0.3 0.5"] * 15 + [f"0.2 0.3 {total - 0.5}"]
    if abs(total - 1) < 0.001:
        assert golden_answers(stored(rows), "cpu")[15].sum() == pytest.approx(total)
    else:
        with pytest.raises(
            BundleError, match=r"metrics\.golden\.cpu must be 16 strings of 3 probabilities"
        ):
            golden_answers(stored(rows), "cpu")


@pytest.mark.parametrize(
    "rows",
    [["0.5 0.5"] * 16, ["0.2 0.3 0.5"] * 15, ["0.2 0.3 0.5"] * 17, ["0.2 0.3 0.5 0"] * 16, [], None, ["x y z"] * 16],
)  # fmt: skip
def test_another_shape_is_refused(rows):
    with pytest.raises(BundleError, match="export the bundle again"):
        golden_answers(stored(rows), "cpu")


def test_answers_of_another_device_are_not_taken():
    with pytest.raises(BundleError, match=r"metrics\.golden\.cuda"):
        golden_answers(stored(["0.2 0.3 0.5"] * 16, "cpu"), "cuda")


@pytest.mark.parametrize(
    ("precisions", "most"),
    [
        (["fp32"], 0.001),
        (["int8"], 0.02),
        (["fp16"], 0.02),
        (["fp32", "int8"], 0.02),
        (["int8", "fp32", "fp32"], 0.02),
    ],
)
def test_the_widest_tolerance_of_the_variants_in_use_holds(precisions, most):
    """docs/reference/check.md"""
    assert tolerance(manifest(precisions=precisions), "cpu") == most


def test_the_slices_use_the_range_of_gray_and_differ():
    slices = golden_slices()
    assert len({piece.tobytes() for piece in slices}) == 16
    for i, piece in enumerate(slices):
        assert piece.dtype == (np.uint8, np.uint16)[i % 2]
        top = np.iinfo(piece.dtype).max
        assert piece.max() > 0.4 * top and piece.min() < 0.3 * top
    for one, again in zip(slices, golden_slices(), strict=True):
        np.testing.assert_array_equal(one, again)


def test_cuda_prefers_fp16_then_fp32_and_int8_last():
    ranks = {row.name: row.cuda_rank for row in PRECISIONS}
    assert sorted(ranks, key=ranks.get) == ["fp16", "fp32", "int8"]
    assert len(set(ranks.values())) == len(ranks)
