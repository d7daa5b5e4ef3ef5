"""The asyncio client.

A call builds its frames into the connection's codec and waits for a future.
What the calls of one turn of the loop have built leaves in one write at its
end, and a received chunk settles the futures of all replies in it.
"""

from __future__ import annotations

import warnings
from asyncio import get_running_loop
from time import monotonic
from typing import TYPE_CHECKING, Any

from iproto._fastframe import AS_BODY, AS_BYTES, AS_NOTHING, AS_RESPONSE, AS_TEXT, ClientFrames
from iproto.address import DEFAULT_URL
from iproto.checks import checked_func_id, checked_timeout
from iproto.client.arguments import (
    MAX_BODY,
    MAX_REQUEST,
    NIL,
    checked_body,
    item_list,
    make_target,
    pack_args,
    unpack_result,
)
from iproto.client.async_calls import run
from iproto.client.async_connection import Connection
from iproto.client.bulk import Bulk
from iproto.client.route import Route
from iproto.wire import Dialect, FuncID, Response

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from iproto.client.arguments import Build


class AsyncClient:
    """Calls a server from asyncio; concurrent calls share one connection.

    It connects at the first call, or at :meth:`connect`, and again when a call
    finds the connection lost. Failed attempts are spaced, 50 ms at first and
    5 s at last. It belongs to the event loop that it first connects in.

    Every call takes ``timeout``, in seconds, over 0, at most 86400 (None: the
    client's), for all of it: waiting for a connection, sending, and the reply.
    Every call may raise :class:`~iproto.errors.Error` or its subclass for the
    reply's return code, :class:`~iproto.errors.TransportError` or a subclass if
    no answer came, and :class:`~iproto.errors.ProtocolError` if the server broke
    the protocol. A call may be cancelled; the server may still execute it.

    Args:
        url: ``iproto://host:port?dialect=vk&timeout=5`` or
            ``iproto+unix:///path?...``; see :func:`iproto.client.url.parse_url`.
        dialect: vk, mailru or auto, instead of the URL's.
        timeout: seconds, over 0, at most 86400, instead of the URL's.
        max_body: longest reply body taken, 1..2**32-1 bytes.
        max_request: longest request body sent, 1..2**32-1 bytes; a longer one is refused as
            the server would.
        ssl_context: of TLS, in place of the files in an ``iprotos://`` URL.

    Raises:
        ConfigError: an argument is out of its range, or a file of TLS cannot be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        dialect: Dialect | str | None = None,
        timeout: float | None = None,
        max_body: int = MAX_BODY,
        max_request: int = MAX_REQUEST,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        target = make_target(url, dialect, timeout)
        self._timeout = target.timeout
        self._connection = Connection(Route(target, max_body, max_request, ssl_context))

    # Calls.

    async def read(self, index: int, *, timeout: float | None = None) -> str:
        """The string in a slot.

        Args:
            index: the slot, 0..999.
            timeout: seconds for the whole call; None: the client's.

        Raises:
            OutOfRangeError: there is no such slot.
            LockedError: the storage is in MAINTENANCE.
            TextError: the slot's bytes are not UTF-8; see :meth:`read_bytes`.
        """
        text: str = await self._run(lambda f, w, d: f.read(index, AS_TEXT, w, d), timeout)
        return text

    async def read_bytes(self, index: int, *, timeout: float | None = None) -> bytes:
        """The bytes in a slot, UTF-8 or not; otherwise as :meth:`read`."""
        content: bytes = await self._run(lambda f, w, d: f.read(index, AS_BYTES, w, d), timeout)
        return content

    async def replace(
        self, index: int, content: str | bytes, *, timeout: float | None = None
    ) -> None:
        """Puts a string into a slot.

        Args:
            index: the slot, 0..999.
            content: at most 256 bytes; a ``str`` goes as UTF-8.
            timeout: seconds for the whole call; None: the client's.

        Raises:
            OutOfRangeError: there is no such slot.
            IllegalParamsError: the content is too long.
            ReadOnlyError, LockedError: the storage's state forbids it.
        """
        await self._run(lambda f, w, d: f.replace(index, content, w, d), timeout)

    async def read_many(self, indexes: Iterable[int], *, timeout: float | None = None) -> list[str]:
        """The strings of many slots, in one go; each as by :meth:`read`.

        Args:
            indexes: the slots, 0..999, in any order, any number of them.
            timeout: seconds for the whole call; None: the client's.

        Raises:
            Error, TextError: of the first item that failed; ``item`` is its position.
        """
        texts: list[str] = await self._read_many(indexes, AS_TEXT, timeout)
        return texts

    async def read_many_bytes(
        self, indexes: Iterable[int], *, timeout: float | None = None
    ) -> list[bytes]:
        """The bytes of many slots, UTF-8 or not; otherwise as :meth:`read_many`."""
        contents: list[bytes] = await self._read_many(indexes, AS_BYTES, timeout)
        return contents

    async def replace_many(
        self,
        items: Mapping[int, str | bytes] | Iterable[tuple[int, str | bytes]],
        *,
        timeout: float | None = None,
    ) -> None:
        """Puts strings into many slots, in one go; each as by :meth:`replace`.

        The items are requests of their own: if one fails, the others are done.

        Args:
            items: slot → content, or pairs of them, any number.
            timeout: seconds for the whole call; None: the client's.

        Raises:
            Error: of the first item that failed; ``item`` is its position.
        """
        pairs = item_list(items)
        if not pairs:
            self._connection.check_usable(get_running_loop())
            return
        await self._run(Bulk(ClientFrames.replace_many, pairs), timeout)

    async def switch_readonly(self, *, timeout: float | None = None) -> None:
        """Puts the storage into READ_ONLY: reads work, writes fail."""
        await self._do(FuncID.ADM_STORAGE_SWITCH_READONLY, NIL, AS_NOTHING, timeout)

    async def switch_readwrite(self, *, timeout: float | None = None) -> None:
        """Puts the storage into READ_WRITE, its first state."""
        await self._do(FuncID.ADM_STORAGE_SWITCH_READWRITE, NIL, AS_NOTHING, timeout)

    async def switch_maintenance(self, *, timeout: float | None = None) -> None:
        """Puts the storage into MAINTENANCE: neither reads nor writes work."""
        await self._do(FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, NIL, AS_NOTHING, timeout)

    async def ping(self, *, timeout: float | None = None) -> None:
        """Returns when the server has answered."""
        await self._do(FuncID.PING, b"", AS_NOTHING, timeout)

    async def call(self, func_id: int, *args: Any, timeout: float | None = None) -> Any:
        """Calls one of the server's own functions.

        Args:
            func_id: the function, 0..2**32-1.
            args: sent as one MsgPack array; aware datetimes as timestamps.
            timeout: seconds for the whole call; None: the client's.

        Returns:
            The one MsgPack object of the reply; timestamps as datetimes in UTC.

        Raises:
            UnsupportedCommandError: there is no such function.
            ProtocolError: the reply's body is not exactly one MsgPack object.
        """
        body = await self._do(checked_func_id(func_id), pack_args(args), AS_BODY, timeout)
        return unpack_result(func_id, body)

    async def request(self, func_id: int, body: bytes, *, timeout: float | None = None) -> Response:
        """Sends a body as it is, and returns the response as it is.

        Args:
            func_id: the function, 0..2**32-1.
            body: MsgPack, or whatever the function takes.
            timeout: seconds for the whole call; None: the client's.

        Returns:
            Header, return code and body; the return code is not raised.
        """
        response: Response = await self._do(
            checked_func_id(func_id), checked_body(body), AS_RESPONSE, timeout
        )
        return response

    async def _read_many(
        self, indexes: Iterable[int], outcome: int, timeout: float | None
    ) -> list[Any]:
        slots = list(indexes)
        if not slots:
            self._connection.check_usable(get_running_loop())
            return []
        results: list[Any] = await self._run(
            Bulk(lambda f, items, w, d: f.read_many(items, outcome, w, d), slots), timeout
        )
        return results

    async def _do(self, func_id: int, body: bytes, outcome: int, timeout: float | None) -> Any:
        return await self._run(lambda f, w, d: f.request(func_id, body, outcome, w, d), timeout)

    def _run(self, build: Build, timeout: float | None) -> Coroutine[Any, Any, Any]:
        seconds = self._timeout if timeout is None else checked_timeout(timeout)
        return run(self._connection, build, seconds, monotonic() + seconds)

    # The connection.

    @property
    def dialect(self) -> Dialect:
        """The server's dialect; ``auto`` until the first connection has found it."""
        return self._connection.route.dialect

    async def connect(self, *, timeout: float | None = None) -> None:
        """Connects now rather than at the first call.

        Args:
            timeout: seconds; None: the client's.

        Raises:
            ConnectError: the attempt failed.
            CallTimeoutError: there was no connection in time.
        """
        seconds = self._timeout if timeout is None else checked_timeout(timeout)
        loop = get_running_loop()
        self._connection.check_usable(loop)
        await self._connection.opened(loop, monotonic() + seconds, seconds)

    async def aclose(self) -> None:
        """Closes; calls in flight and later ones raise ClientClosedError.

        It may be called twice.
        """
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        connection = self._connection
        return f"<iproto.AsyncClient {connection.route.target.url}, {connection.status}>"

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)  # not there if an argument was refused
        if connection is not None and connection.status == "connected":
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            connection.abandon()
