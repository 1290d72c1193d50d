"""Data that lies beside the repository where it is developed and in CI; tests that need it skip elsewhere."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parent.parent.parent / "shared"
DATA = Path(os.environ.get("ORGAN_DATA_DIR", BESIDE / "data"))

needs_organamnist = pytest.mark.skipif(
    not (DATA / "organamnist.npz").is_file(),
    reason=f"organamnist.npz is not in {DATA} (ORGAN_DATA_DIR names another directory)",
)
