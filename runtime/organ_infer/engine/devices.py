"""Device names: `auto`, `cpu`, `cuda`, or `cuda:N` for the GPU with number N. Nothing heavy is imported here."""

import re
from typing import NamedTuple

__all__ = ["Device", "parse_device"]

_NAME = re.compile(r"(auto|cpu|cuda)|cuda:(0|[1-9][0-9]{0,2})")


class Device(NamedTuple):
    """A parsed device name."""

    kind: str  # auto, cpu or cuda
    number: int = 0  # of the GPU; counts the GPUs that CUDA_VISIBLE_DEVICES leaves visible


def parse_device(name: object) -> Device:
    """Parse a device name. Raises ValueError for any other text or type."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(f"auto, cpu, cuda or cuda:N expected, found {name!r}")
    return Device(match[1]) if match[1] else Device("cuda", int(match[2]))
