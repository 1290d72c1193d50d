"""Export: parity with PyTorch, what stops it, and the bundle that comes out."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES
from torch import nn

from export import member
from export.bundle import Trained, check_place, paired, write_bundle
from export.bundle_info import ORIENTATION, BundleInfo
from export.member import ExportError, check_logits, export_member, to_onnx
from export.model_card import model_card
from export.variants import Slices
from train.networks import make_network

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (300, 28, 28), dtype=np.uint8)
LABELS = RNG.integers(0, 11, 300)


def network_of(name="big_batch_norm"):
    network = make_network(name, classes=11, size=28, seed=1)
    for module in network.modules():  # running statistics as after training
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize(
    "name", ["small", "big_batch_norm", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_the_exported_file_is_the_network(name, tmp_path):
    network = network_of(name)
    network.train()
    images = IMAGES if name != "resnet50" else IMAGES[:40]
    labels = LABELS[: len(images)]
    parity = export_member(network, tmp_path / "member.onnx", images, labels)
    assert network.training  # the caller's network is as it was
    assert parity.slices == len(images) and parity.max_abs <= 1e-4
    assert parity.accuracy == (parity.logits.argmax(1) == labels).mean()
    model = onnx.load(tmp_path / "member.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import] == [""]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param and [d.dim_value for d in shape][1:] == [1, 28, 28]
    assert not any(tensor.data_location for tensor in model.graph.initializer)


def test_the_exported_file_tells_nothing_of_where_it_was_made(tmp_path):
    content = to_onnx(network_of("small").eval(), 28).SerializeToString()
    assert b".py" not in content and b'File "' not in content


def test_a_graph_that_differs_stops_the_export_and_writes_nothing(tmp_path, monkeypatch):
    real = member.to_onnx

    def changed(network, size):
        with torch.no_grad():
            network.head.bias[3] += 0.001
        model = real(network, size)
        with torch.no_grad():
            network.head.bias[3] -= 0.001
        return model

    monkeypatch.setattr(member, "to_onnx", changed)
    with pytest.raises(
        ExportError,
        match=r"member: logits differ from PyTorch's by 1\.\d+e-03, at most 1.0e-04 is allowed",
    ):
        export_member(network_of("small"), tmp_path / "member.onnx", IMAGES, LABELS)
    assert not list(tmp_path.iterdir())


def test_logits_are_compared():
    expected = np.array([[1.0, 0.99999, 0.0], [0.0, 1.0, 0.5]], np.float32)
    tie = expected.copy()
    tie[0, :2] = [0.99998, 1.00001]
    check_logits(expected, tie, name="m")
    with pytest.raises(ExportError, match="NaN"):
        check_logits(expected, np.full_like(expected, np.nan), name="m")
    with pytest.raises(ExportError, match=r"returns \(2, 2\), PyTorch \(2, 3\)"):
        check_logits(expected, expected[:, :2], name="m")


@cache
def exported_small():
    """The content of the small network's file, exported once."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "member.onnx"
        export_member(network_of("small"), path, IMAGES, LABELS)
        return path.read_bytes()


def written(tmp_path, **changes):
    if not (tmp_path / "member.onnx").exists():
        (tmp_path / "member.onnx").write_bytes(exported_small())
    facts = {
        "dataset": "organamnist",
        "view": "axial",
        "classes": CLASSES,
        "size": 28,
        "metrics": {"val": {"accuracy": 0.5, "auc": None, "ece": 0.1}},
        "training": {"seed": 1, "data_md5": "0" * 32, "weights": "none", "versions": {}},
        "name": "organamnist-base",
    }
    return write_bundle(
        tmp_path / "bundle",
        BundleInfo(**(facts | changes)),
        [Trained("base", tmp_path / "member.onnx")],
        Slices(IMAGES, IMAGES, LABELS, 28),
        precisions=("fp32",),
    )


def test_a_bundle_opens_and_says_what_it_is(tmp_path):
    bundle = written(tmp_path)
    assert sorted(p.name for p in bundle.iterdir()) == [
        "MODEL_CARD.md",
        "base.onnx",
        "manifest.json",
    ]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["task"]["classes"] == CLASSES and manifest["input"]["orientation"] == ["L", "P"]
    assert manifest["task"]["paired"] == [
        ["femur-left", "femur-right"], ["kidney-left", "kidney-right"], ["lung-left", "lung-right"],
    ]  # fmt: skip
    assert manifest["members"][0]["bytes"] == (bundle / "base.onnx").stat().st_size
    card = (bundle / "MODEL_CARD.md").read_text()
    assert (
        "not a medical device" in card
        and "axial" in card
        and "CC BY 4.0" in card
        and "| val | 0.5000 | – |" in card
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "member.onnx"]


def test_a_bundle_replaces_the_one_before(tmp_path):
    written(tmp_path)
    bundle = written(tmp_path, name="second")
    assert json.loads((bundle / "manifest.json").read_text())["name"] == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "member.onnx"]


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json.bak", "notes.md"])
def test_a_directory_that_is_no_bundle_is_not_replaced(tmp_path, name):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / name).write_text("years of work")
    with pytest.raises(ExportError, match=f"bundle: not a bundle, contains '{name}'"):
        check_place(tmp_path / "bundle")
    assert (tmp_path / "bundle" / name).read_text() == "years of work"


def test_an_empty_directory_and_a_damaged_bundle_are_replaced(tmp_path):
    (tmp_path / "bundle").mkdir()
    check_place(tmp_path / "bundle")
    bundle = written(tmp_path)
    (bundle / "base.onnx").write_bytes(b"damaged")
    check_place(bundle)
    (bundle / "keep.md").mkdir()
    with pytest.raises(ExportError, match=r"not a bundle, contains 'keep\.md'"):
        check_place(bundle)
    written(tmp_path, name="second")
    assert json.loads((bundle / "manifest.json").read_text())["name"] == "second"


def test_a_bundle_that_the_runtime_refuses_is_not_written(tmp_path):
    with pytest.raises(ExportError, match=r"^bundle: the runtime refuses the bundle: "):
        written(tmp_path, classes=CLASSES[:10])
    assert not (tmp_path / "bundle").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["member.onnx"]


def test_the_runtime_gives_the_exported_accuracy(tmp_path):
    from organ_infer import OrganClassifier

    parity = export_member(network_of("small"), tmp_path / "member.onnx", IMAGES, LABELS)
    with OrganClassifier(written(tmp_path), device="cpu") as classifier:
        probabilities = classifier.predict_proba(IMAGES)
    assert (probabilities.argmax(1) == LABELS).mean() == parity.accuracy


def test_paired_classes_are_the_two_sides_of_an_organ():
    assert paired(["a-left", "b-left", "a-right", "c"]) == (("a-left", "a-right"),)
    assert ORIENTATION["sagittal"] is None


def test_the_card_of_several_seeds_tells_their_spread(tmp_path):
    seeds = {
        s: {k: {"mean": 0.9, "std": 0.01} for k in ("accuracy", "auc", "ece")}
        for s in ("val", "test")
    }
    metrics = {"val": {"accuracy": 0.91, "auc": 0.99, "ece": 0.02}, "seeds": {"count": 3} | seeds}
    metrics["val_as_listed"] = {"accuracy": 0.91, "ece": 0.01, "ece_uncalibrated": 0.02}
    card = model_card(
        BundleInfo("name", "organamnist", "axial", CLASSES, 28, metrics, {"seed": 2}), [], 0.5
    )
    assert (
        "The table is of seed 2, the best of 3 seeds on validation" in card
        and "test accuracy 0.9000 ± 0.0100" in card
    )
