"""The checks, one row each, the most important first. A new check is a new row and its function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proof import runtime_checks as runtime
from proof import training_checks as training
from proof import training_commands as commands
from proof.harness import Check, Context

# cuBLAS computes the same bits each time only with a fixed workspace, which it reads when it starts.
FIXED_WORKSPACE = (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),)


def _row(
    run: Callable[[Context], None], seconds: float, quick_seconds: float, **options: Any
) -> Check:
    """A check that is named as its function, and proves what the first sentence of its docstring says."""
    group = "runtime" if run.__module__ == runtime.__name__ else "training"
    proves = (run.__doc__ or "").splitlines()[0].rstrip(".")
    return Check(run.__name__, group, run, proves, seconds, quick_seconds, **options)


# The check, the seconds it takes on one H100 (measured; for ladder estimated), and with --quick on two CPU cores.
CHECKS = (
    _row(runtime.cuda_equals_cpu, 5, 12),
    _row(runtime.node_placement, 20, 5),
    _row(runtime.cuda_graphs, 3, 5),
    _row(runtime.latency_packaged, 3, 10),
    _row(runtime.latency_ensemble, 16, 30),
    _row(runtime.lifetimes, 5, 15, fresh=True),
    _row(runtime.beside_torch, 8, 15),
    _row(training.device, 5, 10),
    _row(training.evaluation, 8, 12),
    _row(training.host_waits, 4, 5),
    _row(training.networks, 95, 40),
    _row(training.precisions, 10, 20),
    _row(training.deterministic, 25, 30, environment=FIXED_WORKSPACE),
    _row(commands.two_ranks, 40, 30),
    _row(training.small_maps, 25, 15),
    _row(training.augmentation, 3, 5),
    _row(training.evaluation_memory, 8, 10),
    _row(training.checkpoint, 4, 10),
    _row(commands.ladder, 150, 30, fills=True),
)
