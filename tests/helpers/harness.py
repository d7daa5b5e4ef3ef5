"""A server on a real socket, a client that knows only bytes, a server process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import uvloop

import iproto

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from iproto.address import Address

# Seconds after which a wait in a test counts as lost. Nothing waits so long, even on a machine
# with ten times more to do than it has cores. TEST_PATIENCE multiplies it, where tests are slowed
# down on purpose: by a sanitizer, a tracer or another load.
PATIENCE = 40.0 * float(os.environ.get("TEST_PATIENCE", "1"))


def wait_until(condition: Callable[[], bool]) -> None:
    """Looks again and again, for what tells nobody that it has happened."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.005)


class Reply(NamedTuple):
    func_id: int
    request_id: int
    code: int | None
    body: bytes

    @property
    def value(self) -> Any:
        return msgpack.unpackb(self.body)


def frame(func_id: int, body: bytes = b"", request_id: int = 1) -> bytes:
    return struct.pack("<III", func_id, len(body), request_id) + body


def read_frame(index: int, request_id: int = 1) -> bytes:
    return frame(iproto.FuncID.STORAGE_READ, msgpack.packb(index), request_id)


def replace_frame(index: int, text: str | bytes, request_id: int = 1) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    body = msgpack.packb(index) + msgpack.packb(content, use_bin_type=False)
    return frame(iproto.FuncID.STORAGE_REPLACE, body, request_id)


class Peer:
    """One connection to a server under test."""

    def __init__(self, address: Address, *, dialect: str = "vk", receive_buffer: int = 0) -> None:
        self.mailru = dialect == "mailru"
        family = socket.AF_UNIX if address.path else socket.AF_INET
        if ":" in address.host:
            family = socket.AF_INET6
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect(address.path or (address.host, address.port))
        except BaseException:
            self.sock.close()
            raise
        self._buffer = b""
        self._at = 0  # of the buffer, taken already

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, func_id: int, body: bytes = b"", request_id: int = 1) -> Reply:
        self.send(frame(func_id, body, request_id))
        return self.reply()

    def reply(self) -> Reply:
        func_id, length, request_id = struct.unpack("<III", self._exactly(12))
        if length == 0 and func_id in (iproto.FuncID.PING, iproto.FuncID.SHUTDOWN):
            return Reply(func_id, request_id, None, b"")
        (code,) = struct.unpack("<I", self._exactly(4))
        return Reply(func_id, request_id, code, self._exactly(length - 4 * self.mailru))

    def raw_replies(self, count: int) -> bytes:
        """So many replies, as they came."""
        replies = b""
        for _ in range(count):
            header = self._exactly(12)
            func_id, length, _id = struct.unpack("<III", header)
            bare = length == 0 and func_id in (iproto.FuncID.PING, iproto.FuncID.SHUTDOWN)
            replies += header + self._exactly(0 if bare else length + 4 * (not self.mailru))
        return replies

    def replies(self, count: int) -> list[Reply]:
        return [self.reply() for _ in range(count)]

    def read(self, index: int) -> Any:
        reply = self.ask(iproto.FuncID.STORAGE_READ, msgpack.packb(index))
        assert reply.code == 0, reply
        return reply.value

    def rest(self) -> bytes:
        """Everything up to the server's end of the stream."""
        data = self._buffer[self._at :]
        self._buffer, self._at = b"", 0
        while chunk := self.sock.recv(1 << 16):
            data += chunk
        return data

    def finish_sending(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Closes with a reset, as a crashed peer's system does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size:
            chunk = self.sock.recv(1 << 18)
            if not chunk:
                held = len(self._buffer) - self._at
                raise EOFError(f"server closed; {held} of {size} bytes came")
            self._buffer = self._buffer[self._at :] + chunk
            self._at = 0
        self._at += size
        return self._buffer[self._at - size : self._at]


class Served:
    """A server that runs in a thread of its own."""

    def __init__(self, server: iproto.Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop

    @property
    def address(self) -> Address:
        return self.server.addresses[0]

    @property
    def url(self) -> str:
        dialect = self.server.config.dialect
        if self.address.path:
            return f"iproto+unix://{self.address.path}?dialect={dialect}"
        return f"iproto://{self.address}?dialect={dialect}"

    def peer(self, **options: Any) -> Peer:
        return Peer(self.address, dialect=str(self.server.config.dialect), **options)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs something in the server's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def closed(self) -> dict[str, int]:
        """How many connections ended, by reason; only reasons that occurred."""
        counts = self.server.storage.counters()["closed"]
        return {reason.name: counts[reason] for reason in iproto.CloseReason if counts[reason]}

    def wait_closed(self, count: int = 1) -> dict[str, int]:
        """Waits until this many connections have ended."""

        async def ended() -> None:
            while sum(self.server.storage.counters()["closed"]) < count:
                await asyncio.sleep(0.001)

        self.run(asyncio.wait_for(ended(), PATIENCE))
        return self.closed()


@contextlib.contextmanager
def serving(
    app: iproto.App | None = None,
    storage: iproto.Storage | None = None,
    *,
    loop: str = "uvloop",
    **settings: Any,
) -> Iterator[Served]:
    """Serves on port 0 while the block runs, then drains."""
    settings.setdefault("bind", "127.0.0.1:0")
    make_loop = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    started: queue.Queue[Served | BaseException] = queue.Queue()
    stop: Callable[[], object] = lambda: None  # noqa: E731

    async def main() -> None:
        nonlocal stop
        running = asyncio.get_running_loop()
        server = iproto.Server(iproto.Config(**settings), app, storage)
        stopping = asyncio.Event()
        stop = lambda: running.call_soon_threadsafe(stopping.set)  # noqa: E731
        try:
            async with server:
                started.put(Served(server, running))
                await stopping.wait()
        except BaseException as error:
            started.put(error)

    def run() -> None:
        own = make_loop()
        try:
            own.run_until_complete(main())
        finally:
            own.close()

    thread = threading.Thread(target=run, name="server under test", daemon=True)
    thread.start()
    served = started.get(timeout=PATIENCE)
    if isinstance(served, BaseException):
        raise served
    try:
        yield served
    finally:
        stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not stop"


class ServerProcess:
    """``iproto serve`` as a user runs it.

    Args:
        process: started with its standard error as a text pipe, which a thread reads from now on.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        """The lines that were waited for, and those before them."""
        self.addresses: list[str] = []
        self.metrics = ""
        self._lines: queue.Queue[str] = queue.Queue()  # an empty one is the end
        self._reader = threading.Thread(target=self._read, name="log of a server", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Reads the log until a line matches.

        Raises:
            AssertionError: none did within ``PATIENCE`` seconds, or before the log's end.
        """
        deadline = time.monotonic() + PATIENCE
        while line := self._next_line(deadline, pattern):
            match = re.search(pattern, line)
            if match:
                return match
        self._lines.put("")  # for the next to wait
        raise AssertionError(f"the log ended, and no line of it matched {pattern!r}:\n{self}")

    def wait_serving(self) -> None:
        """Reads the log until the server says where it serves."""
        match = self.wait_for(r"INFO.* serving (.*) \(dialect.*\)(?:, metrics on (\S+)/metrics)?")
        self.addresses = match[1].split(", ")
        self.metrics = match[2] or ""

    def peer(self, number: int = 0, **options: Any) -> Peer:
        from iproto.address import parse_address

        return Peer(parse_address(self.addresses[number]), **options)

    def end(self) -> tuple[int, str]:
        """Waits for the exit; the code, and the whole log."""
        deadline = time.monotonic() + PATIENCE
        while self._next_line(deadline, "the end of the process"):
            pass
        return self.process.wait(PATIENCE), "".join(self.log)

    def kill(self) -> None:
        """Ends the process, and the thread that reads its log."""
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)

    def _next_line(self, deadline: float, what: str) -> str:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"{what!r} did not come within {PATIENCE:g} s:\n{self}") from None
        self.log.append(line)
        return line

    def __str__(self) -> str:
        return "".join([*self.log, *self._lines.queue])


@contextlib.contextmanager
def serving_process(process: subprocess.Popen[str]) -> Iterator[ServerProcess]:
    """Waits until a process serves, and kills it at the end; prints its log if the test fails."""
    running = ServerProcess(process)
    try:
        running.wait_serving()
        yield running
    except BaseException:
        print(f"the server's log:\n{running}")
        raise
    finally:
        running.kill()


@contextlib.contextmanager
def serve_process(
    *arguments: str,
    env: dict[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    bare: bool = False,
) -> Iterator[ServerProcess]:
    """Runs ``iproto serve`` on port 0 (unless told otherwise, or bare); kills it at the end."""
    if "--bind" not in arguments and not bare:
        arguments = (*arguments, "--bind", "127.0.0.1:0")
    if "--metrics-bind" not in arguments and not bare:
        arguments = (*arguments, "--metrics-bind", "127.0.0.1:0")
    process = subprocess.Popen(
        [sys.executable, "-m", "iproto", "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    with serving_process(process) as running:
        yield running


def resident_bytes(pid: int | None = None) -> int:
    """The memory of a process that is in RAM; of this process by default."""
    pid = os.getpid() if pid is None else pid
    statm = Path(f"/proc/{pid}/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])) * 1024


def children(parent: int) -> list[int]:
    """The live child processes of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)
