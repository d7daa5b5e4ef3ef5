"""Waiting for a socket with a bound."""

from __future__ import annotations

import select
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class HasFileno(Protocol):
        """A socket, or what has one."""

        def fileno(self) -> int: ...


class Poll:
    """Waits for a socket."""

    def __init__(self, sock: HasFileno) -> None:
        self._sock = sock.fileno()
        self._out = False
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def wait(self, *, out: bool, seconds: float) -> tuple[bool, bool]:
        """Returns whether the socket can be read, and whether it can be written.

        Args:
            out: whether to wait for the socket to be writable, too.
            seconds: the longest wait.
        """
        if out is not self._out:
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if out else 0))
            self._out = out
        for _, events in self._poll.poll(ceil(seconds * 1000)):
            # Errors and ends are found by reading.
            return bool(events & ~select.POLLOUT), bool(events & select.POLLOUT)
        return False, False


class Select:
    """The same where there is no poll()."""

    def __init__(self, sock: HasFileno) -> None:
        self._sock = sock

    def wait(self, *, out: bool, seconds: float) -> tuple[bool, bool]:
        """As ``Poll.wait``."""
        senders = [self._sock] if out else []
        ins, outs, _ = select.select([self._sock], senders, [], seconds)
        return bool(ins), bool(outs)


def new_poller(sock: HasFileno) -> Poll | Select:
    """What the platform has; poll() takes files of any number, select() does not."""
    return Poll(sock) if hasattr(select, "poll") else Select(sock)
