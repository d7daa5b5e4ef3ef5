"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs that the process may run on, within its cgroup's quota; at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    quota = cgroup_quota(_CGROUPS)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def cgroup_quota(root: Path) -> float | None:
    """CPUs that a cgroup's quota comes to; None if there is none.

    Args:
        root: where cgroups are mounted; within a container, its own cgroup.
    """
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:  # the first version of cgroups
        used = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        return used / int((root / "cpu" / "cpu.cfs_period_us").read_text()) if used > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
