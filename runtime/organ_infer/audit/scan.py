"""The audit of one scan: the organs as the mask names them, and what explains the differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..results import OrganPrediction
from ..volumes.crops import MIN_VOXELS
from ..volumes.types import Mask, Volume
from .anatomy import order_score
from .evidence import Evidence
from .explanations import (
    DOUBTFUL,
    LEAST_EVIDENCE,
    State,
    Step,
    explain,
    fit_of,
    fit_of_labels,
    state_of,
)
from .implausible import densities, no_organs, other_values, sizes, turned
from .pictures import pictures_of
from .structures import structures_of
from .types import AuditedOrgan, Finding, ScanAudit

if TYPE_CHECKING:
    from ..classifier import OrganClassifier

__all__ = ["audit_scan"]

# How much more must speak for another label map: several are tried.
LABEL_MAP_COST = 2.0
# Structures that look different, as a share of the whole ones, from which a mask as a whole does not fit.
UNEXPLAINED_SHARE = 0.5
# The greatest probability of its label with which a structure looks different.
DIFFERENT = 0.1


def audit_scan(
    classifier: "OrganClassifier",
    volume: Volume,
    mask: Mask,
    *,
    other_masks: Callable[[], Mapping[str, Mask]] | None = None,
    margin_mm: float = Mask.margin_mm,
) -> ScanAudit:
    """Find out whether a mask fits its scan, and what explains it if it does not.

    The mask as it is, flipped and turned scans, exchanged axes, moved masks, swapped and wrong labels are compared by
    the likelihood of what the model sees, of the structures' density and size, and of their order in the body.

    Args:
        classifier: Its model must take Hounsfield units and define an orientation.
        volume: The scan.
        mask: Its organs.
        other_masks: Called if something does not fit. Returns the same mask, read with other label maps, by the name
            of the label map.
        margin_mm: Margin around an organ in the plane of the slices, in millimeters, 0 to 1,000.

    Returns:
        The organs, and the findings, the strongest first.

    Raises:
        InputError: As `OrganClassifier.predict_volume`.
        DeviceError: If a network fails.
    """
    organs = classifier.predict_volume(volume, mask, margin_mm=margin_mm)
    evidence = _evidence(classifier, volume, mask, margin_mm)
    findings: list[Finding] = []
    if evidence.structures:
        state, steps = explain(evidence)
        findings, explained = _of_the_search(evidence, state, steps)
        # Label maps change no orientation.
        view = replace(state.view, orientations=None)
        doubts = evidence.organ_scores(view, state.labels) < DOUBTFUL
        if findings or doubts.any():
            masks = {} if other_masks is None else other_masks()
            better = _other_label_map(classifier, volume, masks, evidence, explained)
            better += other_values(evidence, explained)
            findings = sorted(better, key=lambda one: -one.evidence)[:1] or findings
    return ScanAudit(
        scan=volume.source,
        mask=mask.source,
        organs=tuple(_audited(organs, evidence)),
        findings=tuple(sorted(findings, key=lambda finding: -finding.evidence)),
        unmapped=mask.unmapped,
        warnings=(*volume.warnings, *mask.warnings),
    )


def _of_the_search(
    evidence: Evidence, state: State, steps: Sequence[Step]
) -> tuple[list[Finding], float]:
    """Return the findings after a search, and the evidence of those that explain something."""
    # If the organs are none, or what the search ended with is no explanation, nothing else can be said.
    nothing = no_organs(evidence, state)
    if nothing:
        return nothing, 0.0
    if fit_of_labels(evidence, state) < -LEAST_EVIDENCE:
        return [_worse_than_chance(evidence)], 0.0
    findings = [_finding(evidence, step) for step in steps]
    findings = findings or turned(evidence, state) or _unexplained(evidence, state)
    findings += sizes(evidence, state) + densities(evidence, state)
    return findings, sum(step.evidence for step in steps)


def _evidence(
    classifier: "OrganClassifier", volume: Volume, mask: Mask, margin_mm: float
) -> Evidence:
    spec = classifier.manifest.input
    # predict_volume has refused models without them
    assert spec.orientation is not None and spec.window is not None
    return Evidence(
        volume,
        tuple(structures_of(volume, mask, MIN_VOXELS)),
        classifier.classes,
        spec.orientation,
        spec.window,
        margin_mm,
        classifier._slice_answers,
    )


def _audited(organs: Sequence[OrganPrediction], evidence: Evidence) -> list[AuditedOrgan]:
    structures = {one.name: one for one in evidence.structures}
    return [
        AuditedOrgan(
            expected=organ.expected,
            structures=organ.structures,
            label=organ.label,
            probability=organ.probability,
            expected_probability=organ.probabilities[evidence.classes.index(organ.expected)],
            agrees=organ.agrees,
            slices=len(organ.slices),
            volume_ml=structures[organ.expected].volume_ml,
            median_hu=float(np.median(structures[organ.expected].hounsfield(evidence.volume.hu))),
            warnings=organ.warnings,
        )
        for organ in organs
    ]


def _finding(evidence: Evidence, step: Step) -> Finding:
    names = tuple(evidence.structures[i].name for i in step.organs)
    numbers: dict[str, float | str] = {
        "organs that agree": _change(
            _agreeing(evidence, step.before), _agreeing(evidence, step.after)
        ),
        "log likelihood": _change(f"{step.before.score:.1f}", f"{step.after.score:.1f}"),
        "order of organs": _change(*(f"{_order(s):.1f}" for s in (step.before, step.after))),
    }
    if step.kind in ("mask shifted", "mask placement"):
        numbers["spread of HU"] = _change(
            *(f"{s.view.spread / 2:.1f}" for s in (step.before, step.after))
        )
    if step.kind == "wrong label":
        (i,) = step.organs
        for label in (step.before.labels[i], step.after.labels[i]):
            column = evidence.classes.index(label)
            numbers[f"probability of {label}"] = float(step.after.view.probabilities[i, column])
    return Finding(
        step.kind,
        step.message,
        step.evidence,
        names,
        numbers,
        pictures_of(evidence, step.organs),
    )


def _change(before: object, after: object) -> str:
    return f"{before} -> {after}"


def _order(state: State) -> float:
    return order_score(state.labels, state.view.centers)


def _agreeing(evidence: Evidence, state: State) -> int:
    best = state.view.probabilities.argmax(axis=1)
    return sum(
        evidence.classes[i] == label for i, label in zip(best.tolist(), state.labels, strict=True)
    )


def _unexplained(evidence: Evidence, state: State) -> list[Finding]:
    """Return a finding if many structures look different."""
    whole = [i for i, one in enumerate(state.view.structures) if one is not None and one.is_whole]
    columns = [evidence.classes.index(state.labels[i]) for i in whole]
    different = [
        i
        for i, column in zip(whole, columns, strict=True)
        if state.view.probabilities[i, column] < DIFFERENT
    ]
    if len(different) < 2 or len(different) < UNEXPLAINED_SHARE * len(whole):
        return []
    names = tuple(state.labels[i] for i in different)
    scores = evidence.organ_scores(state.view, state.labels)[different]
    return [
        Finding(
            "unexplained",
            f"{len(different)} of {len(whole)} whole structures look different: {', '.join(names)}",
            max(-float(scores.sum()), LEAST_EVIDENCE),
            names,
            {"log likelihood": f"{state.score:.1f}"},
            pictures_of(evidence, tuple(different)),
        )
    ]


def _worse_than_chance(evidence: Evidence) -> Finding:
    everything = tuple(range(len(evidence.structures)))
    fit = fit_of_labels(evidence)
    return Finding(
        "unexplained",
        "the mask fits the scan worse than random labels, and nothing that was tried explains it",
        -fit,
        tuple(one.name for one in evidence.structures),
        {
            "organs that agree": _share_agreeing(evidence),
            "log likelihood against chance": f"{fit:.1f}",
        },
        pictures_of(evidence, everything),
    )


def _other_label_map(
    classifier: "OrganClassifier",
    volume: Volume,
    masks: Mapping[str, Mask],
    evidence: Evidence,
    explained: float,
) -> list[Finding]:
    """Return a finding if another label map explains the mask better than all the steps."""
    fit = fit_of(evidence)
    others = {
        name: _evidence(classifier, volume, mask, evidence.margin_mm)
        for name, mask in masks.items()
    }
    gains = {
        name: fit_of(other) - fit - LABEL_MAP_COST
        for name, other in others.items()
        # Worse than guessing is no fit. A map of one organ is always less wrong than one of many.
        if other.structures and fit_of(other) > 0
    }
    if not gains:
        return []
    name = max(gains, key=lambda name: gains[name])
    if gains[name] < max(explained, LEAST_EVIDENCE):
        return []
    numbers: dict[str, float | str] = {
        "organs that agree": _change(_share_agreeing(evidence), _share_agreeing(others[name])),
        "log likelihood against chance": _change(f"{fit:.1f}", f"{fit_of(others[name]):.1f}"),
    }
    everything = tuple(range(len(evidence.structures)))
    return [
        Finding(
            "label map",
            f"the numbers of the mask fit the label map {name}, not the one that was used",
            gains[name],
            tuple(one.name for one in evidence.structures),
            numbers,
            pictures_of(evidence, everything),
        )
    ]


def _share_agreeing(evidence: Evidence) -> str:
    return f"{_agreeing(evidence, state_of(evidence))} of {len(evidence.structures)}"
