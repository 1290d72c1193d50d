"""How many threads this process may use: the affinity mask and the container's quota, not the machine's count."""

import math
import os
from pathlib import Path

__all__ = ["usable_processors"]


def usable_processors(root: Path = Path("/")) -> int:
    """Processors this process may keep busy at once, at least 1; `root` is where /proc and /sys are."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(root)
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Processors granted by the control groups this process is in (version 2, then 1), or None where unlimited."""
    quotas = []
    for group in _cgroup_paths(root):
        for folder in (group, *group.parents):  # a limit anywhere above holds too
            found = _quota_in(folder)
            if found is not None:
                quotas.append(found)
            if folder in (root / "sys/fs/cgroup", root):
                break
    return min(quotas, default=None)


def _cgroup_paths(root: Path) -> list[Path]:
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
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us")
        period = _text(folder / "cpu.cfs_period_us")
    try:
        found = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # absent, or "max"
        return None
    return found if found > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
