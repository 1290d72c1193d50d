"""Data that no clone holds: the directory that ORGAN_DATA_DIR names. Tests that need it skip without it."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ORGAN_DATA_DIR") or os.devnull)

needs_organamnist = pytest.mark.skipif(
    not (DATA / "organamnist.npz").is_file(),
    reason="ORGAN_DATA_DIR does not name the directory of organamnist.npz",
)
