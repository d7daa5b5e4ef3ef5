"""What the system says of TCP connections of this machine, from /proc."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="the timers of sockets are read from /proc"
)


def keepalive_in(*, remote: int, local: int | None = None) -> float:
    """Seconds until the system asks whether a connection's peer is there.

    Args:
        remote: the peer's port.
        local: this end's port; None if the peer has one connection only.
    """
    (timer,) = (
        fields[5]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == "01"  # established
        and int(fields[2].rpartition(":")[2], 16) == remote
        and local in (None, int(fields[1].rpartition(":")[2], 16))
    )
    kind, ticks = timer.split(":")
    assert kind == "02", "the keepalive timer"
    return int(ticks, 16) / 100
