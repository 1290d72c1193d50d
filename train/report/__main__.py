"""`python -m train.report RUN_DIR`: write the report of a run again, finished or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train.errors import RunError
from train.report import write_report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.report", description=__doc__)
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the directory of a data set, as runs/organsmnist"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="where the MedMNIST files lie (default: medmnist's own folder)"
    )
    options = parser.parse_args(arguments)
    try:
        from train.data import load_data
        from train.report import run

        dataset = run.read(options.run_dir).results.get("dataset") or {}
        if "flag" not in dataset:
            raise RunError(f"{options.run_dir}/results.json does not name its data set")
        split = load_data(
            dataset["flag"],
            size=dataset.get("size", 28),
            directory=options.data_dir,
            resample_from=dataset.get("resample_from"),
        )
        page = write_report(options.run_dir, split)
    except RunError as e:
        print(f"train.report: error: {e}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(f"train.report: error: {e.strerror or e}: {e.filename or options.run_dir}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
