"""Rewriting: on random graphs of whole numbers, for which every order of summing gives the same, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from export.rewrite import _Rewriter as Rewriter
from export.rewrite import rewrite


class Builder:
    """A graph `images` (N, channels, size, size) of whole numbers, node by node."""

    def __init__(self, seed, channels, size, *, width=None):
        self.random = np.random.default_rng(seed)
        self.shape = [channels, size, width or size]
        self.nodes, self.weights = [], []

    def weight(self, *shape):
        """Whole numbers from -3 to 3."""
        return self.constant(self.random.integers(-3, 4, shape).astype(np.float32))

    def constant(self, value):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind, *inputs, output=None, **attributes):
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolution(self, source, channels, new, kernel, *, bias=True, **attributes):
        group = attributes.get("group", 1)
        inputs = [
            self.weight(new, channels // group, kernel, kernel),
            *([self.weight(new)] if bias else []),
        ]
        return self.node("Conv", source, *inputs, **attributes)

    def model(self, output, *axes):
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
            for name, shape in (("images", self.shape), (output, axes))
        ]
        graph = helper.make_graph(self.nodes, "random", ports[:1], ports[1:], self.weights)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
            producer_name="Builder",
        )
        model.producer_version = "7"
        checker.check_model(model, full_check=True)
        return model

    def answers(self, model, slices=3):
        images = np.random.default_rng(1).integers(-4, 5, (slices, *self.shape)).astype(np.float32)
        return ReferenceEvaluator(model).run(None, {"images": images})[0]


def kinds_of(model):
    return [node.op_type for node in model.graph.node]


def same(builder, model, changed):
    for slices in (1, 3):
        np.testing.assert_array_equal(
            builder.answers(changed, slices), builder.answers(model, slices)
        )


def conv_of(kernel, stride):
    return {"pads": [kernel // 2] * 4, "strides": [stride] * 2}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2]),
    channels=st.integers(1, 3),
    new=st.integers(1, 3),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
)
def test_a_convolution_on_one_or_four_pixels_becomes_products_of_exactly_the_same_function(
    seed, size, channels, new, kernel, stride
):
    builder = Builder(seed, channels, size)
    after = 1 if stride == 2 else size
    output = builder.convolution("images", channels, new, kernel, **conv_of(kernel, stride))
    model = builder.model(output, new, after, after)
    changed = rewrite(model)
    assert "Conv" not in kinds_of(changed)
    same(builder, model, changed)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2]),
    stride=st.sampled_from([1, 2]),
    keepdims=st.booleans(),
    axes=st.sampled_from([(2, 3), (3, 2), (-1, -2), (-2, 3)]),
)
def test_a_residual_block_with_its_mean_and_head_becomes_products_of_exactly_the_same_function(
    seed, size, stride, keepdims, axes
):
    builder = Builder(seed, 2, size)
    after = 1 if stride == 2 else size
    inner = builder.node("Relu", builder.convolution("images", 2, 3, 3, **conv_of(3, stride)))
    inner = builder.convolution(inner, 3, 2, 1, **conv_of(1, 1))
    around = builder.convolution("images", 2, 2, 1, **conv_of(1, stride))
    block = builder.node("Relu", builder.node("Add", inner, around))
    mean = builder.node(
        "ReduceMean", block, builder.constant(np.array(axes)), keepdims=int(keepdims)
    )
    flat = builder.node("Reshape", mean, builder.constant(np.array([-1, 2])))
    logits = builder.node("Gemm", flat, builder.weight(2, 5), builder.weight(5), output="logits")
    model = builder.model(logits, 5)
    changed = rewrite(model)
    kinds = kinds_of(changed)
    assert "Conv" not in kinds
    # on one pixel the mean and the reshape are nothing
    assert ("ReduceMean" in kinds) == (after == 2)
    same(builder, model, changed)


LEFT_ALONE = {
    "a map of 3x3": (3, 3, conv_of(3, 1)),
    "a map of 4x4": (4, 1, conv_of(1, 1)),
    "no padding": (3, 3, {}),
    "padding of a 1x1 kernel": (1, 1, {"pads": [1, 1, 1, 1]}),
    "uneven padding": (2, 3, {"pads": [1, 1, 0, 1]}),
    "a kernel of 5x5": (2, 5, {"pads": [2] * 4}),
    "a kernel of 2x2": (2, 2, {}),
    "a stride of 3": (2, 3, {"pads": [1] * 4, "strides": [3, 3]}),
    "dilation": (2, 1, {"dilations": [2, 2]}),
    "uneven stride": (2, 3, {"pads": [1] * 4, "strides": [1, 2]}),
    "uneven stride, the other way": (2, 1, {"strides": [2, 1]}),
    "groups": (2, 3, {"pads": [1] * 4, "group": 2}),
    "automatic padding": (2, 1, {"auto_pad": "SAME_UPPER"}),
    "no bias": (1, 3, {"pads": [1] * 4, "bias": False}),
}


@pytest.mark.parametrize("size, kernel, attributes", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_another_convolution_is_left_alone(size, kernel, attributes):
    builder = Builder(3, 2, size)
    output = builder.convolution("images", 2, 2, kernel, **attributes)
    builder.node("Relu", output, output="logits")
    model = builder.model("logits", *[None] * 3)
    changed = rewrite(model)
    assert kinds_of(changed) == ["Conv", "Relu"]
    same(builder, model, changed)


def test_a_map_that_is_not_square_is_left_alone():
    builder = Builder(3, 2, 1, width=2)
    output = builder.convolution("images", 2, 2, 1)
    model = builder.model(output, 2, 1, 2)
    changed = rewrite(model)
    assert kinds_of(changed) == ["Conv"]
    same(builder, model, changed)


def test_a_map_of_a_free_size_is_left_alone():
    builder = Builder(3, 2, 2)
    output = builder.convolution("images", 2, 3, 3, **conv_of(3, 1))
    model = builder.model(output, 3, 2, 2)
    for port in (model.graph.input[0], model.graph.output[0]):
        for axis, name in zip(port.type.tensor_type.shape.dim[2:], "HW", strict=True):
            axis.dim_param = name
    changed = rewrite(model)
    assert kinds_of(changed) == ["Conv"]
    same(builder, model, changed)


def test_a_map_that_other_nodes_take_is_laid_out_as_before_once():
    builder = Builder(4, 2, 2)
    output = builder.convolution("images", 2, 3, 3, **conv_of(3, 1))
    highest = builder.node("MaxPool", output, kernel_shape=[2, 2])
    lowest = builder.node("AveragePool", output, kernel_shape=[2, 2])
    builder.node("Add", builder.node("Add", highest, lowest), output, output="logits")
    model = builder.model("logits", 3, 2, 2)
    changed = rewrite(model)
    # one of the input to rows, one of the rows to the map that three nodes take
    assert kinds_of(changed).count("Transpose") == 2
    assert [kind for kind in kinds_of(changed) if kind in ("MaxPool", "AveragePool", "Add")] == [
        "MaxPool", "AveragePool", "Add", "Add",
    ]  # fmt: skip
    same(builder, model, changed)


@pytest.mark.parametrize(
    "axes, shape", [((1, 2), (1,)), ((2,), (3, 1)), ((1, 2, 3), ()), ((-1,), (3, 1))]
)
def test_a_mean_over_other_axes_than_the_map_is_left_alone(axes, shape):
    builder = Builder(5, 2, 1)
    output = builder.convolution("images", 2, 3, 1)
    builder.node(
        "ReduceMean", output, builder.constant(np.array(axes)), keepdims=0, output="logits"
    )
    model = builder.model("logits", *shape)
    changed = rewrite(model)
    assert "ReduceMean" in kinds_of(changed)
    same(builder, model, changed)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3)])
def test_a_reshape_to_more_than_a_row_a_slice_is_left_alone(shape):
    builder = Builder(6, 2, 1)
    output = builder.convolution("images", 2, 3, 1)
    builder.node("Reshape", output, builder.constant(np.array([-1, *shape])), output="logits")
    model = builder.model("logits", *shape)
    changed = rewrite(model)
    assert kinds_of(changed).count("Reshape") >= 2
    same(builder, model, changed)


def test_a_reshape_to_a_computed_row_a_slice_is_nothing_on_one_pixel():
    builder = Builder(6, 2, 1)
    output = builder.convolution("images", 2, 3, 1)
    shape = builder.node(
        "Concat", builder.constant(np.array([-1])), builder.constant(np.array([3])), axis=0
    )
    builder.node(
        "Gemm", builder.node("Reshape", output, shape), builder.weight(3, 4), output="logits"
    )
    model = builder.model("logits", 4)
    changed = rewrite(model)
    # that of the input, to rows
    assert kinds_of(changed).count("Reshape") == 1
    same(builder, model, changed)


def test_a_kernel_that_is_not_square_is_left_alone():
    builder = Builder(6, 2, 2)
    kernel, bias = builder.weight(3, 2, 3, 1), builder.weight(3)
    builder.node("Conv", "images", kernel, bias, pads=[1, 1, 1, 1], output="logits")
    model = builder.model("logits", 3, 2, 4)
    changed = rewrite(model)
    assert kinds_of(changed) == ["Conv"]
    same(builder, model, changed)


def test_a_reshape_of_2x2_pixels_is_left_alone():
    builder = Builder(6, 2, 2)
    output = builder.convolution("images", 2, 3, 1)
    builder.node("Reshape", output, builder.constant(np.array([-1, 12])), output="logits")
    model = builder.model("logits", 12)
    same(builder, model, rewrite(model))


@pytest.mark.parametrize("size", [1, 2])
def test_a_small_map_at_the_end_keeps_its_name_and_shape(size):
    builder = Builder(7, 2, size)
    output = builder.convolution("images", 2, 3, 1)
    builder.node("Relu", output, output="logits")
    model = builder.model("logits", 3, size, size)
    changed = rewrite(model)
    assert [port.name for port in changed.graph.output] == ["logits"]
    # a convolution that names neither stride nor padding has strides of 1 and no padding
    assert "Conv" not in kinds_of(changed)
    same(builder, model, changed)


@pytest.mark.parametrize("stride, blocks", [(1, 16), (2, 4)])
def test_a_kernel_on_2x2_pixels_holds_the_taps_that_meet_the_map_and_no_other(stride, blocks):
    builder = Builder(8, 2, 2)
    after = 2 // stride
    model = builder.model(
        builder.convolution("images", 2, 3, 3, **conv_of(3, stride)), 3, after, after
    )
    weights = {t.name: numpy_helper.to_array(t) for t in rewrite(model).graph.initializer}
    matrix = next(value for value in weights.values() if value.ndim == 2)
    assert matrix.dtype == np.float32 and matrix.size == blocks * 2 * 3


def test_a_rewritten_graph_carries_what_the_graph_said_of_itself_and_only_tensors_that_are_used():
    builder = Builder(9, 2, 1)
    model = builder.model(builder.convolution("images", 2, 3, 3, **conv_of(3, 1)), 3, 1, 1)
    before = model.SerializeToString()
    changed = rewrite(model)
    assert model.SerializeToString() == before
    assert (changed.producer_name, changed.producer_version) == ("Builder", "7")
    assert (changed.ir_version, changed.opset_import) == (model.ir_version, model.opset_import)
    assert changed.graph.name == "random" and changed.graph.input == model.graph.input
    used = {name for node in changed.graph.node for name in node.input}
    assert {tensor.name for tensor in changed.graph.initializer} <= used


def test_a_rewritten_graph_whose_shapes_contradict_each_other_is_not_returned(monkeypatch):
    builder = Builder(9, 2, 2)
    model = builder.model(builder.convolution("images", 2, 3, 3, **conv_of(3, 1)), 3, 2, 2)
    real = Rewriter.reshape
    monkeypatch.setattr(
        Rewriter, "reshape", lambda self, name, *shape: real(self, name, *shape[:-1], 5)
    )
    with pytest.raises(shape_inference.InferenceError):
        rewrite(model)


def test_a_rewritten_graph_that_onnx_refuses_is_not_returned(monkeypatch):
    builder = Builder(9, 2, 1)
    model = builder.model(builder.convolution("images", 2, 3, 3, **conv_of(3, 1)), 3, 1, 1)
    monkeypatch.setattr(Rewriter, "add", lambda self, *_, **attributes: "nowhere")
    with pytest.raises(checker.ValidationError, match="nowhere"):
        rewrite(model)
