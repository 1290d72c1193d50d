"""The number of processors that this process may use, by its affinity mask and the container's quota."""

import math
import os
from pathlib import Path

__all__ = ["usable_processors"]


def usable_processors(root: Path = Path("/")) -> int:
    """Return the number of processors that this process may keep busy at the same time.

    Args:
        root: The directory that contains /proc and /sys.

    Returns:
        At least 1.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        # Not on every system, and a sandbox may refuse the call.
        count = os.cpu_count() or 1
    quota = _cgroup_quota(root)
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Return the processors that the control groups of this process allow (version 2 or 1); None without a limit."""
    quotas = []
    for group in _cgroup_paths(root):
        # The limits of all parent groups apply, too.
        for folder in (group, *group.parents):
            quota = _quota_in(folder)
            if quota is not None:
                quotas.append(quota)
            if folder in (root / "sys/fs/cgroup", root):
                break
    return min(quotas, default=None)


def _cgroup_paths(root: Path) -> list[Path]:
    """Return the directories of this process's control groups, of both versions."""
    base = root / "sys/fs/cgroup"
    paths = [base, base / "cpu"]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            paths.append(base / path.strip("/"))
        elif "cpu" in controllers.split(","):
            paths.append(base / "cpu" / path.strip("/"))
    return paths


def _quota_in(folder: Path) -> float | None:
    """Return the processors that one control group allows; None without a limit."""
    time, _, period = _text(folder / "cpu.max").partition(" ")
    if not time:
        time = _text(folder / "cpu.cfs_quota_us")
        period = _text(folder / "cpu.cfs_period_us")
    try:
        quota = int(time) / int(period)
    except (ValueError, ZeroDivisionError):
        # No such file, or "max".
        return None
    return quota if quota > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
