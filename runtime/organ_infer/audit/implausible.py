"""Findings beside the steps of the search: values that are no HU, sizes and densities of no organ, and votes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..images.axes import AS_REQUIRED, NO_CROP, orientation_names
from ..volumes.votes import scan_orientation, scan_warnings, votes
from .anatomy import FLOOR, ORGANS, density_score, size_score
from .evidence import IDENTITY, Evidence
from .explanations import COST_PER_LABEL, LEAST_EVIDENCE, State, fit_of, no_organ_message, state_of
from .pictures import pictures_of
from .structures import UNMOVED
from .types import Finding

__all__ = ["VALUES", "densities", "no_organs", "other_values", "sizes", "turned"]

# How much more must speak for other values: several are tried.
VALUES_COST = 4.0
_LOW, _HIGH = -32768, 32767


def _added(hu: NDArray[np.int16], offset: int) -> NDArray[np.int16]:
    return hu.clip(_LOW, _HIGH - offset) + np.int16(offset)


# What may have happened to the values, with its remedy -> how to undo it.
VALUES: Mapping[str, Callable[[NDArray[np.int16]], NDArray[np.int16]]] = {
    "negated; multiply them by -1": lambda hu: -hu.clip(-_HIGH, _HIGH),
    "1,024 too low; add 1,024": lambda hu: _added(hu, 1024),
    "doubled; halve them": lambda hu: hu // np.int16(2),
    "halved; double them": lambda hu: hu.clip(_LOW // 2, _HIGH // 2) * np.int16(2),
}


def other_values(evidence: Evidence, explained: float) -> list[Finding]:
    """Return a finding if other values of the scan explain more than all the steps.

    Args:
        evidence: Of the scan as it is.
        explained: The evidence of the steps.
    """
    before = state_of(evidence)
    others: dict[str, tuple[State, float]] = {}
    for what, undo in VALUES.items():
        other = replace(evidence, undo=undo, _seen_before={})
        state = state_of(other)
        # Worse than guessing is no fit.
        if fit_of(other, state) > 0:
            others[what] = state, state.score - before.score - VALUES_COST
    if not others:
        return []
    what = max(others, key=lambda what: others[what][1])
    state, gain = others[what]
    if gain < max(explained, LEAST_EVIDENCE):
        return []
    everything = range(len(evidence.structures))
    return [
        Finding(
            "values",
            f"the values of the scan look {what}",
            gain,
            tuple(one.name for one in evidence.structures),
            {"log likelihood": f"{before.score:.1f} -> {state.score:.1f}"},
            pictures_of(evidence, everything),
        )
    ]


def sizes(evidence: Evidence, state: State) -> list[Finding]:
    """Return a finding per structure inside the volume whose size is that of no organ of its class."""
    findings = []
    for i, (one, label) in enumerate(zip(evidence.structures, state.labels, strict=True)):
        # What is left of an organ at the border is larger than a fragment.
        may_be_cut = one.is_cut if one.is_small else evidence.may_be_cut(one)
        if label not in ORGANS or may_be_cut:
            continue
        score = size_score(label, one.volume_ml, is_whole=True)
        if score <= FLOOR:
            low, high = ORGANS[label].volume
            size = "large" if one.volume_ml > high else "small"
            message = f"{one.name} is too {size}: {one.volume_ml:,.3g} mL, expected {low:,} to {high:,}; check its mask"
            findings.append(_of_one(evidence, i, "size", message, score))
    return findings


def densities(evidence: Evidence, state: State) -> list[Finding]:
    """Return a finding per structure whose Hounsfield units are far from those of its class."""
    findings = []
    for i, label in enumerate(state.labels):
        one = state.view.structures[i]
        if one is None or one.is_small or label not in ORGANS:
            continue
        median = float(state.view.medians[i])
        score = density_score(label, median)
        if score <= FLOOR:
            low, high = ORGANS[label].density
            message = (
                f"{one.name} has a median of {median:,.0f} HU, expected {low:,} to {high:,};"
                " check where its mask is, and the values of the scan"
            )
            findings.append(_of_one(evidence, i, "density", message, score))
    return findings


def _of_one(evidence: Evidence, i: int, kind: str, message: str, score: float) -> Finding:
    one = evidence.structures[i]
    numbers = {"log likelihood": f"{score:.1f}"}
    return Finding(kind, message, -score, (one.name,), numbers, pictures_of(evidence, (i,)))


def no_organs(evidence: Evidence, state: State) -> list[Finding]:
    """Return a finding if the organs together look like none. Each organ counts once."""
    voters = [i for i, weight in enumerate(evidence.orientation_weights) if weight > 0]
    winner, voters, gain = _winner(evidence, state, voters)
    # Blurred organs look like none, but like organs of their class. If the organs are none, any class is as likely.
    for i in voters:
        as_named = evidence.class_score(state.view, i, evidence.structures[i].name)
        gain -= COST_PER_LABEL + math.log(len(evidence.classes)) + as_named
    # One organ says nothing about the scan.
    if winner != NO_CROP or len(voters) < 2 or gain < LEAST_EVIDENCE:
        return []
    message = no_organ_message(evidence, voters)
    return [_of_many(evidence, "no organ crop", message, gain, voters)]


def turned(evidence: Evidence, state: State) -> list[Finding]:
    """Return a finding if the organs together look turned or flipped, and no step has said so. Each organ counts once."""
    if state.axes is not IDENTITY or state.move != UNMOVED:
        return []
    # Intact organs that are cut off can look flipped.
    whole = [
        i
        for i, weight in enumerate(evidence.orientation_weights)
        if weight == 1 and state.labels[i] != NO_CROP
    ]
    winner, whole, gain = _winner(evidence, state, whole)
    if winner in (None, AS_REQUIRED, NO_CROP):
        return []
    grid = evidence.grid()
    slices = sum(
        len(evidence.structures[i].crops(evidence.volume.hu, grid, evidence.margin_mm))
        for i in whole
    )
    return [_of_many(evidence, "orientation", scan_warnings(winner, slices)[0], gain, whole)]


def _winner(
    evidence: Evidence, state: State, voters: list[int]
) -> tuple[str | None, list[int], float]:
    """Return the orientation that structures vote for, those of them that have a vote, and the evidence."""
    orientations = state.view.orientations
    if orientations is not None:
        voters = [i for i in voters if not np.isnan(orientations[i, 0])]
    if orientations is None or not voters:
        return None, [], 0.0
    rows = np.asarray(orientations[voters], np.float32)
    second, first = np.sort(votes(rows))[-2:]
    winner = scan_orientation(rows, orientation_names(evidence.orientation))
    return winner, voters, float(first - second)


def _of_many(
    evidence: Evidence, kind: str, message: str, gain: float, organs: Sequence[int]
) -> Finding:
    names = tuple(evidence.structures[i].name for i in organs)
    numbers = {"organs that voted": len(organs)}
    return Finding(kind, message, gain, names, numbers, pictures_of(evidence, organs))
