"""A short soak, and a few pauses; the long ones are ``make soak`` and ``make pauses``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.pauses import measure
from tests.workers.soak import soak

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)


def test_killed_workers_leave_every_slots_history_linearizable() -> None:
    report = soak(4.0)
    print(report)
    assert report.wrong == []
    assert report.kills >= 5
    assert report.operations > 1000


@pytest.mark.parametrize("lock_held", [False, True])
def test_the_others_answer_everything_when_a_worker_is_killed(lock_held: bool) -> None:
    kill = measure(lock_held=lock_held, seed=1)
    assert kill.refused == 0
    assert (kill.freed is not None) == lock_held
