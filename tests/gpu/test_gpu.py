"""The most important checks of prove.py as tests, on a machine with a GPU: `pytest tests/gpu`.

Each runs in a worker process, so that pytest itself never imports PyTorch or onnxruntime.
"""

from pathlib import Path

import pytest
from proof.harness import OK, SKIPPED, Settings, run_checks
from proof.table import CHECKS
from support.data_files import DATA

DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # Linux, and Linux on Windows
TESTED = (
    "cuda_equals_cpu",
    "node_placement",
    "cuda_graphs",
    "lifetimes",
    "beside_torch",
    "device",
    "evaluation",
    "host_waits",
    "precisions",
    "deterministic",
    "two_ranks",
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not any(Path(name).exists() for name in DEVICES), reason="needs an NVIDIA GPU"
    ),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings("cuda", quick=False, data_dir=DATA, scratch=tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("name", TESTED)
def test_it_is_proved(name, settings):
    check = next(check for check in CHECKS if check.name == name)
    (result,) = run_checks([check], settings, budget=300)
    if result.verdict == SKIPPED:
        pytest.skip(result.reason)
    assert result.verdict == OK, f"{result.verdict}: {result.reason}"
