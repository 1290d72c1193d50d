"""ImageNet weights of the ResNets: read from a directory, or downloaded and checked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from train.download import digest_of, download
from train.errors import RunError


def find_weights(name: str, directory: Path | None) -> tuple[dict[str, Tensor], str]:
    """Find the ImageNet weights of a ResNet.

    Args:
        name: torchvision's name, as `resnet50`.
        directory: of `resnet50.pth` and so on, or of torchvision's own file names (`resnet50-0676ba61.pth`). None
            downloads the file, unless torchvision's cache has it.

    Returns:
        The state dict, float32, and where it is from.

    Raises:
        RunError: there are none; the message says how to get them.
    """
    import torchvision

    entry = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    own_name = entry.url.rsplit("/", 1)[1]
    if directory is None:
        return _download_weights(name, entry.url, own_name), "torchvision IMAGENET1K_V1"
    for candidate in (directory / own_name, directory / f"{name}.pth"):
        if candidate.is_file():
            return _read_weights(
                candidate
            ), f"{candidate.name} (sha256 {digest_of(candidate, 'sha256')[:16]})"
    raise RunError(
        f"no {name}.pth or {own_name} in {directory}; fetch {entry.url} into it, or use --weights none"
    )


def _download_weights(name: str, url: str, own_name: str) -> dict[str, Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / own_name
    # torchvision's file names end in the first digits of their SHA-256
    begin = own_name.removesuffix(".pth").rpartition("-")[2]
    try:
        if not path.exists():
            download(url, path, begin, algorithm="sha256")
    except RunError as e:
        raise RunError(
            f"no ImageNet weights for {name}: {e}; or fetch {own_name} and pass its directory as --weights-dir, or train"
            " from scratch with --weights none"
        ) from e
    if not (digest := digest_of(path, "sha256")).startswith(begin):
        raise RunError(
            f"{path} is not torchvision's: its SHA-256 begins with {digest[:8]}; remove it"
        )
    return _read_weights(path)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds for a damaged file
        raise RunError(f"{path} is not a readable PyTorch weights file ({type(e).__name__})") from e
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise RunError(f"{path} is not a state dict of tensors")
    return weights
