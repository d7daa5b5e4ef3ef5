"""TLS of the clients: what a server's certificate must be, and a socket for the blocking client."""

from __future__ import annotations

import contextlib
import ssl
from time import monotonic
from typing import TYPE_CHECKING

from iproto.client.polling import new_poller
from iproto.errors import ConfigError
from iproto.tls import Session, describe_error, set_policy

if TYPE_CHECKING:
    import socket

    from iproto.client.url import TLS

# Bytes encrypted at once, before the socket has taken those before.
_CHUNK = 1 << 18

# Bytes taken from the socket at once in a handshake.
_READ = 16384


class TLSFailure(OSError):
    """TLS ended a connection; never leaves the client.

    Args:
        error: what OpenSSL said.
    """

    def __init__(self, error: ssl.SSLError) -> None:
        # A number of no system's error: the text counts.
        super().__init__(-1, f"TLS failed: {describe_error(error)}")


def new_context(tls: TLS) -> ssl.SSLContext:
    """What a client trusts, and what it has to show.

    Args:
        tls: the files; the system's authorities are trusted if it names none.

    Raises:
        ConfigError: a file cannot be used; the text names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    set_policy(context)
    if tls.ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cafile=tls.ca)
        except OSError as error:
            raise _unusable(f"the authorities in {tls.ca}", error) from None
    if tls.cert is not None:
        try:
            # A password would be asked for at the terminal.
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
        except OSError as error:
            raise _unusable(
                f"certificate {tls.cert} with key {tls.key or tls.cert}", error
            ) from None
    return context


def _unusable(what: str, error: OSError) -> ConfigError:
    why = describe_error(error) if isinstance(error, ssl.SSLError) else error.strerror
    return ConfigError(
        f"cannot use {what}: {why}; name files in PEM, with a key that is not encrypted"
    )


class SecureSocket:
    """A connected socket that does not block, with TLS over it: what a blocking link needs of one.

    Args:
        sock: the socket; closed with this one.
        session: its TLS.
    """

    __slots__ = ("_early", "_encrypted", "_session", "_sock", "_unsent")

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self._sock = sock
        self._session = session
        self._unsent: bytes | memoryview = b""
        self._encrypted = 0  # bytes of the caller's in `_unsent`, which it hears of at the end
        self._early = b""  # what came with the end of the handshake

    def handshake(self, deadline: float) -> bool:
        """Makes the handshake; False if the deadline passes.

        Args:
            deadline: as ``monotonic`` has it.

        Raises:
            OSError: it failed, or the connection broke.
        """
        poll = new_poller(self._sock)
        while True:
            try:
                is_done = self._session.handshake()
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):
                    self._push()  # the alert
                raise TLSFailure(error) from None
            with contextlib.suppress(BlockingIOError):
                self._push()
            if is_done and not self._unsent:
                self._early = self._session.receive(b"")
                return True
            left = deadline - monotonic()
            if left <= 0:
                return False
            readable, _ = poll.wait(out=bool(self._unsent), seconds=left)
            if readable and not is_done:
                with contextlib.suppress(BlockingIOError):
                    data = self._sock.recv(_READ)
                    if not data:
                        raise ConnectionResetError("the server closed it in the TLS handshake")
                    self._session.put(data)

    def fileno(self) -> int:
        """The socket's number, to wait for it."""
        return self._sock.fileno()

    def send(self, data: memoryview) -> int:
        """Sends the beginning of some bytes; how many.

        Raises:
            BlockingIOError: the socket takes no more now; to be called again with the same bytes.
            OSError: the connection broke.
        """
        if not self._encrypted:
            chunk = data[:_CHUNK]
            self._session.send(chunk)
            self._encrypted = len(chunk)
        self._push()
        sent, self._encrypted = self._encrypted, 0
        return sent

    def recv(self, size: int) -> bytes:
        """What has come; empty at the end of the stream.

        Raises:
            BlockingIOError: nothing is here now.
            OSError: the connection broke.
        """
        if self._early:
            early, self._early = self._early, b""
            return early
        data = self._sock.recv(size)
        if not data:
            return b""
        try:
            plain = self._session.receive(data)
        except ssl.SSLError as error:
            raise TLSFailure(error) from None
        if not plain and not self._session.ended:
            raise BlockingIOError
        return plain

    def shutdown(self, how: int) -> None:
        """Ends the stream, for another thread that waits for it."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Closes the socket. Nothing is said to the server, for this may be a forked child."""
        self._sock.close()

    def _push(self) -> None:
        while data := self._unsent or self._session.take():
            self._unsent = data
            self._unsent = memoryview(data)[self._sock.send(data) :]


def secured(sock: socket.socket, session: Session, deadline: float) -> SecureSocket | None:
    """Makes the handshake of a connection; None if the deadline passes. Owns the socket.

    Raises:
        OSError: it failed.
    """
    try:
        secure = SecureSocket(sock, session)
        if secure.handshake(deadline):
            return secure
    except BaseException:
        sock.close()
        raise
    sock.close()
    return None
