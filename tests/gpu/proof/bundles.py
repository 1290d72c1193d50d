"""Bundles that the runtime's checks open: the packaged network in one precision, and an ensemble of the real shapes.

The ensemble has random weights and is written as ONNX directly, so that neither a training nor PyTorch is needed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proof.harness import Skip
from proof.machine import missing
from proof.slices import CLASSES

if TYPE_CHECKING:
    import onnx

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
ENSEMBLE = ("batch_norm", "resnet50", "resnet101", "resnet152")
OPSET = 18


def packaged(precision: str, scratch: Path) -> Path:
    """The packaged network as a bundle of one variant, `fp32` or `fp16`."""
    import organ_infer

    source = Path(organ_infer.__file__).parent / "default"
    manifest = json.loads((source / "manifest.json").read_text())
    entries = [
        variant for entry in manifest["members"] for variant in (entry, *entry["alternatives"])
    ]
    plain = next(entry for entry in entries if entry["precision"] == "fp32")
    content = (source / plain["file"]).read_bytes()
    graphs = {plain["stage"]: content if precision == "fp32" else _halved(content)}
    directory = scratch / f"packaged-{precision}"
    plausibility = manifest.get("plausibility")
    return _written(directory, graphs, precision, manifest["temperature"], plausibility)


def random_ensemble(networks: Sequence[str], precision: str, scratch: Path) -> Path:
    """An ensemble of networks with the shapes of the ladder's, rewritten as `export` does, in `fp32` or `fp16`."""
    if absent := missing(["onnx"]):
        raise Skip(f"the ensemble is written with the package {absent[0]}, which is not installed")
    graphs = {name: _rewritten(name) for name in networks}
    if precision == "fp16":
        graphs = {name: _halved(content) for name, content in graphs.items()}
    return _written(scratch / f"ensemble-{len(networks)}-{precision}", graphs, precision, 1.0)


def _halved(content: bytes) -> bytes:
    """The graph in half precision, by the exporter's own function."""
    if absent := missing(["onnx", "onnxruntime.transformers"]):
        raise Skip(f"fp16 is made with {', '.join(absent)}, not installed")
    import onnx

    from export.quantize import to_fp16

    halved: bytes = to_fp16(onnx.load_from_string(content)).SerializeToString()
    return halved


def _written(
    directory: Path,
    graphs: dict[str, bytes],
    precision: str,
    temperature: float,
    plausibility: dict[str, Any] | None = None,
) -> Path:
    """A bundle whose members have one variant each."""
    if (directory / "manifest.json").exists():
        return directory
    directory.mkdir(parents=True)
    card = b"# A bundle of tests/gpu/prove.py\n"
    (directory / "MODEL_CARD.md").write_bytes(card)
    members: list[dict[str, Any]] = []
    for stage, content in graphs.items():
        file = f"{stage}.onnx"
        (directory / file).write_bytes(content)
        members.append(
            {
                "stage": stage,
                "file": file,
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
                "precision": precision,
                "output": "logits",
                "val_accuracy": None,
                "alternatives": [],
            }
        )
    organs = [name.removesuffix("-left") for name in CLASSES if name.endswith("-left")]
    manifest = {
        "format": 1,
        "name": directory.name,
        "task": {
            "dataset": "organamnist",
            "view": "axial",
            "classes": CLASSES,
            "paired": [[f"{organ}-left", f"{organ}-right"] for organ in organs],
        },
        "input": {
            "size": 28,
            "mean": 0.5,
            "std": 0.5,
            "resample": "area",
            "window": [40, 400],
            "orientation": ["L", "P"],
        },
        "members": members,
        "combine": "mean_probability",
        "temperature": temperature,
        "metrics": {},
        "training": {},
        "card": {"file": "MODEL_CARD.md", "sha256": hashlib.sha256(card).hexdigest()},
        "license": "none",
    }
    if plausibility is not None:
        manifest["plausibility"] = plausibility
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


# Graphs.


@functools.cache
def _rewritten(network: str) -> bytes:
    from export.rewrite import rewrite

    graph = _Graph(seed=len(network) + sum(map(ord, network)))
    last = (
        graph.small_cnn("images")
        if network == "batch_norm"
        else graph.resnet("images", BLOCKS[network])
    )
    content: bytes = rewrite(graph.model(last)).SerializeToString()
    return content


class _Graph:
    """A graph that is written node by node. Batch normalization is folded into the convolutions, as the exporter does."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def model(self, last: str) -> onnx.ModelProto:
        from onnx import TensorProto, checker, helper

        self.node("Identity", [last], "logits")
        given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])
        answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])
        graph = helper.make_graph(self.nodes, "random", [given], [answer], self.tensors)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
        )
        checker.check_model(model, full_check=True)
        return model

    def node(
        self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> str:
        from onnx import helper

        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def tensor(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"tensor_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        """Normal with the variance of He et al. 2015, times `scale` squared."""
        deviation = np.float32(scale * math.sqrt(2 / math.prod(shape[1:])))
        return self.tensor(self.random.standard_normal(shape, np.float32) * deviation)

    def convolution(
        self, x: str, into: tuple[int, int], kernel: int, stride: int = 1, scale: float = 1.0
    ) -> str:
        given, channels = into
        bias = self.tensor(np.full(channels, 0.01, np.float32))
        inputs = [x, self.weight(channels, given, kernel, kernel, scale=scale), bias]
        pads, strides = [kernel // 2] * 4, [stride] * 2
        return self.node("Conv", inputs, kernel_shape=[kernel] * 2, pads=pads, strides=strides)

    def linear(self, x: str, into: tuple[int, int]) -> str:
        given, channels = into
        bias = self.tensor(np.zeros(channels, np.float32))
        return self.node("Gemm", [x, self.weight(channels, given), bias], transB=1)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def flat(self, x: str, features: int) -> str:
        return self.node("Reshape", [x, self.tensor(np.array([-1, features], np.int64))])

    def small_cnn(self, x: str) -> str:
        for given, channels in ((1, 24), (24, 64)):
            x = self.relu(self.convolution(x, (given, channels), 5))
            x = self.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
        x = self.flat(x, 64 * 49)
        for into in ((64 * 49, 480), (480, 240)):
            x = self.relu(self.linear(x, into))
        return self.linear(x, (240, len(CLASSES)))

    def resnet(self, x: str, blocks: Sequence[int]) -> str:
        x = self.relu(self.convolution(x, (1, 64), 7, 2))
        x = self.node("MaxPool", [x], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
        given = 64
        for stage, count in enumerate(blocks):
            width = 64 << stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                y = self.relu(self.convolution(x, (given, width), 1))
                y = self.relu(self.convolution(y, (width, width), 3, stride))
                # Without normalization the sum of many blocks would overflow fp16.
                y = self.convolution(y, (width, 4 * width), 1, scale=1 / math.sqrt(sum(blocks)))
                if block == 0:
                    x = self.convolution(x, (given, 4 * width), 1, stride, scale=math.sqrt(0.5))
                x = self.relu(self.node("Add", [y, x]))
                given = 4 * width
        axes = self.tensor(np.array([2, 3], np.int64))
        x = self.node("ReduceMean", [x, axes], keepdims=1)
        return self.linear(self.flat(x, given), (given, len(CLASSES)))
