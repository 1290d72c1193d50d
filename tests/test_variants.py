"""Variants of a member: rewriting that changes nothing, fewer bits up to an accuracy limit, one graph of several."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export import variants
from export.bundle import Trained, write_bundle
from export.bundle_info import BundleInfo
from export.member import ExportError, to_onnx
from export.merge import check_merged, merge
from export.quantize import to_int8
from export.rewrite import rewrite
from export.variants import PRECISIONS, Slices, make_variants
from organ_infer import OrganClassifier
from organ_infer._packing import pack
from organ_infer.bundle.files import read_manifest
from organ_infer.bundle.golden import golden_answers, golden_slices
from tests.support.tiny_graphs import accept_every_variant
from tests.test_export import CLASSES, network_of

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (96, 28, 28), dtype=np.uint8)
# four by four blocks, so that the pixels of a small map differ and no tap can stand for another
BLOCKS = np.kron(RNG.integers(0, 256, (7, 4, 4), dtype=np.uint8), np.ones((7, 7), np.uint8))


def answers(model, images=IMAGES, output="logits"):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run([output], {"images": pack(images, 28)})[0]


class Block(nn.Module):
    """A residual block's shapes on a map of `size` pixels: 1x1, 3x3 of a stride, 1x1, and the way around."""

    def __init__(self, size, stride):
        super().__init__()
        self.pool = nn.AvgPool2d(28 // size)
        self.stem = nn.Conv2d(1, 8, 1)
        self.conv1, self.conv2 = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, stride=stride, padding=1)
        self.conv3, self.around = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1, stride=stride)
        self.head = nn.Linear(8, 11)
        for layer in (self.conv1, self.conv2, self.conv3, self.around):
            nn.init.normal_(
                layer.weight
            )  # wide enough that ReLU tells the pixels apart, which their mean does not

    def forward(self, x):
        x = torch.relu(self.stem(self.pool(x)))
        y = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(torch.relu(self.conv3(y) + self.around(x)).mean((2, 3)))


@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_rewriting_changes_no_answer(size, stride):
    with torch.random.fork_rng():
        torch.manual_seed(size)
        model = to_onnx(Block(size, stride).eval(), 28)
    changed = rewrite(model)
    convolutions = [node for node in changed.graph.node if node.op_type == "Conv"]
    # stem, conv1, conv2, conv3, around; from 4x4 with stride 2, conv3 works on 2x2
    assert len(convolutions) == {1: 0, 2: 0, 4: 4 if stride == 2 else 5}[size]
    for batch in (1, 7):
        np.testing.assert_allclose(
            answers(changed, BLOCKS[:batch]), answers(model, BLOCKS[:batch]), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_a_resnet_loses_its_dead_taps():
    model = to_onnx(network_of("resnet50").eval(), 28)
    before = model.ByteSize()
    changed = rewrite(model)
    assert model.ByteSize() == before  # the input is not changed
    # layer3: five kernels of 9 taps as 16 blocks; layer4: 5/9 of the first kernel and 8/9 of two meet padding alone
    blocks = 5 * 7 * 256 * 256 - 21 * 512 * 512
    assert changed.ByteSize() - before == pytest.approx(4 * blocks, rel=0.01)
    np.testing.assert_allclose(answers(changed), answers(model), rtol=1e-4, atol=1e-5)


def test_a_graph_without_small_maps_is_as_it_was():
    model = to_onnx(network_of("big_batch_norm").eval(), 28)
    changed = rewrite(model)
    assert [node.op_type for node in changed.graph.node] == [
        node.op_type for node in model.graph.node
    ]
    assert np.array_equal(answers(changed), answers(model))


@pytest.fixture(scope="module")
def member():
    """A small network whose answers are far apart, and slices with its own answers as labels."""
    network = network_of("small").eval()
    with torch.no_grad():
        network.head.weight.mul_(20)
    model = to_onnx(network, 28)
    images = RNG.integers(0, 256, (400, 28, 28), dtype=np.uint8)
    top = np.sort(answers(model, images), axis=1)
    images = images[
        np.argsort(top[:, -2] - top[:, -1])[:100]
    ]  # the answers that half precision cannot change
    return model, Slices(images, images, answers(model, images).argmax(1), 28)


@pytest.mark.parametrize("right", ["int8", "fp32"])
def test_int8_is_taken_where_validation_allows(member, right):
    """The labels are the answers of int8, or of float32, which differ for more than one slice in a hundred."""
    model, slices = member
    val = np.random.default_rng(6).integers(0, 256, (400, 28, 28), dtype=np.uint8)
    quantized = to_int8(rewrite(model), pack(slices.train, 28))
    answered = {"fp32": answers(model, val).argmax(1), "int8": answers(quantized, val).argmax(1)}
    assert (answered["fp32"] != answered["int8"]).mean() > 0.01
    judged = Slices(slices.train, val, answered[right], 28)
    accepted_variants = make_variants("small", model, judged, ("int8",), report=lambda line: None)
    assert [variant.precision for variant in accepted_variants] == (
        ["int8", "fp32"] if right == "int8" else ["fp32"]
    )
    for variant in accepted_variants:
        assert variant.val_accuracy == (answered[variant.precision] == answered[right]).mean()


def test_fp16_is_taken_where_validation_allows_and_keeps_its_ports_in_float32(member):
    model, slices = member
    lines = []
    accepted_variants = {
        variant.precision: variant
        for variant in make_variants("small", model, slices, ("fp16",), report=lines.append)
    }
    assert accepted_variants["fp32"].val_accuracy == accepted_variants["fp16"].val_accuracy == 1
    assert lines == ["small: fp16 accepted, validation accuracy 1.0000, fp32 1.0000"]
    half = onnx.load_from_string(accepted_variants["fp16"].content)
    assert {onnx.TensorProto.FLOAT16} == {
        t.data_type for t in half.graph.initializer if len(t.dims) > 1
    }
    assert [
        port.type.tensor_type.elem_type for port in (*half.graph.input, *half.graph.output)
    ] == [1, 1]


def test_int8_weights_keep_seven_bits_and_a_scale_a_channel(member, monkeypatch):
    model, slices = member
    accept_every_variant(monkeypatch)
    listed = make_variants("small", model, slices, report=lambda line: None)[0]
    assert listed.precision == "int8"  # the one in use on a CPU
    graph = onnx.load_from_string(listed.content).graph
    kernels = [
        numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8
    ]
    wide = [kernel for kernel in kernels if kernel.ndim > 1]
    assert len(wide) == 5 and all(np.abs(kernel.astype(int)).max() <= 64 for kernel in wide)
    assert any(
        len(t.dims) == 1 and t.dims[0] == 16 for t in graph.initializer if t.name.endswith("_scale")
    )


def test_a_variant_that_loses_accuracy_is_left_out_and_reported(member, monkeypatch):
    model, slices = member
    real = variants.to_int8

    def spoiled(graph, samples):
        quantized = real(graph, samples)
        for tensor in quantized.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2:
                tensor.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name)
                )
        return quantized

    monkeypatch.setattr(variants, "to_int8", spoiled)
    lines = []
    accepted_variants = make_variants("small", model, slices, report=lines.append)
    assert [variant.precision for variant in accepted_variants] == ["fp32", "fp16"]
    assert lines[0].startswith("small: int8 not accepted, validation accuracy 0.")


def test_a_variant_that_cannot_be_converted_is_reported(member, monkeypatch):
    def fails(graph, samples):
        raise ValueError("no such\nkernel")

    monkeypatch.setattr(variants, "to_int8", fails)
    lines = []
    accepted_variants = make_variants("small", *member, ("int8", "fp32"), report=lines.append)
    assert [variant.precision for variant in accepted_variants] == ["fp32"] and lines == [
        "small: no int8 variant: no such kernel"
    ]


def test_a_bundle_lists_the_variants_and_the_runtime_uses_the_first(member, tmp_path, monkeypatch):
    model, slices = member
    accept_every_variant(monkeypatch)
    onnx.save(model, tmp_path / "member.onnx")
    bundle = write_bundle(
        tmp_path / "bundle",
        BundleInfo(
            name="organamnist-base",
            dataset="organamnist",
            view="axial",
            classes=CLASSES,
            size=28,
            metrics={"val": {"accuracy": 1.0}},
            training={"seed": 1},
        ),
        [Trained("base", tmp_path / "member.onnx")],
        slices,
        report=lambda line: None,
    )
    listed = json.loads((bundle / "manifest.json").read_text())["members"][0]
    entries = [listed, *listed["alternatives"]]
    assert [entry["file"] for entry in entries] == ["base.int8.onnx", "base.onnx", "base.fp16.onnx"]
    assert [entry["precision"] for entry in entries] == ["int8", "fp32", "fp16"]
    assert "`base` int8 " in (bundle / "MODEL_CARD.md").read_text()
    with OrganClassifier(bundle, device="cpu") as classifier:
        assert [variant.precision for variant in classifier.manifest.variants("cuda")] == ["fp16"]
        found = classifier.predict_proba(slices.val).argmax(1)
    assert (found == slices.labels).mean() == listed["val_accuracy"]
    manifest = read_manifest(bundle)
    on_cpu, on_cuda = (golden_answers(manifest, device) for device in ("cpu", "cuda"))
    assert on_cpu.shape == on_cuda.shape == (16, 11) and not np.array_equal(on_cpu, on_cuda)
    with OrganClassifier(bundle, device="cpu") as classifier:
        np.testing.assert_allclose(classifier.predict_proba(golden_slices()), on_cpu, atol=1e-5)
    assert "seal" in json.loads((bundle / "manifest.json").read_text())["training"]


def test_the_runtime_knows_every_precision():
    from organ_infer.bundle.precision import BY_NAME

    assert PRECISIONS.keys() == BY_NAME.keys()
    assert [name for name, row in PRECISIONS.items() if row.convert is None] == ["fp32"]
    suffixes = [row.file_suffix for row in PRECISIONS.values()]
    assert len(suffixes) == len(set(suffixes))


def test_a_graph_that_ends_in_a_small_map_keeps_its_name():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(1, 11, 1)

        def forward(self, x):
            return self.head(nn.functional.avg_pool2d(x, 28)).flatten(1)

    model = to_onnx(Head().eval(), 28)
    np.testing.assert_allclose(answers(rewrite(model)), answers(model), atol=1e-6)


def test_the_merged_graph_gives_the_mean_of_the_softmax():
    models = {
        "a": to_onnx(network_of("small").eval(), 28),
        "b": to_onnx(network_of("big_batch_norm").eval(), 28),
    }
    expected = []
    for model in models.values():
        z = answers(model).astype(np.float64) / 2
        z = np.exp(z - z.max(1, keepdims=True))
        expected.append(z / z.sum(1, keepdims=True))
    merged = merge(models, temperature=2.0)
    found = answers(merged, output="probabilities")
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-6)
    check_merged(merged, np.mean(expected, axis=0), IMAGES, 28)
    with pytest.raises(ExportError, match=r"differ from the members' mean by 1\.0"):
        check_merged(merged, np.mean(expected, axis=0) + 1, IMAGES, 28)
    other = to_onnx(network_of("small").eval(), 28)
    other.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 10
    with pytest.raises(
        ExportError, match="the networks differ in input size, classes or operator set"
    ):
        merge({"a": models["a"], "b": other})
