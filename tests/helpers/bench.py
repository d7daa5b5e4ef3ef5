"""``iproto bench`` as a user runs it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from iproto._fastframe import ROWS
from tests.helpers.harness import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from iproto import FuncID
    from tests.helpers.harness import Served

COMMAND = (sys.executable, "-m", "iproto", "bench")


def bench(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--url", url, *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def report(url: str, *options: str, code: int = 0) -> dict[str, Any]:
    """What a short test reports, whose accounts must add up."""
    options = ("--duration", "0.3", "--connections", "4", "--json", *options)
    ended = bench(patient(url), *options)
    assert (ended.returncode, ended.stderr) == (code, ""), ended.stderr
    return checked(ended.stdout)


def checked(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    counts = found["requests"]
    assert counts["sent"] == counts["answered"] + counts["lost"]
    return found


@contextlib.contextmanager
def started(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A test of minutes, which somebody has to end."""
    process = subprocess.Popen(
        [*COMMAND, "--url", patient(url), "--json", "--duration", "300", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def report_once(reached: Callable[[], bool], url: str, *options: str) -> dict[str, Any]:
    """What a test reports that a signal ends once something has happened."""
    with started(url, "--connections", "4", *options) as process:
        wait_until(reached)
        process.send_signal(signal.SIGTERM)
        text, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "")
    return checked(text)


def patient(url: str) -> str:
    """A URL whose time-out, unless it has one, no busy machine comes to."""
    if "timeout=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}timeout={PATIENCE:g}"


def requests(served: Served, func_id: FuncID) -> int:
    """How many the server has counted."""
    return sum(served.server.storage.counters()["requests"][ROWS.index(func_id)])
