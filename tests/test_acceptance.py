"""Which variants a bundle gets: the accuracy limit, the samples for int8, the logits that a temperature is fitted to."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import variants
from export.variants import Slices, Variant, make_variants
from tests.support.tiny_graphs import (
    SIZE,
    accept_every_variant,
    bright_pixels,
    linear_graph,
    packed,
)

# pixel c white is class c, of 3; a slice with pixel 15 white is what a worse variant gets wrong
EXACT = 2 * np.eye(16)[:, :3]
# pixel 14 is black in every slice: where pixel 15 is too, nothing is added to class 2
WORSE = EXACT + np.outer(np.eye(16)[15] - np.eye(16)[14], [0.0, 0.0, 9.0])


def slices_of(count, wrong):
    """`count` slices of class 0, of which a worse variant gets `wrong` wrong."""
    images = bright_pixels(*((0, 15) if i < wrong else (0,) for i in range(count)))
    return Slices(images, images, np.zeros(count, int), SIZE)


@pytest.fixture
def converters(monkeypatch):
    """Sets what `to_int8` and `to_fp16` return: a model, or a function of their arguments."""

    def put(int8, fp16):
        for name, converted in ("to_int8", int8), ("to_fp16", fp16):
            convert = converted if callable(converted) else lambda *_, model=converted: model
            monkeypatch.setattr(variants, name, convert)

    return put


def names(accepted_variants):
    return [variant.precision for variant in accepted_variants]


# The accuracy limit: at most 0.002 of validation accuracy, 0.2 points: docs/guides/export.md.


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize(
    "count, wrong, accepted",
    [
        (501, 1, True),
        (500, 1, True),
        (499, 1, False),
        (1000, 2, True),
        (1000, 3, False),
        (50, 1, False),
    ],
)
def test_a_variant_may_lose_two_thousandths_of_validation_accuracy(
    precision, count, wrong, accepted, converters
):
    lines = []
    converters(linear_graph(WORSE), linear_graph(WORSE))
    accepted_variants = make_variants(
        "base", linear_graph(EXACT), slices_of(count, wrong), (precision,), report=lines.append
    )
    assert {variant.precision: variant.val_accuracy for variant in accepted_variants}["fp32"] == 1
    assert (precision in names(accepted_variants)) == accepted
    verdict = "accepted" if accepted else "not accepted"
    share = (count - wrong) / count
    assert lines == [f"base: {precision} {verdict}, validation accuracy {share:.4f}, fp32 1.0000"]


def test_a_variant_that_is_better_than_float32_is_accepted(converters):
    converters(linear_graph(EXACT), linear_graph(EXACT))
    accepted_variants = make_variants(
        "base", linear_graph(WORSE), slices_of(10, 5), report=lambda line: None
    )
    assert {variant.precision: variant.val_accuracy for variant in accepted_variants} == {
        "int8": 1.0,
        "fp32": 0.5,
        "fp16": 1.0,
    }


@pytest.mark.parametrize(
    "int8, fp16, asked, expected",
    [
        (EXACT, EXACT, ("int8", "fp32", "fp16"), ["int8", "fp32", "fp16"]),
        (EXACT, EXACT, ("fp16", "int8"), ["int8", "fp32", "fp16"]),
        (WORSE, EXACT, ("int8", "fp32", "fp16"), ["fp32", "fp16"]),
        (EXACT, WORSE, ("int8", "fp32", "fp16"), ["int8", "fp32"]),
        (WORSE, WORSE, ("int8", "fp32", "fp16"), ["fp32"]),
        (EXACT, EXACT, ("fp32",), ["fp32"]),
        (EXACT, EXACT, ("fp16",), ["fp32", "fp16"]),
        (EXACT, EXACT, ("int8",), ["int8", "fp32"]),
    ],
)
def test_int8_is_listed_where_accepted_else_float32_and_fp16_never(
    int8, fp16, asked, expected, converters
):
    converted = [linear_graph(matrix, 0.25) for matrix in (int8, fp16)]
    converters(*converted)
    accepted_variants = make_variants(
        "base", linear_graph(EXACT), slices_of(100, 50), asked, report=lambda line: None
    )
    assert names(accepted_variants) == expected
    contents = {"int8": converted[0], "fp16": converted[1]}
    for variant in accepted_variants:
        if variant.precision != "fp32":
            assert variant.content == contents[variant.precision].SerializeToString()
        else:
            weights = onnx.load_from_string(variant.content).graph.initializer
            assert numpy_helper.to_array(weights[0]).tolist() == EXACT.tolist()


def test_a_variant_keeps_its_own_logits_and_accuracy(converters):
    rng = np.random.default_rng(4)
    val, other = (rng.integers(0, 256, (count, 4, 4), dtype=np.uint8) for count in (300, 40))
    labels = rng.integers(0, 3, 300)
    matrices = {
        name: rng.normal(size=(16, 3)).astype(np.float32) for name in ("fp32", "int8", "fp16")
    }
    converters(linear_graph(matrices["int8"]), linear_graph(matrices["fp16"]))
    slices = Slices(val[:5], val, labels, SIZE, (other, np.zeros(40, int)))
    with pytest.MonkeyPatch.context() as patch:
        accept_every_variant(patch)
        accepted_variants = make_variants(
            "base", linear_graph(matrices["fp32"]), slices, report=lambda line: None
        )
    assert names(accepted_variants) == ["int8", "fp32", "fp16"]
    for variant in accepted_variants:
        matrix = matrices[variant.precision].astype(np.float64)
        np.testing.assert_allclose(variant.logits, packed(val) @ matrix, atol=1e-4)
        assert variant.val_accuracy == ((packed(val) @ matrix).argmax(1) == labels).mean()
        if variant.precision != "fp16":
            np.testing.assert_allclose(variant.fitting_logits, packed(other) @ matrix, atol=1e-4)
    # it is never listed, so that no temperature is fitted to it
    assert (
        accepted_variants[2].fitting_logits is None
        and Variant("fp16", b"", accepted_variants[2].logits, 0.5).fitting_logits is None
    )


def test_the_temperature_is_fitted_on_validation_where_nothing_else_is_given(converters):
    converters(linear_graph(3 * EXACT), linear_graph(EXACT))
    accepted_variants = make_variants(
        "base", linear_graph(EXACT), slices_of(7, 0), report=lambda line: None
    )
    for variant in accepted_variants[:2]:
        np.testing.assert_array_equal(variant.fitting_logits, variant.logits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_variant_that_returns_no_numbers_is_left_out_and_reported(value, converters):
    lines = []
    converters(linear_graph(EXACT, value), linear_graph(EXACT))
    accepted_variants = make_variants(
        "base", linear_graph(EXACT), slices_of(9, 0), report=lines.append
    )
    assert names(accepted_variants) == ["fp32", "fp16"]
    assert lines[0] == "base: no int8 variant: it returns NaN or infinite logits"


def test_a_long_error_of_the_tools_is_cut_to_200_characters_of_one_line(converters):
    def fails(*_):
        raise RuntimeError("no  such\nkernel " + "x" * 300)

    lines = []
    converters(fails, fails)
    accepted_variants = make_variants(
        "base", linear_graph(EXACT), slices_of(9, 0), report=lines.append
    )
    assert names(accepted_variants) == ["fp32"]
    for line, precision in zip(lines, ("int8", "fp16"), strict=True):
        assert line == f"base: no {precision} variant: " + ("no such kernel " + "x" * 300)[:200]


# The samples for int8.


def train_and_validation(train=200, val=100):
    """Training slices of gray 102 to 153 of 255, validation slices of the whole range."""
    rng = np.random.default_rng(8)
    gray = rng.integers(102, 154, (train, 4, 4)).astype(np.uint8)
    gray[-1, 0, :2] = 102, 153
    return gray, rng.integers(0, 256, (val, 4, 4)).astype(np.uint8)


def test_int8_takes_its_ranges_from_all_batches_of_training_slices(monkeypatch):
    accept_every_variant(monkeypatch)
    train, val = train_and_validation()
    # the lowest and the highest gray stand in the last of four batches alone
    train[:192] = np.clip(train[:192], 120, 140)
    matrix = np.random.default_rng(1).normal(size=(16, 3))
    labels = np.zeros(len(val), int)
    listed = make_variants(
        "base",
        linear_graph(matrix),
        Slices(train, val, labels, SIZE),
        ("int8",),
        report=lambda line: None,
    )[0]
    assert listed.precision == "int8"
    graph = onnx.load_from_string(listed.content).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    # 102 and 153 of 255 are -0.2 and 0.2
    assert weights[first.input[1]] == pytest.approx(0.4 / 255, rel=1e-5)
    assert weights[first.input[2]] in (127, 128)


@pytest.mark.parametrize(
    "count, step", [(1, 1), (300, 1), (512, 1), (1024, 2), (34561, 67), (12975, 25)]
)
def test_512_training_slices_spread_evenly_over_the_split_are_the_samples_for_int8(count, step):
    number = np.arange(count)
    # the number of a slice, in two pixels
    train = np.zeros((count, 4, 4), np.uint8)
    train[:, 0, 0], train[:, 0, 1] = number // 256, number % 256
    slices = Slices(train, np.full((2, 4, 4), 255, np.uint8), np.zeros(2, int), SIZE)
    samples = slices.int8_samples()
    assert samples.dtype == np.float32 and samples.shape == (min(count, 512), 1, 4, 4)
    pixels = np.round((samples[:, 0] * 0.5 + 0.5) * 255).astype(int)
    chosen = pixels[:, 0, 0] * 256 + pixels[:, 0, 1]
    np.testing.assert_array_equal(chosen, step * np.arange(min(count, 512)))


def test_samples_for_int8_are_resampled_to_the_networks_size():
    train = np.kron(bright_pixels((3,), (5,)), np.ones((2, 2), np.uint8))
    samples = Slices(train, train, np.zeros(2, int), SIZE).int8_samples()
    np.testing.assert_allclose(samples.reshape(2, 16), packed(bright_pixels((3,), (5,))), atol=1e-6)
