"""Parity: a graph that differs from the network at batch 1 alone, or beyond the first batch alone, is refused."""

import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from export import average, member
from export.member import (
    ExportError,
    check_logits,
    compare,
    export_member,
    open_session,
    to_onnx,
    write_model,
)
from export.merge import check_merged, merge
from export.triton import TritonError, _averaging_graph
from export.variants import Slices, make_variants
from organ_infer.engine.cpu_count import usable_processors
from tests.support.tiny_graphs import SIZE, bright_pixels, linear_graph, packed, softmax

BATCH = 256
# two batches of 256 and a rest, classes in turn
LABELS = np.arange(600) % 5
SLICES = bright_pixels(*((label,) for label in LABELS))
MATRIX = np.random.default_rng(2).normal(size=(16, 5)).astype(np.float32)


class Linear(nn.Module):
    """The network of `linear_graph(MATRIX)`."""

    def forward(self, x):
        return x.flatten(1) @ torch.from_numpy(MATRIX)


def compared(model, slices=SLICES, labels=LABELS):
    return compare(Linear(), model.SerializeToString(), slices, labels, size=SIZE, name="m")


def differing_at(place):
    """Slices of which the one at `place` has pixel 15 white, and a matrix that answers otherwise for it alone."""
    slices = SLICES.copy()
    slices[place, 3, 3] = 255
    matrix = MATRIX.astype(np.float64)
    # pixel 15 is -1 in every other slice
    bias = 0.01
    matrix[15] += bias
    return slices, linear_graph(matrix, bias)


def test_the_same_network_passes_with_its_accuracy_over_every_batch():
    expected = packed(SLICES) @ MATRIX.astype(np.float64)
    parity = compared(linear_graph(MATRIX, 5e-5))
    assert parity.slices == 600 and parity.max_abs == pytest.approx(5e-5, rel=0.05)
    np.testing.assert_allclose(parity.logits, expected + 5e-5, atol=1e-5)
    assert parity.accuracy == (expected.argmax(1) == LABELS).mean()
    assert 0 < parity.accuracy < 1


def test_a_graph_that_differs_at_batch_1_alone_is_refused():
    model = linear_graph(MATRIX, added=0.5)
    with pytest.raises(
        ExportError, match=r"m at batch 1: logits differ from PyTorch's by 5\.00e-01"
    ):
        compared(model)


def test_a_graph_that_differs_at_batch_256_alone_is_refused():
    """The batch that the docstring of `export_member` names."""
    with pytest.raises(ExportError, match=r"m: logits differ from PyTorch's by 5\.00e-01"):
        compared(linear_graph(MATRIX, added=0.5, at_batch=256))


@pytest.mark.parametrize("place", [0, 255, 256, 511, 512, 599])
def test_a_graph_that_differs_for_one_slice_of_any_batch_is_refused(place):
    slices, model = differing_at(place)
    with pytest.raises(ExportError, match=r"m: logits differ from PyTorch's by 2\.00e-02"):
        compared(model, slices)


def test_the_limit_of_a_logit_is_the_documented_one():
    """A ten-thousandth, of float32 logits of some units; the rounding of sums in another order stays far below."""
    expected = np.array([[1.0, 0.0]], np.float32)
    check_logits(expected, expected + np.float32(0.99e-4), name="m")
    with pytest.raises(ExportError, match=r"at most 1\.0e-04 is allowed"):
        check_logits(expected, expected - np.float32(1.01e-4), name="m")
    check_logits(np.zeros((1, 2), np.float32), np.full((1, 2), 2.0**-14, np.float32), name="m")


def test_the_limit_follows_the_largest_logit_of_the_network():
    """float32 rounds relative to the size of a number."""
    expected = np.array([[1.0, 0.0], [-20.0, 3.0]], np.float32)
    found = expected.copy()
    found[0, 0] += 1.99e-3
    check_logits(expected, found, name="m")
    found[0, 0] = 1 + 2.01e-3
    with pytest.raises(ExportError, match=r"by 2\.01e-03, at most 2\.0e-03 is allowed"):
        check_logits(expected, found, name="m")


def test_a_limit_is_met_exactly():
    expected = np.array([[1.0, 0.0]], np.float32)
    check_logits(expected, expected + np.float32(0.25), name="m", accepted=0.25)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_whose_own_logits_are_not_finite_is_refused(value):
    with pytest.raises(ExportError, match="m: in PyTorch it returns NaN or infinite logits"):
        check_logits(np.full((1, 2), value, np.float32), np.zeros((1, 2), np.float32), name="m")


def test_the_limit_at_batch_1_is_that_of_all_slices():
    """The first slice alone may have small logits."""
    slices = SLICES.copy()
    slices[0] = 128  # nearly zero when packed
    largest = np.abs(packed(slices) @ MATRIX).max()
    added = 0.9e-4 * largest
    assert added > 1.1e-4 * max(1, np.abs(packed(slices[:1]) @ MATRIX).max())
    compared(linear_graph(MATRIX, added=added), slices)


@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3, 3)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(
        ExportError, match=rf"m: the exported graph returns \({shape[0]}, {shape[1]}\), PyTorch"
    ):
        check_logits(np.zeros((4, 3), np.float32), np.zeros(shape, np.float32), name="m")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_logit_that_is_not_finite_is_refused(value):
    expected = np.zeros((4, 3), np.float32)
    found = expected.copy()
    found[3, 2] = value
    with pytest.raises(ExportError, match="m: the exported graph returns NaN or infinite logits"):
        check_logits(expected, found, name="m")


def test_a_network_is_compared_as_it_answers_and_the_caller_s_keeps_training(tmp_path, monkeypatch):
    class Noisy(Linear):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(super().forward(x))

    monkeypatch.setattr(member, "to_onnx", lambda network, size: linear_graph(MATRIX))
    network = Noisy().train()
    file = tmp_path / "deep" / "er" / "m.onnx"
    export_member(network, file, SLICES[:3], LABELS[:3])
    assert network.training and network.drop.training
    assert onnx.load(file) == linear_graph(MATRIX)
    assert [path.name for path in file.parent.iterdir()] == ["m.onnx"]


def test_slices_of_another_size_are_resampled_to_the_network_s(tmp_path, monkeypatch):
    asked = []

    def exported(network, size):
        asked.append(size)
        return linear_graph(MATRIX)

    monkeypatch.setattr(member, "to_onnx", exported)
    large = np.kron(SLICES[:3], np.ones((2, 2), np.uint8))
    parity = export_member(Linear(), tmp_path / "m.onnx", large, LABELS[:3], size=SIZE)
    np.testing.assert_allclose(
        parity.logits, packed(SLICES[:3]) @ MATRIX.astype(np.float64), atol=1e-5
    )
    export_member(Linear(), tmp_path / "m.onnx", SLICES[:3], LABELS[:3])
    assert asked == [SIZE, SIZE]


class Program:
    """What torch.onnx.export returns."""

    def __init__(self, model):
        self.model = model

    def save(self, file, *, external_data):
        assert not external_data
        file.write(self.model.SerializeToString())


def test_operators_of_another_domain_are_not_exported(monkeypatch):
    model = linear_graph(MATRIX)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: Program(model))
    # an operator set that no node uses is dropped
    assert [entry.domain for entry in to_onnx(Linear(), SIZE).opset_import] == [""]
    model.graph.node.append(
        helper.make_node("Gelu", ["logits"], ["unused"], domain="com.microsoft")
    )
    with pytest.raises(
        ExportError, match=r"operators of \['com\.microsoft'\] are not standard; build"
    ):
        to_onnx(Linear(), SIZE)


def test_the_exporter_s_notes_of_this_machine_are_removed(monkeypatch):
    model = linear_graph(MATRIX)
    graph = model.graph
    graph.value_info.add(name="pixels").type.CopyFrom(graph.output[0].type)
    graph.value_info[0].type.tensor_type.shape.dim[1].dim_value = 16
    places = (
        model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
        *graph.value_info,
    )
    for place in places:
        place.doc_string = "/home/someone/network.py"
        place.metadata_props.add(key="stack", value="/home/someone/network.py")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: Program(model))
    assert b"someone" in model.SerializeToString()
    assert b"someone" not in to_onnx(Linear(), SIZE).SerializeToString()


def test_a_graph_that_onnx_refuses_is_not_exported(monkeypatch):
    model = linear_graph(MATRIX)
    model.graph.node[1].input[0] = "nowhere"
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: Program(model))
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        to_onnx(Linear(), SIZE)


def test_a_graph_whose_shapes_contradict_each_other_is_not_exported(monkeypatch):
    model = linear_graph(MATRIX)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: Program(model))
    with pytest.raises(onnx.shape_inference.InferenceError):
        to_onnx(Linear(), SIZE)


def test_a_network_is_exported_as_it_wishes_to_be(monkeypatch):
    exported = []

    def export(network, arguments, **options):
        exported.append((network, network.training, arguments[0].shape, options))
        return Program(linear_graph(MATRIX))

    monkeypatch.setattr(torch.onnx, "export", export)
    plain, wishes = Linear(), Linear()
    wishes.for_export = lambda: plain
    to_onnx(wishes.train(), SIZE)
    to_onnx(wishes.for_export().train(), SIZE)
    assert [(network, training) for network, training, _, _ in exported] == [(plain, False)] * 2
    _, _, shape, options = exported[0]
    # two slices: torch.export takes an axis of one for a fixed one
    assert list(shape) == [2, 1, 4, 4]
    assert (options["dynamo"], options["opset_version"], options["external_data"]) == (
        True,
        18,
        False,
    )
    assert options["verbose"] is False
    assert (options["input_names"], options["output_names"]) == (["images"], ["logits"])
    assert list(options["dynamic_shapes"][0]) == [0]


def test_a_file_that_cannot_be_written_leaves_nothing_and_names_the_reason(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        ExportError, match=r"m\.onnx: cannot be written \(No space left on device\)"
    ):
        write_model(linear_graph(MATRIX), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ExportError, match=r"m\.onnx: cannot be written \(Permission denied\)"):
        write_model(linear_graph(MATRIX), tmp_path / "m.onnx")


def test_a_file_is_whole_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    model, synced, real = linear_graph(MATRIX), [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))

    def replaced(source, target):
        assert synced == [model.ByteSize()]
        real(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    write_model(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == model


def test_what_an_export_needs_and_is_missing_is_named_with_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ExportError, match=r"for training and export: pip install -e '\.\[train,cpu\]'"
    ):
        member.check_installed()


def test_a_session_takes_the_processors_it_may_use_and_does_not_spin():
    options = open_session(linear_graph(MATRIX).SerializeToString()).get_session_options()
    assert options.intra_op_num_threads == usable_processors() and options.inter_op_num_threads == 1
    # errors alone
    assert options.log_severity_level == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_rewritten_graph_that_differs_at_batch_1_alone_is_refused(monkeypatch):
    monkeypatch.setattr("export.variants.rewrite", lambda model: linear_graph(MATRIX, added=0.5))
    slices = Slices(SLICES, SLICES, LABELS, SIZE)
    with pytest.raises(
        ExportError, match=r"base rewritten, at batch 1: logits differ .* 5\.00e-01"
    ):
        make_variants("base", linear_graph(MATRIX), slices, ("fp32",))


@pytest.mark.parametrize("place", [0, 300, 599])
def test_a_rewritten_graph_that_differs_for_one_slice_of_any_batch_is_refused(place, monkeypatch):
    slices, other = differing_at(place)
    monkeypatch.setattr("export.variants.rewrite", lambda model: other)
    with pytest.raises(ExportError, match=r"base rewritten: logits differ .* 2\.00e-02"):
        make_variants("base", linear_graph(MATRIX), Slices(slices, slices, LABELS, SIZE), ("fp32",))


# The merged graph and Triton's averaging graph.


def test_a_merged_graph_that_differs_at_batch_1_alone_is_refused():
    """The slice of batch 1 is the first of a full batch too, in which it is right."""
    matrix = np.zeros((16, 5))
    expected = np.full((600, 5), 0.2)
    check_merged(merge({"a": linear_graph(matrix)}), expected, SLICES, SIZE)
    wrong = linear_graph(np.zeros((16, 5)), 0.2, added=0.5, output="probabilities")
    with pytest.raises(ExportError, match=r"differ from the members' mean by 5\.00e-01"):
        check_merged(wrong, expected, SLICES, SIZE)


@pytest.mark.parametrize("place", [0, 255, 256, 512, 599])
def test_a_merged_graph_that_differs_for_one_slice_of_any_batch_is_refused(place):
    model = merge({"a": linear_graph(MATRIX)})
    expected = softmax(packed(SLICES) @ MATRIX.astype(np.float64))
    check_merged(model, expected, SLICES, SIZE)
    expected[place, 2] += 1.1e-4
    with pytest.raises(ExportError, match=r"differ from the members' mean by 1\.1"):
        check_merged(model, expected, SLICES, SIZE)


def test_the_limit_of_a_merged_graph_is_met_exactly(monkeypatch):
    monkeypatch.setattr("export.merge.MAX_ABS", 0.25)
    model = merge({"a": linear_graph(np.zeros((16, 4)))})
    check_merged(model, np.zeros((600, 4)), SLICES, SIZE)


def test_a_merged_graph_that_gives_nan_is_refused():
    model = merge({"a": linear_graph(MATRIX, np.nan)})
    with pytest.raises(ExportError, match="differ from the members' mean by nan"):
        check_merged(model, np.full((600, 5), 0.2), SLICES, SIZE)


def spoil_mean(monkeypatch, batch, amount):
    """The averaging graph gives `amount` too much at this batch size."""
    real = average.averaging_nodes

    def spoiled(answers, temperature, *_):
        nodes, weights = real(answers, temperature)
        nodes[-1].output[0] = "right"
        weights += [
            helper.make_tensor("count", TensorProto.INT64, [], [batch]),
            helper.make_tensor("first", TensorProto.INT64, [], [0]),
            helper.make_tensor("extra", TensorProto.FLOAT, [], [amount]),
            helper.make_tensor("none", TensorProto.FLOAT, [], [0.0]),
        ]
        nodes += [
            helper.make_node("Shape", ["right"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["slices"]),
            helper.make_node("Equal", ["slices", "count"], ["here"]),
            helper.make_node("Where", ["here", "extra", "none"], ["added"]),
            helper.make_node("Add", ["right", "added"], ["probabilities"]),
        ]
        return nodes, weights

    monkeypatch.setattr(average, "averaging_nodes", spoiled)


@pytest.mark.parametrize("batch", [1, 64])
def test_an_averaging_graph_that_differs_from_numpy_at_either_batch_is_refused(batch, monkeypatch):
    _averaging_graph({"a": "logits", "b": "probabilities"}, 3, 1.5)
    spoil_mean(monkeypatch, batch, 3e-5)
    with pytest.raises(TritonError, match=r"probabilities differ from NumPy's by 3\.\de-05"):
        _averaging_graph({"a": "logits", "b": "probabilities"}, 3, 1.5)


def test_the_limit_of_the_averaging_graph_is_met_exactly(monkeypatch):
    """Of one class the probability is 1, and 2 is 1 too much."""
    spoil_mean(monkeypatch, 64, 1.0)
    monkeypatch.setattr("export.triton.MAX_ABS", 1.0)
    _averaging_graph({"a": "logits"}, 1, 1.0)
    monkeypatch.setattr("export.triton.MAX_ABS", 0.99)
    with pytest.raises(TritonError, match="differ from NumPy's by 1"):
        _averaging_graph({"a": "logits"}, 1, 1.0)
