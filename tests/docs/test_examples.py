"""The example programs, run as a user runs them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import iproto
from tests.helpers.harness import PATIENCE, serve_process
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.checkout

EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}

ASYNC_CLIENT = """\
read 100 strings, the last is 'string 99'
lot 1 is a lamp, at 10
refused with 0x5102: bid 16 or more
refused: bid: Expected `int`, got `str` - at `price`
lot 2 is worth 50; the other expert: appraise ran for its limit of 0.5 s [TIMEOUT 0x4301]
"""

BLOCKING_CLIENT = """\
slot 7 holds 'hello'
slot 8 holds b'\\xff\\x00'
refused: storage is READ_ONLY: writes are refused until it is switched to READ_WRITE (0x00010002)
for sale: a lamp, a chair
"""


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@contextlib.contextmanager
def running(name: str) -> Iterator[str]:
    """A program that serves, and its address; it must end well on SIGTERM."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), "127.0.0.1:0"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            match = re.search(r"serving (\S+)", process.stdout.readline())
            assert match is not None
            yield match[1]
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            assert process.wait(PATIENCE) == 0, rest
            assert "stopped" in rest
        finally:
            watchdog.cancel()
            process.kill()


def test_every_example_is_run_here() -> None:
    names = {"service.py", "async_client.py", "blocking_client.py", "embedded.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == names


def test_the_async_client_calls_the_service() -> None:
    with running("service.py") as address:
        done = run("async_client.py", f"iproto://{address}")
    assert (done.stdout, done.stderr, done.returncode) == (ASYNC_CLIENT, "", 0)


def test_the_blocking_client_calls_the_service_run_by_the_command_line() -> None:
    with serve_process("service:app", cwd=EXAMPLES, env=ENVIRONMENT) as served:
        done = run("blocking_client.py", f"iproto://{served.addresses[0]}")
    assert (done.stdout, done.stderr, done.returncode) == (BLOCKING_CLIENT, "", 0)


def test_the_blocking_client_says_in_one_line_that_nobody_is_there() -> None:
    done = run("blocking_client.py", "iproto://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("cannot connect to 127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_the_embedded_server_serves_what_it_was_filled_with_and_tells_the_time() -> None:
    with running("embedded.py") as address, iproto.Client(f"iproto://{address}") as client:
        assert client.read_many([1, 2, 3]) == ["hello", "привет", "salut"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", client.read(0))
