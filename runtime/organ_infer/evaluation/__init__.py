"""Evaluation on labeled slices: accuracy with an interval, metrics by class, calibration. Needs NumPy alone."""

from .evaluate import evaluate
from .types import ClassMetrics, Evaluation, Interval, Mistake, ReliabilityBin

__all__ = ["ClassMetrics", "Evaluation", "Interval", "Mistake", "ReliabilityBin", "evaluate"]
