"""Calibration: the temperature of an ensemble, fitted to labeled slices, and the calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from organ_infer.evaluation.calibration import expected_calibration_error

# within the range of a manifest's temperature
LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Fit the temperature that minimizes the negative log likelihood of the labels under the mean probability.

    Each member's logits are divided by the temperature before its softmax, as the runtime does (Guo et al., ICML 2017,
    for one network).

    Args:
        logits: float (N, classes) of each member.
        labels: int (N,).

    Returns:
        The temperature, from 0.05 to 20, rounded to three decimals. It is 1 if every slice is classified correctly,
        because the likelihood then grows without limit as the temperature falls, or if no temperature is better than 1.
    """
    members = [np.asarray(z, np.float64) for z in logits]
    rows = np.arange(len(labels))

    def loss(temperature: float) -> float:
        log_likelihoods = [log_softmax(z / temperature, axis=1)[rows, labels] for z in members]
        return float(-logsumexp(log_likelihoods, axis=0).mean())

    if (mean_softmax(members).argmax(1) == labels).all():
        return 1.0
    bounds = (np.log(LOWEST), np.log(HIGHEST))
    minimum = minimize_scalar(lambda x: loss(np.exp(x)), bounds=bounds, method="bounded")
    temperature = round(float(np.clip(np.exp(minimum.x), LOWEST, HIGHEST)), 3)
    return temperature if loss(temperature) < loss(1.0) else 1.0


@dataclass(frozen=True)
class Labeled:
    """Slices as the temperature sees them.

    Attributes:
        logits: float (N, classes) of each member.
        labels: int (N,).
    """

    logits: Sequence[np.ndarray]
    labels: np.ndarray

    def negative_log_likelihood(self, temperature: float) -> float:
        """Return the mean over the slices, in nats."""
        rows = np.arange(len(self.labels))
        members = [
            log_softmax(np.asarray(z, np.float64) / temperature, axis=1)[rows, self.labels]
            for z in self.logits
        ]
        return float(np.log(len(members)) - logsumexp(members, axis=0).mean())

    def ece(self, temperature: float) -> float:
        """Return the expected calibration error."""
        return expected_calibration_error(mean_softmax(self.logits, temperature), self.labels)


def why_rejected(temperature: float, fitted_on: Labeled, validation: Labeled) -> str:
    """Explain why a fitted temperature must not be used, if it makes validation worse.

    A temperature inside the bounds is the minimum of the negative log likelihood. It may raise the calibration error of
    validation as it is, because it is fitted on corrupted slices too, and that of the slices that it was fitted on by
    what chance explains, 1 / sqrt(N). A temperature at a bound is not a minimum, so it must make neither worse.

    Args:
        temperature: as `fit_temperature` returns it.
        fitted_on: the slices that it was fitted on.
        validation: the validation slices as they are.

    Returns:
        One line without a final period; empty if the temperature can be used, or if it is 1.
    """
    if temperature == 1.0:
        return ""
    at_bound = not LOWEST < temperature < HIGHEST
    checked = {"the slices that it was fitted on": fitted_on}
    if at_bound:
        checked["validation"] = validation
    for name, slices in checked.items():
        chance = 0.0 if at_bound else 1 / math.sqrt(len(slices.labels))
        for measure, value, accepted in (
            ("ECE", slices.ece, chance),
            ("negative log likelihood", slices.negative_log_likelihood, 0.0),
        ):
            before, after = value(1.0), value(temperature)
            if after > before + accepted:
                return f"temperature {temperature:g} raises the {measure} of {name} from {before:.4f} to {after:.4f}"
    return ""


def why_higher(before: float, after: float) -> str:
    """Explain that a temperature raises the calibration error of validation as it is.

    Args:
        before: ECE on validation without the temperature.
        after: ECE on validation with it.

    Returns:
        A clause without a final period; empty if the temperature does not raise the error.
    """
    # as they are shown
    if round(after, 4) <= round(before, 4):
        return ""
    return (
        "higher, because the temperature was chosen on validation slices together with corrupted copies of them: it suits"
        " scans that differ from those of training, at the expense of those that resemble them"
    )


def mean_softmax(logits: Sequence[np.ndarray], temperature: float = 1.0) -> np.ndarray:
    """Average the members' probabilities.

    Args:
        logits: float (N, classes) of each member.
        temperature: Divides the logits.

    Returns:
        float64 (N, classes), the mean over the members of their softmax.
    """
    members = [np.asarray(z, np.float64) / temperature for z in logits]
    mean: np.ndarray = np.mean([np.exp(log_softmax(z, axis=1)) for z in members], axis=0)
    return mean
