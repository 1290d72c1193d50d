"""int8 and fp16 graphs: scales and zero points recomputed by hand from the calibration slices."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import make_graph
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy.signal import correlate

from export.quantize import to_fp16, to_int8

# onnxruntime's documentation, "Quantize ONNX models": an asymmetric uint8 scale is (max - min) / 255, 0 always inside
UINT8_LEVELS = 255
# and a symmetric int8 scale of a reduced range is the largest weight over 64
REDUCED_INT8 = 64


@pytest.fixture(scope="module")
def float_model():
    return onnx.load_from_string(make_graph(classes=3))


@pytest.fixture(scope="module")
def calibration_slices():
    """130 slices, batches of 64, 64 and 2: the brightest is the first, the darkest the last, the strongest the 101st."""
    slices = np.random.default_rng(5).uniform(-0.25, 0.25, (130, 1, 28, 28)).astype(np.float32)
    slices[0, 0, 3, 3] = 0.9
    slices[100] *= 2.5
    slices[129, 0, 9, 9] = -0.7
    return slices


@pytest.fixture(scope="module")
def int8_model(float_model, calibration_slices):
    return to_int8(float_model, calibration_slices)


def tensors(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantized_by(model, kind):
    """Scale and zero point of the tensor that each node of this kind reads or writes first, by that tensor's name."""
    constants = tensors(model)
    return {
        node.input[0]: (constants[node.input[1]], constants[node.input[2]])
        for node in model.graph.node
        if node.op_type == kind
    }


def feature_maps(model, slices):
    """float64 (N, 8, 28, 28): the convolution and ReLU of `make_graph`, by scipy."""
    kernels = tensors(model)["kernel"].astype(np.float64)
    rows = np.pad(slices[:, 0].astype(np.float64), ((0, 0), (2, 2), (2, 2)))
    maps = [[correlate(row, kernel[0], mode="valid") for kernel in kernels] for row in rows]
    return np.maximum(maps, 0)


def test_the_input_s_range_is_the_minimum_and_maximum_of_all_calibration_batches(
    int8_model, calibration_slices
):
    scale, zero_point = quantized_by(int8_model, "QuantizeLinear")["images"]
    lowest, highest = calibration_slices.min(), calibration_slices.max()
    assert (lowest, highest) == (np.float32(-0.7), np.float32(0.9))
    assert scale == pytest.approx((highest - lowest) / UINT8_LEVELS, rel=1e-6)
    assert zero_point == round(0.7 / (1.6 / UINT8_LEVELS))


def test_the_range_of_an_inner_activation_is_that_of_all_calibration_batches(
    float_model, int8_model, calibration_slices
):
    highest = feature_maps(float_model, calibration_slices).max(axis=(1, 2, 3))
    assert highest.argmax() == 100
    scale, zero_point = quantized_by(int8_model, "QuantizeLinear")["b"]
    assert scale == pytest.approx(highest.max() / UINT8_LEVELS, rel=1e-5)
    assert zero_point == 0


def test_activations_are_uint8(int8_model):
    activations = quantized_by(int8_model, "QuantizeLinear")
    assert {"images", "b", "c", "d"} <= activations.keys()
    assert {zero_point.dtype for _, zero_point in activations.values()} == {np.dtype(np.uint8)}


def test_weights_are_int8_of_seven_bits_with_a_symmetric_scale_a_channel(float_model, int8_model):
    kernel = tensors(float_model)["kernel"].astype(np.float64)
    scale, zero_point = quantized_by(int8_model, "DequantizeLinear")["kernel_quantized"]
    expected_scale = np.abs(kernel).max(axis=(1, 2, 3)) / REDUCED_INT8
    np.testing.assert_allclose(scale, expected_scale, rtol=1e-6)
    assert zero_point.dtype == np.int8 and not zero_point.any()
    stored = tensors(int8_model)["kernel_quantized"]
    assert stored.dtype == np.int8
    np.testing.assert_allclose(
        stored, kernel / expected_scale[:, None, None, None], atol=0.5 + 1e-4
    )


def test_the_int8_graph_answers_as_the_float_graph_to_within_its_steps(float_model, int8_model):
    images = np.random.default_rng(6).uniform(-0.6, 0.8, (4, 1, 28, 28)).astype(np.float32)
    exact = ReferenceEvaluator(float_model).run(["logits"], {"images": images})[0]
    session = onnxruntime.InferenceSession(
        int8_model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(["logits"], {"images": images})[0]
    assert np.abs(found - exact).max() < 0.05 * np.ptp(exact)
    assert not np.array_equal(found, exact)


def test_a_graph_in_fp16_takes_and_gives_float32_and_computes_in_float16(float_model):
    half = to_fp16(float_model)
    ports = (*half.graph.input, *half.graph.output)
    assert [port.type.tensor_type.elem_type for port in ports] == [
        TensorProto.FLOAT,
        TensorProto.FLOAT,
    ]
    assert [port.name for port in ports] == ["images", "logits"]
    assert {name: value.dtype for name, value in tensors(half).items()} == dict.fromkeys(
        ("kernel", "matrix", "bias"), np.dtype(np.float16)
    )
    kinds = [node.op_type for node in half.graph.node]
    assert kinds[0] == kinds[-1] == "Cast" and kinds.count("Cast") == 2
    images = np.random.default_rng(6).uniform(-1, 1, (4, 1, 28, 28)).astype(np.float32)
    exact = ReferenceEvaluator(float_model).run(["logits"], {"images": images})[0]
    found = ReferenceEvaluator(half).run(["logits"], {"images": images})[0]
    assert found.dtype == np.float32
    # 11 bits of mantissa, some hundred sums
    np.testing.assert_allclose(found, exact, atol=2e-2)
    assert not np.array_equal(found, exact)


@pytest.mark.parametrize(
    "make", [to_fp16, lambda model: to_int8(model, np.zeros((2, 1, 28, 28), np.float32))]
)
def test_making_a_form_leaves_the_float_graph_and_the_log_level_as_they_were(
    make, float_model, caplog
):
    before = float_model.SerializeToString()
    with caplog.at_level(logging.INFO):
        make(float_model)
        assert logging.getLogger().level == logging.INFO
    assert float_model.SerializeToString() == before


@pytest.mark.parametrize(
    "make", [to_fp16, lambda model: to_int8(model, np.zeros((2, 1, 28, 28), np.float32))]
)
def test_a_form_names_no_operator_set_that_it_does_not_use_and_carries_no_notes(make, float_model):
    noted = onnx.ModelProto()
    noted.CopyFrom(float_model)
    noted.opset_import.add(domain="ai.onnx.ml", version=3)
    noted.metadata_props.add(key="made", value="here")
    made = make(noted)
    assert [entry.domain for entry in made.opset_import] == [""]
    assert not made.metadata_props


def test_the_tools_advice_is_not_printed(float_model, caplog):
    with caplog.at_level(logging.WARNING):
        to_int8(float_model, np.zeros((2, 1, 28, 28), np.float32))
    assert not caplog.records


def test_a_form_that_onnx_refuses_is_not_returned(monkeypatch, float_model):
    from onnxruntime.transformers import float16

    def invalid(model, **options):
        model.graph.node[0].op_type = "NoSuchOperator"
        return model

    monkeypatch.setattr(float16, "convert_float_to_float16", invalid)
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        to_fp16(float_model)


def test_a_form_whose_shapes_contradict_each_other_is_not_returned(monkeypatch, float_model):
    from onnxruntime.transformers import float16

    def contradicting(model, **options):
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
        return model

    monkeypatch.setattr(float16, "convert_float_to_float16", contradicting)
    with pytest.raises(onnx.shape_inference.InferenceError):
        to_fp16(float_model)
