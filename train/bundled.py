"""States which network a bundle of the run holds, and why: for the end of a run and for the report."""

from __future__ import annotations

import statistics

from train.results_format import Results
from train.stages import STAGES


def mean_over(seeds: int) -> str:
    """Return what every value over several seeds is called, at the end of a run and in the report."""
    return f"as the mean over {seeds} seeds"


def stage_of_members(members: set[str]) -> str:
    """Return the stage whose networks are the members of a bundle."""
    averages = (stage.name for stage in STAGES.values() if set(stage.members) == members)
    return next(averages, "") or next(iter(sorted(members)), "")


def describe_bundle(results: Results, stage: str, seed: int) -> list[str]:
    """State which network `bundle/` holds.

    Args:
        results: of the run.
        stage: in the bundle.
        seed: of its networks.

    Returns:
        One sentence on the network and its seed, and a second one if another stage is better on validation.
    """
    rows = [row for row in results.rows_of(stage) if row.val]
    accuracy = next((row.val.accuracy for row in rows if row.val and row.seed == seed), None)
    means = _validation_means(results)
    text = f"{stage}, the last measured stage of the ladder"
    if len(rows) > 1:
        text += f"; seed {seed}, the best of seeds {', '.join(str(row.seed) for row in rows)} on validation"
        if accuracy is not None:
            text += f": accuracy {accuracy:.4f} with seed {seed}, {means[stage]:.4f} {mean_over(len(rows))}"
    else:
        shown = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
        text += f"{shown}; seed {seed}"
    lines = [text]
    best = max(means, key=lambda name: means[name], default=stage)
    if best != stage and means[best] > means.get(stage, -1.0):
        place = f"bundle-{best}" if STAGES[best].members else f"{best}/, without a bundle"
        seeds = len(results.rows_of(best))
        shown = f"{means[best]:.4f}{f' {mean_over(seeds)}' if seeds > 1 else ''}"
        lines.append(f"{best} is the best stage on validation ({shown}); it is in {place}")
    return lines


def _validation_means(results: Results) -> dict[str, float]:
    """Return the mean validation accuracy over seeds by stage."""
    accuracies: dict[str, list[float]] = {}
    for row in results.stages:
        if row.val and row.name in STAGES:
            accuracies.setdefault(row.name, []).append(row.val.accuracy)
    return {name: statistics.fmean(values) for name, values in accuracies.items()}
