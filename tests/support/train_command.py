"""python -m train.all on OrganAMNIST as a smoke run: in a process of its own, or in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.data_files import DATA

ROOT = Path(__file__).resolve().parents[2]


def command(out, *arguments):
    start = [
        sys.executable,
        "-m",
        "train.all",
        "--dataset",
        "organamnist",
        "--data-dir",
        str(DATA),
        "--out",
        str(out),
    ]
    return [*start, "--device", "cpu", "--smoke", *arguments]


def train(out, *arguments, **options):
    return subprocess.run(
        command(out, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=600, **options
    )


def train_here(out, *arguments):
    """The same command in this process; its exit code."""
    from train.all import main

    return main([os.fspath(argument) for argument in command(out, *arguments)[3:]])


def results_of(out):
    return json.loads((Path(out) / "organamnist" / "results.json").read_text())
