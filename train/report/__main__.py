"""python -m train.report RUN_DIR: rewrite the report of a run, finished or not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export.console import run_command
from train.errors import RunError
from train.report import write_report


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit code: 0 done, 2 nothing could be done.
    """
    return run_command("train.report", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    """Run the command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.report", description="Rewrite the report of a run, finished or not."
    )
    parser.add_argument(
        "run_dir",
        type=Path,
        metavar="RUN_DIR",
        help="directory of a data set, such as runs/organsmnist",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="directory of the data set's file (default: the one that the run used)",
    )
    options = parser.parse_args(arguments)
    try:
        from train.data import load_data
        from train.data_dir import data_dir_of, own_data_of
        from train.results_format import read_results

        results = read_results(options.run_dir)
        dataset = results.dataset
        if dataset is None or not dataset.flag:
            raise RunError(
                f"{options.run_dir}/results.json: names no data set; rerun python -m train.all"
            )
        data = own_data_of(dataset, options.data_dir) or load_data(
            dataset.flag,
            size=dataset.size,
            directory=data_dir_of(results, options.data_dir),
            resample_from=dataset.resample_from,
            resample=dataset.resample,
        )
        if data.own and results.smoke:
            data = data.smoke()
        page = write_report(options.run_dir, data)
    except RunError as e:
        print(f"train.report: error: {e}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(
            f"train.report: error: {e.filename or options.run_dir}: {e.strerror or e}",
            file=sys.stderr,
        )
        return 2
    except Exception as e:
        from export.machine import machine_failure

        if (reason := machine_failure(e)) is None:
            raise
        print(
            f"train.report: error: {reason}; free memory or disk space and rerun the command",
            file=sys.stderr,
        )
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
