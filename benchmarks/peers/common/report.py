"""What all reports need: on what machine it was, and numbers to three digits."""

from __future__ import annotations

import os
import platform
from pathlib import Path

OURS = "iproto"
LIMIT = "c-epoll"


def environment() -> dict[str, str]:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def short(number: float) -> str:
    """Write a number to three significant digits: 31.4 M, 1.67 M, 254 k, 900, 3.92, 0.26."""
    for unit, name in ((1e6, " M"), (1e3, " k"), (1.0, "")):
        if number >= unit:
            scaled = number / unit
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{name}"
    return f"{number:.2g}"
