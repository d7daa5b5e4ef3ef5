"""A short soak; the long one is ``make soak``."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import soak


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc")
def test_killed_workers_leave_every_slots_history_linearizable() -> None:
    report = soak(4.0)
    print(report)
    assert report.wrong == []
    assert report.kills >= 5
    assert report.operations > 1000
