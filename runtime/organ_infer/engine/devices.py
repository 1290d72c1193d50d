"""Device names: `auto`, `cpu`, `cuda`, or `cuda:N` for the GPU with number N. This module imports nothing heavy."""

import re
from typing import NamedTuple

from ..errors import short_repr

__all__ = ["Device", "parse_device"]

_NAME = re.compile(r"(auto|cpu|cuda)|cuda:(0|[1-9][0-9]{0,2})")


class Device(NamedTuple):
    """A parsed device name.

    Attributes:
        kind: auto, cpu or cuda.
        number: The number of the GPU, counted from 0 among those that CUDA_VISIBLE_DEVICES leaves visible.
    """

    kind: str
    number: int = 0


def parse_device(name: object) -> Device:
    """Parse a device name.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        Its parts.

    Raises:
        ValueError: It is anything else.
    """
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(f"expected auto, cpu, cuda or cuda:N, found {short_repr(name)}")
    return Device(match[1]) if match[1] else Device("cuda", int(match[2]))
