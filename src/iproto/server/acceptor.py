"""Accepting connections: listening sockets that the loop watches, and too few descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

from iproto.address import address_of
from iproto.server import listeners
from iproto.server.listeners import Listener
from iproto.sockets import SpareDescriptor, descriptor_limit, first_reserved_descriptor, tune
from iproto.wire import CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from iproto._fastframe import Storage
    from iproto.address import Address
    from iproto.server.config import Config
    from iproto.server.listener_config import ListenerConfig
    from iproto.server.repeats import Repeats

# Connections accepted in one turn of the loop, before others get theirs.
ACCEPTS_A_TURN = 64

# Seconds without accepting when the system has no room for another connection
# (too many open files, no memory): trying again at once would only burn CPU.
ACCEPT_PAUSE = 0.5


class Acceptor:
    """The listening sockets of one server, in the running loop.

    Args:
        open_connection: takes a socket, accepted, non-blocking and tuned, the peer's address
            as the system has it, and the settings of the listener. What it raises ends that
            socket and no more.
        make_room: takes the address and the listener of a connection for which descriptors
            are short; whether another one was closed for it.
        count_open: how many connections are open.
        storage: counts the connections that are refused.
        repeats: writes to the log what goes wrong.
    """

    def __init__(
        self,
        open_connection: Callable[[socket.socket, Any, ListenerConfig], None],
        make_room: Callable[[Any, ListenerConfig], bool],
        count_open: Callable[[], int],
        storage: Storage,
        repeats: Repeats,
    ) -> None:
        self.listeners: list[Listener] = []
        self._open_connection = open_connection
        self._make_room = make_room
        self._count_open = count_open
        self._most: int | None = None
        self._paused = False  # for the most are open
        self._storage = storage
        self._repeats = repeats
        self._inherited = False
        self._spare = SpareDescriptor()
        self._first_reserved = first_reserved_descriptor()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the ports that the system chose for port 0."""
        return tuple(address_of(listener.sock) for listener in self.listeners)

    def listen(self, config: Config) -> None:
        """Listens; nothing is accepted before ``watch``.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        for one in config.listeners:
            (sock,) = listeners.listen_as(one, config.backlog)
            self.listeners.append(Listener(sock, one))
        self._spare.restore()

    def inherit(self, inherited: Iterable[Listener]) -> None:
        """Takes sockets that listen already, and that another process has too."""
        self._inherited = True
        self.listeners += inherited
        self._spare.restore()

    def watch(self) -> None:
        """Begins to accept at the sockets that it has."""
        for listener in self.listeners:
            self._watch(listener)

    def accept_at(self, inherited: Iterable[Listener], most: int | None) -> None:
        """Accepts at these inherited sockets and at no others, which stay open.

        Args:
            inherited: those that listen.
            most: none is accepted while this many connections are open; None for no limit.
        """
        wanted = list(dict.fromkeys(inherited))
        for listener in self.listeners:
            if listener not in wanted:
                asyncio.get_running_loop().remove_reader(listener.sock.fileno())
        fresh = [listener for listener in wanted if listener not in self.listeners]
        self.listeners = wanted
        self._most = most
        if self._is_full:
            self._pause()
        elif self._paused:
            self._paused = False
            self.watch()
        else:
            for listener in fresh:
                self._watch(listener)

    @property
    def _is_full(self) -> bool:
        return self._most is not None and self._count_open() >= self._most

    def _pause(self) -> None:
        self._paused = True
        for listener in self.listeners:
            asyncio.get_running_loop().remove_reader(listener.sock.fileno())

    def accept_the_rest(self) -> None:
        """Takes in the connections that the system has accepted and we have not.

        Closing the listener would reset them, with the requests that they may
        have sent already.
        """
        for listener in self.listeners:
            with contextlib.suppress(OSError):  # EAGAIN: none is left. Else: none can be had.
                while True:
                    self._take_in(*self._spare.accept(listener.sock), listener.config)

    def refuse(self) -> None:
        """Ends listening in every process that has the sockets; who connects is refused."""
        for listener in self.listeners:
            listeners.refuse(listener.sock)

    def close(self) -> None:
        """Accepts no more; closes the sockets."""
        for listener in self.listeners:
            asyncio.get_running_loop().remove_reader(listener.sock.fileno())
            if self._inherited:
                listener.sock.close()  # another process has it too, and goes on with it
            else:
                listeners.close(listener.sock)
        self.listeners.clear()

    def release(self) -> None:
        """Gives up the descriptor that was kept back."""
        self._spare.close()

    def _watch(self, listener: Listener) -> None:
        if listener in self.listeners and not self._paused:
            loop = asyncio.get_running_loop()
            loop.add_reader(listener.sock.fileno(), self._accept, listener, loop)

    def _accept(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """Takes in the connections that wait."""
        for _ in range(ACCEPTS_A_TURN):
            if self._is_full:
                self._pause()
                return
            try:
                sock, address = self._spare.accept(listener.sock)
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except (OSError, MemoryError) as error:
                self._spare.restore()
                self._repeats.error(
                    ("accept", type(error)),
                    "cannot accept on %s: %s; trying again in %g s",
                    address_of(listener.sock),
                    error.strerror if isinstance(error, OSError) else "out of memory",
                    ACCEPT_PAUSE,
                )
                loop.remove_reader(listener.sock.fileno())
                loop.call_later(ACCEPT_PAUSE, self._watch, listener)
                return
            self._take_in(sock, address, listener.config)

    def _take_in(self, sock: socket.socket, address: Any, config: ListenerConfig) -> None:
        if self._spare.is_used or sock.fileno() >= self._first_reserved:
            if not self._make_room(address, config):
                self._refuse(sock)
                return
            # The lowest number that is free now: the reserved ones stay so.
            with sock:
                sock = sock.dup()
            self._spare.restore()
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):  # it may be reset already, which a read will tell
                tune(sock)
        try:
            self._open_connection(sock, address, config)
        except Exception as error:  # out of memory, most likely
            sock.close()
            self._repeats.failure("cannot open a connection", error)

    def _refuse(self, sock: socket.socket) -> None:
        """Closes a new connection at once: better than one that waits for what may never come."""
        sock.close()
        self._spare.restore()
        self._storage.count_opened()
        self._storage.count_closed(CloseReason.REFUSED)
        self._repeats.error(
            "refused",
            "refused a connection: file descriptors run out, and the last %d are not for "
            "connections; raise the limit (ulimit -n, LimitNOFILE=)",
            descriptor_limit() - self._first_reserved,
        )
