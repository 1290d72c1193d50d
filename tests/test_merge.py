"""The mean of several members in one graph, against float64 NumPy."""

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from export.average import averaging_nodes
from export.member import ExportError
from export.merge import merge
from tests.support.tiny_graphs import linear_graph, model_of, packed, softmax

RNG = np.random.default_rng(11)
MATRICES = {name: RNG.normal(size=(16, 4)).astype(np.float32) for name in ("a", "b", "c")}
SLICES = RNG.integers(0, 256, (5, 4, 4), dtype=np.uint8)


def averaged(answers, values, temperature):
    """What the nodes of `averaging_nodes` give for these tensors."""
    nodes, weights = averaging_nodes(answers, temperature)
    shapes = {name: [3] for name, _ in answers.values()}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in weights}
    model = model_of(nodes, shapes, {"probabilities": [3]}, constants)
    return ReferenceEvaluator(model).run(None, values)[0]


@pytest.mark.parametrize("temperature", [0.443, 1.0, 2.5])
def test_the_mean_is_of_probabilities_and_only_logits_are_divided_by_the_temperature(temperature):
    answers = {
        "x": ("x_logits", "logits"),
        "y": ("y_probabilities", "probabilities"),
        "z": ("z", "logits"),
    }
    values = {
        "x_logits": RNG.normal(0, 4, (6, 3)).astype(np.float32),
        "y_probabilities": softmax(RNG.normal(0, 4, (6, 3))).astype(np.float32),
        "z": RNG.normal(0, 1, (6, 3)).astype(np.float32),
    }
    expected = (
        softmax(values["x_logits"] / temperature)
        + values["y_probabilities"]
        + softmax(values["z"] / temperature)
    ) / 3
    found = averaged(answers, values, temperature)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected - softmax((values["x_logits"] + values["z"]) / 2)).max() > 0.1


def test_a_temperature_of_one_costs_no_division():
    answers = {"x": ("x", "logits")}
    assert [node.op_type for node in averaging_nodes(answers, 1.0)[0]] == ["Softmax", "Mean"]
    assert averaging_nodes(answers, 1.0)[1] == []
    assert [node.op_type for node in averaging_nodes(answers, 2.0)[0]] == ["Div", "Softmax", "Mean"]


@pytest.mark.parametrize("names, temperature", [("a", 1.0), ("ab", 0.5), ("abc", 3.0)])
def test_the_merged_graph_gives_the_mean_of_the_members_softmax(names, temperature):
    models = {name: linear_graph(MATRICES[name]) for name in names}
    merged = merge(models, temperature=temperature)
    images = packed(SLICES).reshape(5, 1, 4, 4).astype(np.float32)
    found = ReferenceEvaluator(merged).run(["probabilities"], {"images": images})[0]
    logits = [packed(SLICES) @ MATRICES[name].astype(np.float64) for name in names]
    expected = np.mean([softmax(z / temperature) for z in logits], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_without_a_temperature_it_is_one():
    merged = merge({"a": linear_graph(MATRICES["a"])})
    assert "Div" not in {node.op_type for node in merged.graph.node}


def test_the_merged_graph_declares_the_members_ports_operators_and_newest_format():
    models = {name: linear_graph(MATRICES[name]) for name in "abc"}
    for model, version in zip(models.values(), (8, 10, 9), strict=True):
        model.ir_version = version
    merged = merge(models)
    assert merged.ir_version == 10
    assert [(entry.domain, entry.version) for entry in merged.opset_import] == [("", 18)]
    (images,), (probabilities,) = merged.graph.input, merged.graph.output
    for port, name, shape in (
        (images, "images", ["N", 1, 4, 4]),
        (probabilities, "probabilities", ["N", 4]),
    ):
        axes = [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        assert (port.name, axes, port.type.tensor_type.elem_type) == (
            name,
            shape,
            TensorProto.FLOAT,
        )
    names = [tensor.name for tensor in merged.graph.initializer]
    assert sorted(names) == sorted(
        f"{stage}/{name}" for stage in "abc" for name in ("bias", "matrix")
    )


def other_input():
    nodes = [
        helper.make_node("Flatten", ["images"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "matrix"], ["logits"]),
    ]
    return model_of(
        nodes, {"images": [1, 5, 5]}, {"logits": [4]}, {"matrix": np.zeros((25, 4), np.float32)}
    )


@pytest.mark.parametrize(
    "other",
    [other_input(), linear_graph(np.zeros((16, 5))), linear_graph(MATRICES["b"], opset=17)],
    ids=["input size", "classes", "operator set"],
)
def test_members_that_differ_are_not_merged(other):
    with pytest.raises(ExportError, match="differ in input size, classes or operator set"):
        merge({"a": linear_graph(MATRICES["a"]), "b": other})


def test_a_merged_graph_that_onnx_refuses_is_not_returned(monkeypatch):
    monkeypatch.setattr(
        "export.merge.averaging_nodes",
        lambda *_: ([helper.make_node("Mean", ["no"], ["no2"])], []),
    )
    with pytest.raises(checker.ValidationError):
        merge({"a": linear_graph(MATRICES["a"])})


def test_a_merged_graph_whose_shapes_contradict_each_other_is_not_returned():
    model = linear_graph(MATRICES["a"])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    with pytest.raises(shape_inference.InferenceError):
        merge({"a": model})
