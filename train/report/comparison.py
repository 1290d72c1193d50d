"""results.csv: the comparison table of the report as CSV."""

from __future__ import annotations

import csv
import io

from train.data import Data
from train.report.run import SPLITS, Row, Run
from train.results_format import METRICS

# names for `train.report.run.Row.metric`
ROW_METRICS = (*METRICS, "ece_calibrated", "side_merged")
# fields of `train.results_format.StageResult`
RESULT_FIELDS = ("network", "parameters", "weights", "epochs", "best_epoch", "seconds")
COLUMNS = (
    "dataset",
    "size",
    "smoke",
    "stage",
    "seed",
    "split",
    *ROW_METRICS,
    *RESULT_FIELDS,
    "temperature",
)


def comparison_csv(run: Run, data: Data) -> str:
    """Format the comparison table: a row per stage, seed and split, with every metric.

    Args:
        run: the run.
        data: the data set; its name and size are in every row.

    Returns:
        The text of results.csv; undefined values are empty.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for stage in run.stages:
        for row in stage.rows:
            for split in SPLITS:
                run_cells = {
                    "dataset": data.flag,
                    "size": data.size,
                    "smoke": "true" if run.smoke else "false",
                }
                writer.writerow(run_cells | _cells(row, split))
    return text.getvalue()


def _cells(row: Row, split: str) -> dict[str, object]:
    """The cells of one stage, seed and split."""
    return {
        "stage": row.name,
        "seed": row.seed,
        "split": split,
        **{metric: row.metric(split, metric) for metric in ROW_METRICS},
        **{key: getattr(row.result, key) for key in RESULT_FIELDS},
        "temperature": row.temperature,
    }
