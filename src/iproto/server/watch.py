"""What an event loop watches of one connection's socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

    from iproto._fastframe import ServerFrames
    from iproto.server.hangups import Hangups


class Watcher(Protocol):
    """The receiver of a socket's events."""

    frames: ServerFrames

    def on_readable(self) -> None: ...
    def on_writable(self) -> None: ...
    def on_hangup(self) -> None: ...


class SocketWatch:
    """What the loop watches of a socket: nothing at first.

    Args:
        fd: the socket.
        hangups: finds a reset while the socket is neither read nor written.
        loop: the running loop.
    """

    __slots__ = ("_fd", "_hangup", "_hangups", "_loop", "_paused", "_writing", "reading")

    def __init__(self, fd: int, hangups: Hangups, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = fd
        self._hangups = hangups
        self._loop = loop
        self.reading = False
        self._writing = False
        self._hangup = False
        # It was not read for replies that wait, a full queue or a rate. To wait for a turn of
        # the loop is no pause: a client can bring that about with each part of a frame.
        self._paused = False

    def set(
        self,
        watcher: Watcher,
        *,
        reading: bool = False,
        writing: bool = False,
        hangup: bool = False,
    ) -> None:
        """Watches for these, and for nothing else.

        Args:
            watcher: gets the events; not kept, for it has this object itself.
            reading: whether the socket has something to read.
            writing: whether it takes something.
            hangup: whether it was reset.
        """
        self._paused = self._paused or writing or hangup
        if hangup != self._hangup:
            self._hangup = hangup
            if hangup:
                self._hangups.watch(self._fd, watcher.on_hangup)
            else:
                self._hangups.unwatch(self._fd)
        if reading != self.reading:
            # Each is noted so that a failure leaves it to be removed.
            if reading:
                self.reading = True
                if self._paused:
                    self._paused = False
                    watcher.frames.touch()
                self._loop.add_reader(self._fd, watcher.on_readable)
            else:
                self._loop.remove_reader(self._fd)
                self.reading = False
        if writing != self._writing:
            if writing:
                self._writing = True
                self._loop.add_writer(self._fd, watcher.on_writable)
            else:
                self._loop.remove_writer(self._fd)
                self._writing = False
