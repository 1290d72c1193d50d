"""The report of a run: one self-contained page, its figures, and the comparison table as data.

`write_report` may be called after every stage; the page then says which stages have not been run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.data import Data

__all__ = ["write_report"]


def write_report(run_dir: Path, split: Data) -> Path:
    """Write `run_dir/report/index.html`, the figures beside it, and `run_dir/results.csv`.

    Each file appears whole or not at all; the page is written last.

    Args:
        run_dir: with results.json; robustness.json and each stage's history.csv and probabilities.npz are shown if
            they are there.
        split: the data set, with the images and labels of its splits.

    Returns:
        The page's path.

    Raises:
        RunError: results.json is missing or not readable.
    """
    from train.record import atomic_write
    from train.report import comparison, page, run

    finished = run.read(Path(run_dir))
    html, files = page.render(finished, split)
    report_dir = finished.directory / "report"
    for name, content in files.items():
        atomic_write(report_dir / name, content)
    atomic_write(finished.directory / "results.csv", comparison.comparison_csv(finished, split))
    index = report_dir / "index.html"
    atomic_write(index, html)
    return index
