"""TLS between a connection's socket and its frames.

What the extension does for a plain socket in one call, receive, execute and send, is done
here around ``ServerFrames.feed``; so a connection does not know which of both it has.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

from iproto.tls import Session, describe_error
from iproto.wire import CloseReason

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from iproto._fastframe import ServerFrames

# Bytes taken from the socket at once.
_CHUNK = 65536

# Looks at the socket in one turn.
_TRIES = 2


class SecureSocket:
    """A socket with TLS over it: what was encrypted goes out as the socket takes it.

    Args:
        sock: connected, non-blocking.
        session: its TLS.
    """

    __slots__ = ("_unsent", "session", "sock")

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.session = session
        self._unsent: bytes | memoryview = b""

    def receive(self, size: int = _CHUNK) -> bytes | None:
        """What the socket has; empty at the end of the stream, None if nothing is there yet.

        Raises:
            OSError: the connection broke.
        """
        try:
            return self.sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return None

    def push(self) -> int:
        """Sends what is encrypted; how many bytes went.

        Raises:
            OSError: the connection broke.
        """
        sent = 0
        while data := self._unsent or self.session.take():
            try:
                count = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                count = 0
            sent += count
            self._unsent = memoryview(data)[count:]
            if self._unsent:
                break
        return sent

    @property
    def is_flushed(self) -> bool:
        """Whether the socket took all."""
        return not self._unsent


class SecureStream:
    """Moves the bytes of a connection; as ServerFrames does for a plain socket.

    Args:
        secure: the socket, after the handshake.
        frames: the connection's own.
        on_failure: called with the reason, if TLS ends the connection.
    """

    __slots__ = (
        "_drain_left",
        "_drain_reason",
        "_finishing",
        "_frames",
        "_on_failure",
        "_secure",
        "_session",
    )

    def __init__(
        self, secure: SecureSocket, frames: ServerFrames, on_failure: Callable[[str], None]
    ) -> None:
        self._secure = secure
        self._session = secure.session
        self._frames = frames
        self._on_failure = on_failure
        self._finishing = False
        self._drain_reason = CloseReason.DRAIN
        # Bytes of the socket that are still to be executed in a drain; None while there is none.
        self._drain_left: int | None = None

    def receive(self, fd: int, /) -> int:
        """Takes what the socket has, executes it, sends the replies; the frames' status."""
        # As the extension does: behind a chunk that brings no reply there may be a reset, of
        # which uvloop reports only once.
        share = min(_CHUNK, self._frames.take_share())
        for _try in range(_TRIES):
            left = self._drain_left
            size = share if left is None else min(share, left)
            try:
                data = self._secure.receive(size)
            except OSError:
                self._frames.break_off(CloseReason.RESET)
                break
            self._frames.set_input(data is not None and len(data) == size)
            if data is None:
                break
            if not data:
                # OpenSSL does not get to know: it would refuse to encrypt replies still to come.
                self._frames.end_input()
                break
            has_sent = self._take_in(data)
            if left is not None:
                self._end_drain(left - len(data))
            if has_sent or self._frames.status:
                break
        return self._frames.status

    def resume(self, fd: int, /) -> int:
        """Goes on with what a bound left, or a handshake."""
        self._frames.take_share()
        self._take_in(b"")
        return self._frames.status

    def flush(self, fd: int, /) -> None:
        """Sends what waits, and behind the last bytes of all TLS's own end."""
        if self._secure.is_flushed:
            answers = self._frames.take()
            if answers:
                self._session.send(answers)
            if self._finishing:
                self._finishing = False
                self._session.close()
        self._push()

    def drain(self, unread: int, reason: CloseReason) -> None:
        """Closes once ``unread`` bytes of the socket are decrypted and executed."""
        if self._drain_left is None:
            self._drain_reason = reason
            self._end_drain(unread)

    def finish(self) -> None:
        """Everything is answered: what ``flush`` sends next are the last bytes."""
        self._frames.finish()
        self._finishing = True

    def _end_drain(self, left: int) -> None:
        if left > 0:
            self._drain_left = left
        else:
            self._drain_left = None
            self._frames.drain(0, self._drain_reason)

    def _take_in(self, data: bytes) -> bool:
        """Decrypts, executes and answers; whether bytes went out."""
        frames, session = self._frames, self._session
        try:
            requests = session.receive(data)
        except ssl.SSLError as error:
            self._fail(error)
            return False
        replies = frames.feed(requests)
        answers = frames.take()  # of calls: they were there first
        if answers:
            session.send(answers)
        if replies:
            session.send(replies)
        if session.ended:
            frames.end_input()
        return self._push()

    def _push(self) -> bool:
        try:
            sent = self._secure.push()
        except OSError:
            self._frames.break_off(CloseReason.RESET)
            return False
        if sent:
            self._frames.note_traffic()
        self._frames.set_unsent(not self._secure.is_flushed)
        return sent > 0

    def _fail(self, error: ssl.SSLError) -> None:
        with contextlib.suppress(OSError):
            self._secure.push()  # the alert
        self._frames.break_off(CloseReason.TLS_FAILED)
        self._on_failure(describe_error(error))
