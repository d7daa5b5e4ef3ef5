"""A server that runs: started, found ready, watched, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from benchmarks.peers.common import watch
from benchmarks.peers.common.servers import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers.common.servers import Server

READY_SECONDS = 15.0  # to accept a connection; Tarantool writes a snapshot first
STOP_SECONDS = 5.0  # to end after SIGTERM, before SIGKILL


class ServerError(Exception):
    """A server did not start, or ended while it was measured."""


class Running:
    """A server that runs, and the processes that it has started."""

    def __init__(
        self, server: Server, port: int, process: subprocess.Popen[bytes], output: IO[bytes]
    ) -> None:
        self.server = server
        self.port = port
        self._process = process
        self._output = output

    def pids(self) -> list[int]:
        """Return the server's process, and all that descend from it."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                # The name, in parentheses, may hold spaces; what follows is state, ppid ...
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(stat.parent.name))
        found = [self._process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU time that all of them have used so far."""
        return watch.cpu_seconds(self.pids())

    def said(self) -> str:
        """Return what it has written so far."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def check(self) -> None:
        if self._process.poll() is not None:
            raise ServerError(f"{self.server.name} ended with {self._process.returncode}")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServerError(f"{self.server.name} does not serve after {READY_SECONDS:g} s")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        if self.server.serves_when_it_says not in self.said():
            return False
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
            return True
        return False

    def stop(self) -> None:
        pids = self.pids()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        if self._process.poll() is None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running(server: Server, pin: list[str]) -> Iterator[Running]:
    """Run a server, in an empty directory, for as long as the block lasts."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as output,
    ):
        process = subprocess.Popen(
            [*pin, *server.command(port)],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        started = Running(server, port, process, output)
        try:
            started.wait_until_ready()
            yield started
            started.check()
        except ServerError as error:
            lines = started.said().strip().splitlines()
            raise ServerError(f"{error}; its last words: {lines[-1] if lines else '-'}") from None
        finally:
            started.stop()
