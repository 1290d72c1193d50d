"""Searches for the explanation that fits a scan and its mask best, one step after the other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from ..images.axes import NO_CROP, axes_message
from .anatomy import SIDE_PAIRS
from .evidence import IDENTITY, Axes, Evidence, View
from .structures import UNMOVED, Move, moves_of_axes

__all__ = [
    "COST_PER_LABEL",
    "DOUBTFUL",
    "LEAST_EVIDENCE",
    "State",
    "Step",
    "explain",
    "fit_of",
    "fit_of_labels",
    "no_organ_message",
    "state_of",
]

# An explanation must be 20 times as likely as what was before, after its cost.
LEAST_EVIDENCE = 3.0
# The log likelihood of a structure below which other label maps are tried, and other places of its mask alone.
DOUBTFUL = -1.0
# How much more must speak for an explanation, because there are many of its kind or it is rare.
COSTS = {
    "orientation": 1.0,
    "sides": 1.0,
    "swap": 3.0,
    "label": 2.0,
    "placement": 4.0,
    "shift": 4.0,
    "no organ": 2.0,
}
# How much the spread counts: as if an organ had six independent voxels, because neighbors are alike.
SPREAD_WEIGHT = 3.0
# For every label that an exchange of many changes.
COST_PER_LABEL = 1.0
# For every organ that is none. The crops of intact organs look so in blurred scans.
COST_PER_ORGAN = 2.0
# Shifts that are tried, in mm. Smaller ones are within what people draw.
SHIFTS_MM = (15.0, 30.0, 45.0)
REFINEMENTS_MM = (10.0, 5.0)
LEAST_SHIFT_MM = 10.0
MOST_STEPS = 12


@dataclass(frozen=True, eq=False)
class State:
    """What is assumed about a scan.

    Attributes:
        labels: A class per structure, or NO_CROP for one that is no organ.
        axes: From the header's patient axes to the true ones.
        move: Where the mask belongs.
        view: The scan under these axes and this move.
        score: Log likelihood.
    """

    labels: tuple[str, ...]
    axes: Axes
    move: Move
    view: View
    score: float


@dataclass(frozen=True, eq=False)
class Step:
    """One explanation that was accepted.

    Attributes:
        kind: A key of `organ_infer.audit.types.KINDS`.
        message: One line.
        organs: Indices of the structures that it is about.
        evidence: Gain of the log likelihood, less the cost.
        before: The state before.
        after: The state with this explanation.
    """

    kind: str
    message: str
    organs: tuple[int, ...]
    evidence: float
    before: State
    after: State


def state_of(evidence: Evidence) -> State:
    """Return what header and mask say."""
    labels = tuple(one.name for one in evidence.structures)
    view = evidence.view()
    return State(labels, IDENTITY, UNMOVED, view, evidence.score(view, labels))


def fit_of(evidence: Evidence, state: State | None = None) -> float:
    """Return the log likelihood of a state, less that of guessing each organ, so that masks of different organs compare.

    Without a state, it is that of the mask as it is.
    """
    state = state or state_of(evidence)
    return state.score + len(state.labels) * math.log(len(evidence.classes))


def fit_of_labels(evidence: Evidence, state: State | None = None) -> float:
    """Return the same without the orientation of the crops, which is not about labels."""
    state = state or state_of(evidence)
    view = replace(state.view, orientations=None)
    return fit_of(evidence, replace(state, score=evidence.score(view, state.labels)))


def explain(evidence: Evidence) -> tuple[State, list[Step]]:
    """Return the state that fits best, and the steps that lead to it.

    If nothing explains the scan as a whole, there is a step for each organ whose mask is shifted, and the state is without
    them.
    """
    start = state = state_of(evidence)
    steps: list[Step] = []
    while len(steps) < MOST_STEPS:
        best = max(_steps(evidence, state), key=lambda step: step.evidence, default=None)
        if best is None or best.evidence < LEAST_EVIDENCE:
            break
        steps.append(best)
        state = best.after
    if all(label == NO_CROP for label in state.labels):
        # Nothing else can be said about organs that are none.
        for step in _no_organs(evidence, start):
            if len(step.organs) == len(start.labels):
                return step.after, [step]
    return state, _label_changes_merged(evidence, steps) or _single_shifts(evidence)


def _label_changes_merged(evidence: Evidence, steps: list[Step]) -> list[Step]:
    """Merge the steps that give other classes into the last of them if one changes what another one changed.

    A later step may take back a part of an earlier one, so that neither alone is what the search ended with.
    """
    relabeling = [step for step in steps if step.before.labels != step.after.labels]
    organs = [i for step in relabeling for i in step.organs]
    if len(organs) == len(set(organs)):
        return steps
    last = relabeling[-1]
    names = relabeling[0].before.labels
    changed = tuple(i for i, name in enumerate(names) if name != last.after.labels[i])
    others = [step for step in steps if step not in relabeling]
    if not changed:
        return others
    if all(last.after.labels[i] == NO_CROP for i in changed):
        kind, message = "no organ crop", no_organ_message(evidence, changed)
    else:
        kind = "labels swapped" if len(changed) > 1 else "wrong label"
        message = _exchange_message(evidence, changed, last.after.labels)
    merged = Step(
        kind,
        message,
        changed,
        sum(step.evidence for step in relabeling),
        replace(last.before, labels=names, score=evidence.score(last.before.view, names)),
        last.after,
    )
    return [*others, merged]


def _exchange_message(evidence: Evidence, changed: Sequence[int], labels: Sequence[str]) -> str:
    pairs = [f"{evidence.structures[i].name} looks like {labels[i]}" for i in changed]
    return f"label {pairs[0]}" if len(pairs) == 1 else f"labels exchanged: {', '.join(pairs)}"


def _steps(evidence: Evidence, state: State) -> Iterator[Step]:
    yield from _label_steps(evidence, state)
    if state.axes is IDENTITY and state.move == UNMOVED:
        yield from _orientation_steps(evidence, state)
        yield from _placement_steps(evidence, state)
    if state.move == UNMOVED:
        yield from _shift_steps(evidence, state)


# Labels.


def _label_steps(evidence: Evidence, state: State) -> Iterator[Step]:
    names = state.labels
    pairs = [pair for pair in SIDE_PAIRS if pair[0] in names or pair[1] in names]
    if len(pairs) > 1:
        swapped = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
        message = "labels swapped: left <-> right of every paired organ"
        yield _relabeled(evidence, state, "labels swapped", message, swapped, "sides")
    for first, second in combinations(sorted({*names} - {NO_CROP}), 2):
        is_pair = (first, second) in SIDE_PAIRS
        message = f"labels swapped: {first} <-> {second}"
        swapped = {first: second, second: first}
        yield _relabeled(
            evidence, state, "labels swapped", message, swapped, "sides" if is_pair else "swap"
        )
    yield from _rearranged(evidence, state)
    yield from _no_organs(evidence, state)
    for i, name in enumerate(names):
        for label in evidence.classes:
            if label != name != NO_CROP:
                labels = (*names[:i], label, *names[i + 1 :])
                is_pair = (name, label) in SIDE_PAIRS or (label, name) in SIDE_PAIRS
                cost = COSTS["sides" if is_pair else "label"] + (label in names)
                original = evidence.structures[i].name
                message = f"label {original} looks like {label}"
                yield _step(
                    evidence,
                    state,
                    replace(state, labels=labels),
                    "wrong label",
                    message,
                    (i,),
                    cost,
                )


def _rearranged(evidence: Evidence, state: State) -> Iterator[Step]:
    """Yield the best assignment of all labels, if it changes at least three."""
    if NO_CROP in state.labels:
        return
    best = _own_labels(evidence, state)
    best_score = evidence.score(state.view, best)
    is_better = True
    while is_better:
        is_better = False
        for i, j in combinations(range(len(best)), 2):
            tried = list(best)
            tried[i], tried[j] = tried[j], tried[i]
            score = evidence.score(state.view, tried)
            if score > best_score + 1e-9:
                best, best_score, is_better = tried, score, True
    changed = tuple(
        i for i, pair in enumerate(zip(best, state.labels, strict=True)) if len(set(pair)) == 2
    )
    if len(changed) < 3:
        return
    after = replace(state, labels=tuple(best))
    cost = COSTS["label"] + COST_PER_LABEL * len(changed)
    message = _exchange_message(evidence, changed, best)
    yield _step(evidence, state, after, "labels swapped", message, changed, cost)


def _no_organs(evidence: Evidence, state: State) -> Iterator[Step]:
    """Yield that all structures whose crops look like no organ crops are none."""
    if state.view.orientations is None:
        return
    as_named = evidence.organ_scores(state.view, state.labels)
    as_none = evidence.organ_scores(state.view, [NO_CROP] * len(state.labels))
    # Intact parts of organs look like none, too.
    chosen = [
        i
        for i in np.flatnonzero(as_none - as_named > COST_PER_ORGAN).tolist()
        if evidence.orientation_weights[i] == 1
    ]
    if not chosen:
        return
    labels = tuple(NO_CROP if i in chosen else label for i, label in enumerate(state.labels))
    yield _step(
        evidence,
        state,
        replace(state, labels=labels),
        "no organ crop",
        no_organ_message(evidence, chosen),
        tuple(chosen),
        COSTS["no organ"] + COST_PER_ORGAN * len(chosen),
    )


def no_organ_message(evidence: Evidence, chosen: Sequence[int]) -> str:
    """Describe structures that are no organs, by their indices."""
    names = ", ".join(evidence.structures[i].name for i in chosen)
    if len(chosen) == 1:
        return f"the crops of {names} show no organ; check where its mask is"
    total = len(evidence.structures)
    check = (
        "check that the mask belongs to the scan, and that its values are Hounsfield units"
        if len(chosen) == total
        else "check where their masks are"
    )
    return f"the crops of {len(chosen)} of {total} organs show no organ: {names}; {check}"


def _own_labels(evidence: Evidence, state: State) -> list[str]:
    """The label that fits each structure best on its own, each label once, the clearest first."""
    scores = np.array(
        [
            evidence.organ_scores(state.view, [label] * len(state.labels))
            for label in evidence.classes
        ]
    )
    labels = list(state.labels)
    free_labels, free = list(range(len(evidence.classes))), list(range(len(labels)))
    while free and free_labels:
        part = scores[np.ix_(free_labels, free)]
        ranked = np.sort(part, axis=0)
        margins = ranked[-1] - (ranked[-2] if len(ranked) > 1 else 0)
        i = int(margins.argmax())
        label = free_labels[int(part[:, i].argmax())]
        labels[free[i]] = evidence.classes[label]
        free_labels.remove(label)
        free.pop(i)
    return labels


def _relabeled(
    evidence: Evidence, state: State, kind: str, message: str, new: dict[str, str], cost: str
) -> Step:
    labels = tuple(new.get(name, name) for name in state.labels)
    changed = tuple(i for i, name in enumerate(state.labels) if name in new)
    return _step(
        evidence, state, replace(state, labels=labels), kind, message, changed, COSTS[cost]
    )


def _step(
    evidence: Evidence,
    before: State,
    after: State,
    kind: str,
    message: str,
    organs: tuple[int, ...],
    cost: float,
) -> Step:
    score = evidence.score(after.view, after.labels)
    # A mask that is moved must also fit better in itself.
    gain = score - before.score + SPREAD_WEIGHT * (before.view.spread - after.view.spread)
    return Step(kind, message, organs, gain - cost, before, replace(after, score=score))


# Orientation and placement.


def _orientation_steps(evidence: Evidence, state: State) -> Iterator[Step]:
    everything = tuple(range(len(state.labels)))
    for axes in _signed_permutations():
        after = replace(state, axes=axes, view=evidence.view(axes))
        message = f"{axes_message(axes)}: scan and mask"
        yield _step(
            evidence, state, after, "orientation", message, everything, COSTS["orientation"]
        )


def _placement_steps(evidence: Evidence, state: State) -> Iterator[Step]:
    everything = tuple(range(len(state.labels)))
    for move in moves_of_axes(evidence.volume.hu.shape):
        axes = _axes_of(move, np.asarray(evidence.volume.affine, np.float64))
        what = axes_message(axes)
        for scan_axes, message in (
            (IDENTITY, f"{what}: the mask, not the scan"),
            (axes, f"{what}: the scan, not the mask"),
        ):
            after = replace(state, axes=scan_axes, move=move, view=evidence.view(scan_axes, move))
            yield _step(
                evidence, state, after, "mask placement", message, everything, COSTS["placement"]
            )


def _signed_permutations() -> list[Axes]:
    """All 48 but the identity."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            axes = np.zeros((3, 3), np.int64)
            axes[np.arange(3), order] = signs
            if (axes != IDENTITY).any():
                found.append(axes)
    return found


def _axes_of(move: Move, affine: NDArray[np.float64]) -> Axes:
    """What a move of the array does to the patient's axes."""
    steps = affine[:3, :3]
    cosines = steps / np.linalg.norm(steps, axis=0)
    array = np.zeros((3, 3))
    for new, (old, flip) in enumerate(zip(move.axes, move.flips, strict=True)):
        array[new, old] = -1 if flip else 1
    return np.asarray(np.rint(cosines @ array @ np.linalg.inv(cosines)), np.int64)


# Shifts.


def _shift_steps(evidence: Evidence, state: State) -> Iterator[Step]:
    """Yield the shift after which the organs are most homogeneous."""
    affine = np.asarray(evidence.volume.affine, np.float64)[:3, :3]
    spacing = np.linalg.norm(affine, axis=0)

    def moved(mm: NDArray[np.float64]) -> Move:
        x, y, z = np.rint(mm / spacing).astype(int).tolist()
        return Move(shift=(x, y, z))

    def spread(mm: NDArray[np.float64]) -> float:
        return evidence.spread(moved(mm))

    directions = [np.array(d, float) for d in product((-1, 0, 1), repeat=3) if any(d)]
    starts = [
        direction / np.linalg.norm(direction) * length
        for direction in directions
        for length in SHIFTS_MM
    ]
    best = min(starts, key=spread)
    best_spread = spread(best)
    for step in REFINEMENTS_MM:
        is_better = True
        while is_better:
            tries = [best + step * d for d in directions if np.abs(d).sum() == 1]
            candidate = min(tries, key=spread)
            is_better = spread(candidate) < best_spread - 1e-9
            if is_better:
                best, best_spread = candidate, spread(candidate)
    move = moved(best)
    mm = affine @ np.array(move.shift)
    if np.linalg.norm(mm) < LEAST_SHIFT_MM or best_spread >= state.view.spread:
        return
    after = replace(state, move=move, view=evidence.view(state.axes, move))
    message = f"mask shifted by {_shift_text(-(state.axes @ mm))}"
    yield _step(
        evidence,
        state,
        after,
        "mask shifted",
        message,
        tuple(range(len(state.labels))),
        COSTS["shift"],
    )


def _single_shifts(evidence: Evidence) -> list[Step]:
    """Return a step per doubtful organ that fits better somewhere else, as if the mask had only this organ."""
    found = []
    start = state_of(evidence)
    doubts = evidence.organ_scores(start.view, start.labels) < DOUBTFUL
    for i, one in enumerate(evidence.structures):
        if one.is_small or not doubts[i]:
            continue
        alone = replace(evidence, structures=(one,), _seen_before={})
        for step in _shift_steps(alone, state_of(alone)):
            gain = step.evidence - COST_PER_LABEL
            if gain >= LEAST_EVIDENCE:
                message = f"{one.name}: {step.message}"
                found.append(replace(step, message=message, organs=(i,), evidence=gain))
    return found


def _shift_text(mm: NDArray[np.float64]) -> str:
    towards = (("right", "left"), ("front", "back"), ("feet", "head"))
    parts = [
        f"{abs(length):.0f} mm toward the {names[int(length > 0)]}"
        for length, names in zip(mm, towards, strict=True)
        if abs(length) >= 2.5
    ]
    return ", ".join(parts)
