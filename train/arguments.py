"""Types of command-line arguments.

Each function is an argparse `type`: it converts the text of one argument, or raises ArgumentTypeError or ValueError,
which argparse reports together with the option.
"""

from __future__ import annotations

import argparse
import re


def device_name(text: str) -> str:
    """Check a value of --device: auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, found {text!r}")
    return text


def temperature(text: str) -> float:
    """Parse what divides the logits, for argparse."""
    value = float(text)
    if not 0.01 <= value <= 100:
        raise argparse.ArgumentTypeError(f"expected 0.01 to 100, found {text}")
    return value


def positive(text: str) -> int:
    """Convert to an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


def natural(text: str) -> int:
    """Convert to an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {text}")
    return value


def names(text: str) -> tuple[str, ...]:
    """Split names at their commas."""
    return tuple(text.split(","))
