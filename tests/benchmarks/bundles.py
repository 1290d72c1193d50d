"""Bundles to benchmark: an ensemble of the real shapes with random weights, and one precision of any bundle."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from organ_infer.bundle.files import MANIFEST_FILE, Manifest, Member, read_manifest
from tests.conftest import CLASSES

# The ensemble's precisions on each device, the one that its bundle chooses first.
ENSEMBLE_PRECISIONS = {"cpu": ("int8", "fp32"), "cuda": ("fp16", "fp32")}


@dataclass(frozen=True)
class Ensemble:
    """The reference ensemble with random weights: PyTorch networks and exported graphs by stage, and their bundle."""

    networks: dict[str, Any]
    graphs: dict[str, Any]
    bundle: Path


_ensembles: list[Ensemble] = []


@pytest.fixture(scope="session")
def random_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """The ensemble, built once per session; a test that needs it is skipped without PyTorch."""
    for module in ("torch", "torchvision", "medmnist"):
        pytest.importorskip(module, reason=f"the ensemble's networks need {module}")
    # Each module that imports this fixture has a fixture of its own.
    if not _ensembles:
        _ensembles.append(write_ensemble(tmp_path_factory.mktemp("ensemble")))
    return _ensembles[0]


def write_ensemble(directory: Path) -> Ensemble:
    """Write the bundle of `batch_norm`, ResNet-50, -101 and -152 in float32 and int8, and in fp16 if CUDA may run it."""
    import onnx
    import onnxruntime

    from export import bundle
    from export.bundle_info import BundleInfo
    from export.member import to_onnx
    from train.stages import STAGES

    random = np.random.default_rng(5)
    images = random.integers(0, 256, (256, 28, 28), dtype=np.uint8)
    networks = {
        stage: random_network(STAGES[stage].network) for stage in STAGES["ensemble"].members
    }
    graphs = {stage: to_onnx(network, 28) for stage, network in networks.items()}
    for stage, graph in graphs.items():
        onnx.save(graph, directory / f"{stage}.onnx")
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    with pytest.MonkeyPatch.context() as patch:
        # PyTorch's answers, which others are compared with, know no temperature.
        patch.setattr(bundle, "fit_temperature", lambda *_: 1.0)
        written = bundle.write_bundle(
            directory / "bundle",
            BundleInfo(
                name="random-ensemble",
                dataset="organamnist",
                view="axial",
                classes=CLASSES,
                size=28,
                metrics={"val": {"accuracy": 0.5}},
                training={"seed": 1, "data_md5": "0" * 32, "weights": "none"},
            ),
            [bundle.Trained(stage, directory / f"{stage}.onnx") for stage in graphs],
            # Random weights answer every slice alike, so that every precision is accepted.
            bundle.Slices(images, images[:8], np.zeros(8, np.int64), 28),
            precisions=("fp32", "int8", "fp16") if cuda else ("fp32", "int8"),
        )
    return Ensemble(networks, graphs, written)


def random_network(name: str) -> Any:
    """A network with running statistics as after training."""
    import torch
    from torch import nn

    from train.networks import make_network

    network = make_network(name, classes=11, size=28, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(layer.weight, 0.3, 1, generator=generator)
    return network


def chosen_precision(manifest: Manifest, device: str) -> str:
    """The precision that the bundle runs in on `device`; of an ensemble that mixes several, all: `fp32+int8`."""
    return "+".join(sorted({entry.precision for entry in manifest.variants(device)}))


def precisions(manifest: Manifest, device: str) -> list[str]:
    """The precisions to benchmark on `device`: the one the bundle chooses, then float32 if it has all of it."""
    found = [chosen_precision(manifest, device)]
    if "fp32" not in found and all(
        _in_precision(entry, "fp32") for entry in manifest.variants("cpu")
    ):
        found.append("fp32")
    return found


def with_precision(bundle: Path, precision: str, device: str, directory: Path) -> Path:
    """The bundle that runs in `precision` on `device`: itself, or a copy in `directory` with that precision alone."""
    manifest = read_manifest(bundle)
    if chosen_precision(manifest, device) == precision:
        return bundle
    entries = tuple(entry for each in manifest.members if (entry := _in_precision(each, precision)))
    assert len(entries) == len(manifest.members), f"{bundle}: not every member has {precision}"
    only = replace(manifest, members=entries)
    directory.mkdir()
    for name in only.files():
        _link(bundle / name, directory / name)
    (directory / MANIFEST_FILE).write_text(only.to_json(), encoding="utf-8")
    return directory


def _in_precision(entry: Member, precision: str) -> Member | None:
    for variant in (entry, *entry.alternatives):
        if variant.precision == precision:
            return replace(variant, alternatives=())
    return None


def _link(source: Path, target: Path) -> None:
    """A hard link, because an ensemble in float32 has half a gigabyte; a copy from another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
