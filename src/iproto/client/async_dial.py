"""Connecting from asyncio to a server that may have several addresses.

As dial.py; asyncio's own ``happy_eyeballs_delay`` is not there in uvloop.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from iproto._fastframe import AS_BYTES
from iproto.client.async_link import Link
from iproto.client.dial import STAGGER, DialError, interleaved, is_refusal
from iproto.client.reasons import ended_error

if TYPE_CHECKING:
    from iproto.client.async_link import Owner
    from iproto.client.dial import Place
    from iproto.client.route import Route
    from iproto.tls import Session

# Bytes taken from the socket at once in a TLS handshake.
_CHUNK = 16384


async def new_link(owner: Owner, loop: asyncio.AbstractEventLoop) -> Link:
    """Connects a link, and finds out the server's dialect if it is not known.

    Args:
        owner: gets the link's events.
        loop: the running loop.

    Raises:
        DialError: no address could be connected to.
        ConnectionError: the connection ended before the dialect was known.
        IprotoError: the stream cannot be read on, or the link was given up.
        Unexecuted: the server announced its end.
    """
    route = owner.route
    session = route.new_session()
    sock = await dial(loop, route)
    try:
        if session is not None:
            await _handshake(loop, sock, session)
        state = route.new_link()
        create = (
            loop.create_connection if route.target.path is None else loop.create_unix_connection
        )
        _, link = await create(lambda: Link(owner, state, session), sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        if link.frames.mailru is None:
            await _probe(route, link, loop)
        if state.ended is not None:
            raise ended_error(state.ended)
    except BaseException:
        link.end("the client gave the connection up")
        raise
    return link


async def _handshake(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, session: Session
) -> None:
    """Makes the TLS handshake of a connection.

    Raises:
        DialError: it failed.
    """
    import ssl  # not at the top: OpenSSL is for those who use it

    from iproto.client.tls import TLSFailure

    try:
        while not session.handshake():
            await loop.sock_sendall(sock, session.take())
            data = await loop.sock_recv(sock, _CHUNK)
            if not data:
                raise ConnectionResetError("the server closed it in the TLS handshake")
            session.put(data)
        await loop.sock_sendall(sock, session.take())
    except ssl.SSLError as error:
        with suppress(OSError):
            sock.send(session.take())  # the alert
        raise DialError(TLSFailure(error)) from None
    except ConnectionError as error:
        raise DialError(error) from None


async def _probe(route: Route, link: Link, loop: asyncio.AbstractEventLoop) -> None:
    """Finds out the server's dialect, with a read."""
    probe = loop.create_future()
    link.frames.read(0, AS_BYTES, probe, inf)
    link.flush_soon()
    error: Exception | None = None
    try:
        await probe
    except Exception as failure:
        error = failure
    route.probed(link.frames, error)


async def dial(loop: asyncio.AbstractEventLoop, route: Route) -> socket.socket:
    """Connects; cancelled when it has taken too long.

    Returns:
        A connected socket that does not block.

    Raises:
        DialError: every address refused, or there is none.
    """
    places = await _places(loop, route)
    attempts: set[asyncio.Task[socket.socket]] = set()
    last: Exception = OSError("the name has no address")
    try:
        while places or attempts:
            if places:
                attempts.add(loop.create_task(_connected(loop, route, places.pop(0))))
            await asyncio.wait(
                attempts,
                timeout=STAGGER if places else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in [attempt for attempt in attempts if attempt.done()]:
                error = attempt.exception()
                if error is None:
                    attempts.remove(attempt)
                    return attempt.result()
                attempts.remove(attempt)
                if not isinstance(error, Exception) or not is_refusal(error):
                    raise error
                last = error
        raise DialError(last)
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_close_late)
            attempt.cancel()


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """Closes a socket that was connected when another one had been taken."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _places(loop: asyncio.AbstractEventLoop, route: Route) -> list[Place]:
    target = route.target
    if target.path is not None:
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", target.path)]
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise DialError(error) from None
    return interleaved(found)


async def _connected(loop: asyncio.AbstractEventLoop, route: Route, place: Place) -> socket.socket:
    family, kind, protocol, _, address = place
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        route.tune(sock)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
