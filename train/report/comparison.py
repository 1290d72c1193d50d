"""results.csv: the comparison table of the report as data."""

from __future__ import annotations

import csv
import io

from train.data import Data
from train.report.run import SPLITS, Row, Run
from train.results_format import METRICS

# of `train.report.run.Row.metric`
ROW_METRICS = (*METRICS, "ece_calibrated", "side_merged")
# of `train.results_format.StageResult`
RECORD = ("network", "parameters", "weights", "epochs", "best_epoch", "seconds")
COLUMNS = (
    "dataset",
    "size",
    "smoke",
    "stage",
    "seed",
    "split",
    *ROW_METRICS,
    *RECORD,
    "temperature",
)


def comparison_csv(run: Run, split: Data) -> str:
    """Write the comparison table: a row per stage, seed and split, with every metric.

    Args:
        run: the stages.
        split: the data set; its name and size stand in every row.

    Returns:
        The text of results.csv; undefined values are empty.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for stage in run.stages:
        for row in stage.rows:
            for name in SPLITS:
                about = {
                    "dataset": split.flag,
                    "size": split.size,
                    "smoke": "true" if run.smoke else "false",
                }
                writer.writerow(about | _cells(row, name))
    return text.getvalue()


def _cells(row: Row, split: str) -> dict[str, object]:
    """The cells of one stage, seed and split."""
    return {
        "stage": row.name,
        "seed": row.seed,
        "split": split,
        **{metric: row.metric(split, metric) for metric in ROW_METRICS},
        **{key: getattr(row.result, key) for key in RECORD},
        "temperature": row.temperature,
    }
