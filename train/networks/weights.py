"""ImageNet weights of the ResNets: read from a directory, or downloaded and checked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from export.machine import machine_failure
from train.download import digest_of, download
from train.errors import RunError
from train.record import note


def find_weights(name: str, directory: Path | None) -> tuple[dict[str, Tensor], str]:
    """Read the ImageNet weights of a ResNet.

    Args:
        name: torchvision's name, such as `resnet50`.
        directory: of the files, named as `resnet50.pth` or as torchvision names them (`resnet50-0676ba61.pth`). None
            downloads the file, unless torchvision's cache has it.

    Returns:
        The state dict, float32, and its source, for results and reports.

    Raises:
        RunError: the weights are not available; the message says how to get them.
    """
    import torchvision

    entry = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    own_name = entry.url.rsplit("/", 1)[1]
    if directory is None:
        return _download_weights(name, entry.url, own_name), "torchvision IMAGENET1K_V1"
    for candidate in (directory / own_name, directory / f"{name}.pth"):
        if candidate.is_file():
            digest = digest_of(candidate, "sha256")
            return _read_weights(candidate), f"{candidate.name} (sha256 {digest[:16]})"
    raise RunError(
        f"{directory}: no {name}.pth or {own_name}; fetch {entry.url} into it, or use --weights none"
    )


def _download_weights(name: str, url: str, own_name: str) -> dict[str, Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / own_name
    # torchvision's file names end in the first digits of their SHA-256
    digest_start = own_name.removesuffix(".pth").rpartition("-")[2]
    try:
        if not path.exists():
            note(f"{path}: no such file; downloading {url}")
            download(url, path, digest_start, algorithm="sha256")
    except RunError as e:
        raise RunError(
            f"ImageNet weights of {name}: {e}; or fetch {own_name} and pass its directory as --weights-dir, or train"
            " from scratch with --weights none"
        ) from e
    if not (digest := digest_of(path, "sha256")).startswith(digest_start):
        raise RunError(
            f"{path}: not torchvision's file, its SHA-256 begins with {digest[:8]}; rename it to download the"
            " published file, or pass the directory of your own weights as --weights-dir"
        )
    return _read_weights(path)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises many kinds of errors for a damaged file
    except Exception as e:
        # a file that cannot be read now is not damaged
        if reason := machine_failure(e):
            raise RunError(
                f"{path}: cannot be read ({reason}); solve this and rerun the same command"
            ) from e
        raise RunError(
            f"{path}: not a readable PyTorch weights file ({type(e).__name__}); use another file"
        ) from e
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise RunError(f"{path}: not a state dict of tensors; use another file")
    return weights
