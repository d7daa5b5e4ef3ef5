"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """CPUs that the process may run on, within the quotas of its cgroups; at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    try:
        own = _OWN_CGROUPS.read_text()
    except OSError:
        own = ""
    quota = cgroup_quota(_CGROUPS, own)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def cgroup_quota(root: Path, own: str) -> float | None:
    """CPUs that the smallest quota comes to, of a process's cgroup and all around it.

    Args:
        root: where cgroups are mounted.
        own: the text of /proc/self/cgroup; within a container its paths may lead
            nowhere, and ``root`` is the container's own cgroup.

    Returns:
        None if there is no quota.
    """
    quotas = [
        quota
        for folder in _folders(root, own)
        for quota in (_quota_v2(folder), _quota_v1(folder))
        if quota is not None
    ]
    return min(quotas, default=None)


def _folders(root: Path, own: str) -> Iterator[Path]:
    """The folders of a process's cgroups, from the inmost to the root, for both versions."""
    yield root
    yield root / "cpu"
    for line in own.splitlines():
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        inmost = base / path.strip("/")
        yield inmost
        for folder in inmost.parents:
            if folder == root:
                break
            yield folder


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
