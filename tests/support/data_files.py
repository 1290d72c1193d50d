"""Data that no clone holds: the directories that ORGAN_DATA_DIR and ORGAN_SCANS_DIR name. Tests that need it skip without it."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ORGAN_DATA_DIR") or os.devnull)

needs_organamnist = pytest.mark.skipif(
    not (DATA / "organamnist.npz").is_file(),
    reason="ORGAN_DATA_DIR does not name the directory of organamnist.npz",
)

# holds TotalSegmentator's example files in `totalsegmentator`
SCANS = Path(os.environ.get("ORGAN_SCANS_DIR") or os.devnull)

needs_scans = pytest.mark.skipif(
    not (SCANS / "totalsegmentator").is_dir(),
    reason="ORGAN_SCANS_DIR does not name the directory of the scans",
)
