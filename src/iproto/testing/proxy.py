"""Stands between clients and a server, and applies the faults to calls."""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from iproto.results import pack
from iproto.wire import FuncID

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from iproto.address import Address
    from iproto.testing.faults import Fault, Faults

HEADER = Struct("<III")
CODE = Struct("<I")

# Their replies are a header, and nothing else.
BARE = (FuncID.PING, FuncID.SHUTDOWN)


class Proxy:
    """Listens on a free port of 127.0.0.1.

    Args:
        target: the server's address.
        dialect: ``"vk"`` or ``"mailru"``, which the server speaks.
        faults: what happens to calls.
    """

    def __init__(self, target: Address, dialect: str, faults: Faults) -> None:
        self._target = target
        self._code_in_length = dialect == "mailru"
        self._faults = faults
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted close in the loop's next turn

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._listener.sockets[0].getsockname()
        return host, port

    async def _accept(
        self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server = await asyncio.open_connection(*self._target[:2])
        except OSError:  # the server drains: its clients see an end, as they do without us
            client.close()
            return
        way = _Way(client, server, self._faults, self._code_in_length)
        try:
            await _first(way.requests(client_reader), way.replies(server_reader))
            client.close()
            await client.wait_closed()
        except (_Cut, OSError):
            pass
        finally:
            client.transport.abort()
            server.transport.abort()


class _Cut(Exception):
    """The connection is to end without a word."""


async def _first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs them until one ends, and cancels the others; raises what that one has raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Way:
    """One connection of a client, and the one to the server behind it."""

    def __init__(
        self,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        faults: Faults,
        code_in_length: bool,
    ) -> None:
        self._client = client
        self._server = server
        self._faults = faults
        self._code_in_length = code_in_length
        # Of requests without a reply, in their order: ids may come twice.
        self._pending: list[_Pending] = []
        self._late = 0.0  # when the last reply with a delay leaves, in the loop's time

    async def requests(self, reader: asyncio.StreamReader) -> None:
        """Passes on what the client sends, until a cut."""
        while True:
            try:
                head = await reader.readexactly(HEADER.size)
                func_id, length, request_id = HEADER.unpack(head)
                body = await reader.readexactly(length)
            except asyncio.IncompleteReadError:
                # The client has no more requests, and still waits for replies.
                self._server.write_eof()
                await asyncio.get_running_loop().create_future()
                return
            fault = self._faults.take(func_id)
            if fault.cut == "request":
                raise _Cut
            if fault.code:
                self._client.write(self._refusal(func_id, request_id, fault))
                continue
            self._pending.append(_Pending(func_id, request_id, fault))
            self._server.write(head + body)
            await self._server.drain()

    async def replies(self, reader: asyncio.StreamReader) -> None:
        """Passes on what the server sends, until a cut or its end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                head = await reader.readexactly(HEADER.size)
            except asyncio.IncompleteReadError:
                await asyncio.sleep(self._late - loop.time())
                return
            func_id, length, request_id = HEADER.unpack(head)
            if func_id not in BARE and not self._code_in_length:
                length += CODE.size
            reply = head + await reader.readexactly(length)
            fault = self._fault_of(func_id, request_id)
            if fault is not None and fault.cut == "reply":
                raise _Cut
            if fault is not None and fault.delay:
                self._late = max(self._late, loop.time() + fault.delay)
                loop.call_later(fault.delay, self._write, reply)
            else:
                self._write(reply)
                await self._client.drain()

    def _write(self, data: bytes) -> None:
        if not self._client.is_closing():
            self._client.write(data)

    def _fault_of(self, func_id: int, request_id: int) -> Fault | None:
        for at, pending in enumerate(self._pending):
            if pending[:2] == (func_id, request_id):
                return self._pending.pop(at).fault
        return None

    def _refusal(self, func_id: int, request_id: int, fault: Fault) -> bytes:
        body = pack(fault.text)
        length = len(body) + (CODE.size if self._code_in_length else 0)
        return HEADER.pack(func_id, length, request_id) + CODE.pack(fault.code) + body


class _Pending(NamedTuple):
    func_id: int
    request_id: int
    fault: Fault
