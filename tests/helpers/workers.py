"""``iproto serve`` with workers: the processes, their figures, and clients that notice a loss."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import iproto
from tests.helpers.harness import PATIENCE, Peer, ServerProcess, children, frame, serve_process
from tests.helpers.metrics import Samples, parse

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def supervised(*arguments: str, workers: int = 2, **options: object) -> Iterator[ServerProcess]:
    level = () if "--log-level" in arguments else ("--log-level", "DEBUG")
    with serve_process("--workers", str(workers), *level, *arguments, **options) as running:  # type: ignore[arg-type]
        yield running


def pids(running: ServerProcess) -> list[int]:
    """The live workers of a supervisor."""
    return children(running.process.pid)


def alive(pid: int) -> bool:
    """Whether the process is there, and not only waits to be reaped."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def scrape(running: ServerProcess) -> Samples:
    host, port = running.metrics.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        return parse(connection.getresponse().read().decode())
    finally:
        connection.close()


APP = """
import iproto

app = iproto.App()

@app.function(0x30001)
def version() -> int:
    return {version}
"""


@contextlib.contextmanager
def installed(folder: Path, *arguments: str, **options: Any) -> Iterator[ServerProcess]:
    """A server of a copy of the package, which the test may change while it runs."""
    shutil.copytree(Path(iproto.__file__).parent, folder / "iproto")
    environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with supervised(*arguments, env=environment, **options) as running:
        yield running


class Resender(threading.Thread):
    """A client that pipelines, and on an orderly close sends again what was not answered.

    A server that drains answers all that it executed before it closes, so what
    is not answered was not executed.
    """

    def __init__(self, running: ServerProcess, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.running = running
        self.stop = stop
        self.answers: dict[int, int] = {}  # request_id → how many replies came
        self.asked = 0
        self.reconnects = -1
        self.failures: list[str] = []

    def run(self) -> None:
        waiting: list[int] = []
        while not self.stop.is_set() or waiting:
            self.reconnects += 1
            try:
                with self.running.peer() as peer:
                    waiting = self.talk(peer, waiting)
            except OSError as error:
                self.failures.append(repr(error))
                return

    def talk(self, peer: Peer, waiting: list[int]) -> list[int]:
        """Until the server closes: what has no answer then."""
        try:
            while waiting or not self.stop.is_set():
                if not waiting:
                    waiting = [*range(self.asked, self.asked + 30)]
                    self.asked += 30
                with contextlib.suppress(BrokenPipeError):
                    peer.send(b"".join(frame(0x30001, b"", i) for i in waiting))
                while waiting:
                    reply = peer.reply()
                    if reply.code != 0:
                        self.failures.append(str(reply))
                    self.answers[reply.request_id] = self.answers.get(reply.request_id, 0) + 1
                    waiting.remove(reply.request_id)
        except EOFError:
            pass
        return waiting


def write_code(folder: Path, text: str) -> None:
    """Another size and time than before, for the compiled copy goes by these."""
    path = folder / "service.py"
    path.write_text(text + f"# {time.time_ns()}\n")
