"""One connection of the asyncio client: bytes between the transport and the codec."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import ssl

    from iproto.client.link import LinkState
    from iproto.client.route import Route
    from iproto.errors import IprotoError
    from iproto.tls import Session


# Bytes taken from the socket of a link that was lost, at once.
_CHUNK = 65536


class Owner(Protocol):
    """The receiver of a link's events."""

    route: Route

    def paused(self, link: Link) -> None: ...
    def resumed(self, link: Link) -> None: ...
    def retired(self, link: Link) -> None: ...
    def ended(self, link: Link) -> None: ...


class Link(asyncio.Protocol):
    """One connection; no policy.

    Args:
        owner: hears what becomes of the link.
        state: what is known of it.
        session: its TLS, after the handshake; None for none.
    """

    def __init__(self, owner: Owner, state: LinkState, session: Session | None = None) -> None:
        self._owner = owner
        self._session = session
        self._loop = asyncio.get_running_loop()
        self.state = state
        self.frames = state.frames
        self.closed: asyncio.Future[None] = self._loop.create_future()
        # Whether a write at the end of this loop turn is on its way.
        self.flushing = False
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._session is not None:
            self._loop.call_soon(self.data_received, b"")  # what came with the handshake's end

    def data_received(self, data: bytes) -> None:
        if self._session is not None:
            data = self._decrypt(self._session, data)
            if not data:
                return
        state = self.state
        if state.chunks == 0:
            self._owner.route.backoff.succeeded()
        for waiter, error, result in state.receive(data):
            if waiter.done():  # cancelled in this very turn
                continue
            if error is None:
                waiter.set_result(result)
            else:
                waiter.set_exception(error)
        if state.fault is not None:
            self.end(state.fault)
        elif self.frames.retired:
            self._owner.retired(self)
            if not self.frames.waiting:
                self.end(f"{state.address} was about to close the connection")

    def _decrypt(self, session: Session, data: bytes) -> bytes:
        try:
            plain = session.receive(data)
        except OSError as error:  # ssl.SSLError is one
            from iproto.client.tls import TLSFailure

            self.end(self.state.lost_reason(TLSFailure(cast("ssl.SSLError", error))))
            return b""
        answer = session.take()  # of OpenSSL itself, to a new key
        if answer and not self._transport.is_closing():
            self._transport.write(answer)
        return plain

    def pause_writing(self) -> None:
        self.paused = True
        self._owner.paused(self)

    def resume_writing(self) -> None:
        self.paused = False
        self._owner.resumed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if exc is not None and self.state.ended is None:
            self._receive_rest()
        self.end(self.state.lost_reason(exc))

    def _receive_rest(self) -> None:
        """A write failed: what had come before may say why, and what was not executed."""
        sock = self._transport.get_extra_info("socket")
        with suppress(OSError):
            while self.state.ended is None and (data := os.read(sock.fileno(), _CHUNK)):
                self.data_received(data)

    def flush_soon(self) -> None:
        """Sends what is built, and will be built in this loop turn, at its end."""
        self.flushing = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flushing = False
        if self.state.ended is not None:
            return
        try:
            data = self.frames.take()
            if self._session is not None:
                self._session.send(data)
                data = self._session.take()
            self._transport.write(data)
        except MemoryError as error:
            self.end(self.state.lost_reason(error))  # a request may have left in part

    def suspect(self, chunks: int, seconds: float, now: float) -> bool:
        """A call timed out: whether the link is dropped for it; see ``LinkState.suspect``."""
        if self.state.suspect(chunks, seconds, now):
            self.end(self.state.silent_reason(seconds))
            return True
        if not self.flushing:
            self.flush_soon()
        return False

    def end(self, reason: str | IprotoError) -> None:
        """Fails all that is in flight, and closes; the first reason counts."""
        if self.state.ended is not None:
            return
        failures = self.state.end(reason)
        self._owner.ended(self)
        for waiter, error in failures:
            if not waiter.done():
                waiter.set_exception(error)
        # What the peer doesn't read would keep a closing transport for ever.
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()
