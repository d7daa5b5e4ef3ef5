"""Waiting for a socket with a bound, or until a bell rings."""

from __future__ import annotations

import select
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


class Poll:
    """Waits for a socket and a bell."""

    def __init__(self, sock: socket.socket, bell: socket.socket) -> None:
        self._sock = sock.fileno()
        self._out = False
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(bell, select.POLLIN)

    def wait(self, *, out: bool, seconds: float) -> tuple[bool, bool, bool]:
        """Returns whether the socket can be read, can be written, and the bell rang.

        Args:
            out: whether to wait for the socket to be writable, too.
            seconds: the longest wait.
        """
        if out is not self._out:
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if out else 0))
            self._out = out
        readable = writable = rung = False
        for file, events in self._poll.poll(ceil(seconds * 1000)):
            if file == self._sock:
                writable = bool(events & select.POLLOUT)
                readable = bool(events & ~select.POLLOUT)  # errors and ends included
            else:
                rung = True
        return readable, writable, rung


class Select:
    """The same where there is no poll()."""

    def __init__(self, sock: socket.socket, bell: socket.socket) -> None:
        self._sock = sock
        self._bell = bell

    def wait(self, *, out: bool, seconds: float) -> tuple[bool, bool, bool]:
        """As ``Poll.wait``."""
        senders = [self._sock] if out else []
        ins, outs, _ = select.select([self._sock, self._bell], senders, [], seconds)
        return self._sock in ins, bool(outs), self._bell in ins


def new_poller(sock: socket.socket, bell: socket.socket) -> Poll | Select:
    """What the platform has; poll() takes files of any number, select() does not."""
    return Poll(sock, bell) if hasattr(select, "poll") else Select(sock, bell)
