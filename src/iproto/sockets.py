"""What every TCP connection is set to, on both sides, and accepting when descriptors run out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
import termios
from typing import Any

# Seconds without traffic after which the system asks a peer whether it is still
# there, seconds between two such probes, and probes without an answer after
# which the connection is broken: a peer that vanished is noticed in two minutes.
KEEPALIVE_IDLE = 60
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 4

# Descriptors that connections leave to the rest of the process: the metrics
# endpoint, files, and what user functions open. At most a quarter of the limit.
RESERVED_DESCRIPTORS = 64

_KEEPALIVE = (
    # macOS has another name for the first.
    ("TCP_KEEPIDLE" if sys.platform != "darwin" else "TCP_KEEPALIVE", KEEPALIVE_IDLE),
    ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
    ("TCP_KEEPCNT", KEEPALIVE_PROBES),
)


def tune(sock: socket.socket) -> None:
    """Sets up a TCP connection: small frames leave at once, and a vanished peer is noticed.

    Raises:
        OSError: the connection is broken.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def descriptor_limit() -> int:
    """How many descriptors this process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def first_reserved_descriptor() -> int:
    """The number from which on descriptors are not for connections.

    The system gives out the lowest number that is free, so a connection with this
    number or a higher one shows that few are left.
    """
    limit = descriptor_limit()
    return limit - min(RESERVED_DESCRIPTORS, limit // 4)


class SpareDescriptor:
    """A descriptor kept back, so that one connection can be accepted when none is left.

    It is there from the first ``restore`` on.
    """

    def __init__(self) -> None:
        self._fd = -1

    def accept(self, listener: socket.socket) -> tuple[socket.socket, Any]:
        """Accepts a connection, with the spare descriptor if no other is left.

        Call ``restore`` when the connection is closed.

        Returns:
            The connection, and the peer's address as the system has it.

        Raises:
            OSError: there is no connection, or no descriptor even so.
        """
        try:
            return listener.accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or self._fd < 0:
                raise
        self.close()
        return listener.accept()

    @property
    def is_used(self) -> bool:
        """Whether a connection has it now."""
        return self._fd < 0

    def restore(self) -> None:
        """Keeps a descriptor back again, if it was used and there is one."""
        if self._fd < 0:
            with contextlib.suppress(OSError):
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Gives the descriptor up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def unread_bytes(fd: int) -> int:
    """What the system has received for a socket and is not read yet."""
    return _ask_socket(fd, termios.FIONREAD)


def unacknowledged_bytes(fd: int) -> int:
    """What the system still has to deliver; 0 where it is unknown (macOS)."""
    try:
        return _ask_socket(fd, termios.TIOCOUTQ)
    except OSError:
        return 0


def _ask_socket(fd: int, question: int) -> int:
    buffer = fcntl.ioctl(fd, question, b"\0\0\0\0")
    return int(struct.unpack("i", buffer)[0])
