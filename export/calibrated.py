"""What is chosen and measured for networks that are used together: temperature, threshold and metrics on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.member import ORIENTATION as ORIENTATION_OUTPUT
from export.temperature import (
    Labeled,
    fit_temperature,
    mean_softmax,
    why_higher,
    why_rejected,
)
from organ_infer.evaluation.calibration import expected_calibration_error

if TYPE_CHECKING:
    from export.variants import Slices, Variant
    from organ_infer.bundle.files import Member, Plausibility

# share of the validation slices whose plausibility is below the threshold of the manifest
IMPLAUSIBLE_SHARE = 0.01


@dataclass(frozen=True)
class Calibrated:
    """The choices for some networks, and what they reach on validation.

    Attributes:
        temperature: Divides the logits.
        metrics: `accuracy` of their average, and the expected calibration error with the temperature (`ece`) and
            without it (`ece_uncalibrated`). `temperature_rejected` says why a fitted temperature is not used.
        plausibility: The manifest's entry. None if the networks do not know when not to answer.
    """

    temperature: float
    metrics: Mapping[str, Any]
    plausibility: Plausibility | None


def calibrate(
    listed: Sequence[Variant],
    slices: Slices,
    temperature: float | None,
    report: Callable[[str], None],
) -> Calibrated:
    """Choose the temperature and the threshold of plausibility, and measure the average of the networks.

    Args:
        listed: The variant of each network that is listed first.
        slices: The slices that the variants were measured with.
        temperature: Used instead of a fitted one.
        report: Called with one line per choice.

    Returns:
        The choices. A fitted temperature that makes validation worse is rejected: it is then 1.
    """
    fitting_logits = [v.fitting_logits for v in listed if v.fitting_logits is not None]
    assert len(fitting_logits) == len(listed)
    logits = [variant.logits for variant in listed]
    fitting_labels = slices.fitted_on[1] if slices.fitted_on else slices.labels
    rejected = ""
    if temperature is None:
        temperature = fit_temperature(fitting_logits, fitting_labels)
        rejected = why_rejected(
            temperature, Labeled(fitting_logits, fitting_labels), Labeled(logits, slices.labels)
        )
    if rejected:
        temperature = 1.0
        report(f"{rejected}; it stays 1")
    metrics: dict[str, Any] = _measure(logits, slices.labels, temperature)
    before, after = metrics["ece_uncalibrated"], metrics["ece"]
    higher = why_higher(before, after) if slices.fitted_on else ""
    report(
        f"temperature {temperature:g}: ECE on validation {after:.4f}, "
        f"without it {before:.4f}{f'; {higher}' if higher else ''}"
    )
    plausibility = _plausibility([v.orientation for v in listed if v.orientation is not None])
    if plausibility is not None:
        report(
            f"plausibility threshold {plausibility.threshold:g}: {IMPLAUSIBLE_SHARE:.0%} of the validation slices are"
            " below it"
        )
    if rejected:
        metrics["temperature_rejected"] = rejected
    return Calibrated(temperature, metrics, plausibility)


def best_member(entries: Sequence[Member]) -> Member:
    """Return the member that is used alone if speed is preferred.

    Args:
        entries: The manifest's members, as the CPU runs them.

    Returns:
        The member of the highest accuracy on validation; of equal ones, that of the smallest file.
    """
    return max(entries, key=lambda entry: (entry.val_accuracy or 0.0, -entry.bytes))


def _measure(
    logits: Sequence[np.ndarray], labels: np.ndarray, temperature: float
) -> dict[str, float]:
    """Compute the metrics of the average.

    Args:
        logits: (N, classes) of each network.
        labels: int (N,).
        temperature: Divides the logits.
    """
    probabilities = mean_softmax(logits, temperature)
    return {
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "ece": expected_calibration_error(probabilities, labels),
        "ece_uncalibrated": expected_calibration_error(mean_softmax(logits), labels),
    }


def _plausibility(orientations: Sequence[np.ndarray]) -> Plausibility | None:
    """Return the manifest's entry, with the threshold of the networks' mean plausibility on validation.

    Args:
        orientations: float32 (N, 9) of each network, of the validation slices.
    """
    from organ_infer.bundle.files import Plausibility

    if not orientations:
        return None
    plausibility = np.mean([orientation[:, 0] for orientation in orientations], axis=0)
    # A value that a slice has, so that no more than this share is below it.
    threshold = float(np.quantile(plausibility, IMPLAUSIBLE_SHARE, method="lower"))
    return Plausibility(ORIENTATION_OUTPUT, min(threshold, 1.0))
