"""The report of a run: one self-contained page, its figures, and the comparison table as CSV.

`write_report` may be called after every stage. The page then lists the stages that have not been run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.data import Data
    from train.report.mpl import Figure

__all__ = ["write_report"]


def write_report(
    run_dir: Path,
    data: Data,
    *,
    show: Callable[[Mapping[str, Figure]], object] = lambda figures: None,
) -> Path:
    """Write `run_dir/report/index.html`, the figures beside it, and `run_dir/results.csv`.

    Each file appears whole or not at all; the page is written last.

    Args:
        run_dir: the directory of a run, with results.json. robustness.json and each stage's history.csv and
            probabilities.npz are shown if they exist.
        data: the data set of the run.
        show: called with the figures of the page, by name.

    Returns:
        The page's path.

    Raises:
        RunError: results.json is missing or not readable.
    """
    from train.record import atomic_write
    from train.report import comparison, page
    from train.report.run import read_run

    run = read_run(Path(run_dir))
    html, files = page.render(run, data)
    show(files.figures)
    report_dir = run.directory / "report"
    for name, content in files.items():
        atomic_write(report_dir / name, content)
    atomic_write(run.directory / "results.csv", comparison.comparison_csv(run, data))
    index = report_dir / "index.html"
    atomic_write(index, html)
    return index
