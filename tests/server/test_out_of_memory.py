"""A server that runs out of memory: connections end, it lives on, and data stays data."""

from __future__ import annotations

import contextlib
import re
import resource
import selectors
import socket
import struct
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import iproto
from iproto.server import repeats
from tests.helpers.harness import PATIENCE, frame, replace_frame, serve_process

if TYPE_CHECKING:
    from tests.helpers.harness import ServerProcess

ECHO = 0x00030001
SLOT = 7

# More than the server may have, and than its sockets' buffers take.
CLIENTS = 600
SPARE = 16 << 20
SECONDS = 5.0

APP = f"""
import iproto
app = iproto.App()

@app.function({ECHO:#x})
async def echo(data: bytes) -> bytes:
    return data
"""


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


class Caller:
    """Sends calls of ``echo``, whose data is frames of REPLACE, as fast as it may."""

    DATA = replace_frame(SLOT, "evil", request_id=0xEE11) * 4000
    CALL = frame(ECHO, b"\xc6" + struct.pack(">I", len(DATA)) + DATA, request_id=5)

    def __init__(self, server: ServerProcess) -> None:
        host, _, port = server.addresses[0].rpartition(":")
        self.sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self.sock.setblocking(False)
        self.sent = 0
        self.received = 0
        self.head = b""
        self.left = 0
        self.evil: list[bytes] = []

    def send(self) -> None:
        # In pieces that end where a frame of the data begins: 17 bytes are before it.
        at = self.sent % len(self.CALL)
        end = 17 + 3000 * (len(self.DATA) // 4000)
        self.sent += self.sock.send(self.CALL[at:end] if at < end else self.CALL[at:])

    def receive(self) -> bool:
        """Takes what came, and looks at the head of each reply; False: the end."""
        data = self.sock.recv(1 << 16)
        self.received += len(data)
        view = data
        while view:
            if self.left:
                skipped = min(self.left, len(view))
                self.left -= skipped
                view = view[skipped:]
                continue
            take = 16 - len(self.head)
            self.head, view = self.head + view[:take], view[take:]
            if len(self.head) == 16:
                func_id, length, request_id, _code = struct.unpack("<IIII", self.head)
                if (func_id, request_id) != (ECHO, 5):
                    self.evil.append(self.head)
                    return False
                self.left, self.head = length, b""
        return bool(data)


@pytest.mark.address_space
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_data_of_calls_is_never_executed_when_the_server_has_no_memory(
    loop: str, tmp_path: Path
) -> None:
    (tmp_path / "echoing.py").write_text(APP)
    arguments = ("echoing:app", "--loop", loop, "--storage-file", str(tmp_path / "slots"))
    with serve_process(*arguments, cwd=tmp_path) as server:
        began = time.monotonic()
        pid = server.process.pid
        unlimited = resource.prlimit(pid, resource.RLIMIT_AS)
        limit = address_space(pid) + SPARE
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, unlimited[1]))
        evil = []
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            for _ in range(CLIENTS):
                caller = Caller(server)
                stack.callback(caller.sock.close)
                selector.register(caller.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, caller)
            end = time.monotonic() + SECONDS
            ended = 0
            while time.monotonic() < end and len(selector.get_map()) > 0:
                for key, events in selector.select(0.1):
                    caller = key.data
                    try:
                        # Half of them never read: their replies use the memory up.
                        open_ = True
                        if events & selectors.EVENT_READ and caller.sock.fileno() % 2:
                            open_ = caller.receive()
                        if events & selectors.EVENT_WRITE:
                            caller.send()
                    except BlockingIOError:
                        continue
                    except OSError:
                        open_ = False
                    if not open_:
                        ended += 1
                        evil += caller.evil
                        selector.unregister(caller.sock)
        assert not evil, f"replies to what was data: {evil[:3]}"
        assert server.process.poll() is None, "the server died"
        assert ended, "memory sufficed: nothing was tested"
        with server.peer() as peer:
            assert peer.read(SLOT) == ""
            assert peer.ask(iproto.FuncID.PING).request_id == 1
        resource.prlimit(pid, resource.RLIMIT_AS, unlimited)  # the metrics need a thread
        with urllib.request.urlopen(f"{server.metrics}/metrics", timeout=PATIENCE) as answer:
            failed = re.search(rb'closed_total{reason="failed"} (\d+)', answer.read())
        assert failed, "the metric is not there"
        assert int(failed[1]) > 0
        server.process.terminate()
        _code, log = server.end()
    lines = len(re.findall("an error came up within the server", log))
    periods = (time.monotonic() - began) // repeats.PERIOD + 1
    # In each a line, and one on how many more there were.
    assert 1 <= lines <= 2 * periods, log[-2000:]
