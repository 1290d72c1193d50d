"""The report of a run: one self-contained page, its figures, and the comparison table as data.

`write_report` may be called after every stage: what has not been run yet is said to be not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.data import Data

__all__ = ["write_report"]


def write_report(run_dir: Path, split: Data) -> Path:
    """Write `run_dir/report/index.html`, the figures beside it and `run_dir/results.csv`; return the page's path.

    Reads `results.json`, and of each stage `history.csv` and `probabilities.npz` where they are. `split` is the
    data set: `flag`, `view`, `size`, `md5`, `classes`, and `images` and `labels` by split. Raises RunError where
    results.json is missing or no JSON. Each file appears whole or not at all; the page is written last.
    """
    from train.record import atomic_write
    from train.report import measures, page, run

    finished = run.read(Path(run_dir))
    html, files = page.render(finished, split)
    report_dir = finished.directory / "report"
    for name, content in files.items():
        atomic_write(report_dir / name, content)
    atomic_write(finished.directory / "results.csv", measures.comparison_csv(finished, split))
    index = report_dir / "index.html"
    atomic_write(index, html)
    return index
