"""The command organ-infer."""

from .command import main

__all__ = ["main"]
