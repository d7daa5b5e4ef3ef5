"""The server: listeners, connections, limits, start and drain, in a loop that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from iproto import forks
from iproto._fastframe import CallBudget, ServerFrames, Storage
from iproto.address import address_of
from iproto.server import listeners
from iproto.server.config import Config
from iproto.server.connection import Connection
from iproto.server.hangups import Hangups
from iproto.server.heartbeat import Heartbeat
from iproto.server.repeats import Repeats
from iproto.sockets import SpareDescriptor, descriptor_limit, first_reserved_descriptor, tune
from iproto.wire import CloseReason
from iproto.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from iproto._fastframe import UserFunction
    from iproto.address import Address
    from iproto.app import App
    from iproto.metrics.endpoint import MetricsEndpoint
    from iproto.server.calls import CallTasks

logger = logging.getLogger("iproto.server")

# Connections accepted in one turn of the loop, before others get theirs.
ACCEPTS_A_TURN = 64

# Seconds without accepting when the system has no room for another connection
# (too many open files, no memory): trying again at once would only burn CPU.
ACCEPT_PAUSE = 0.5

# Seconds from one line of log on connections that failed within the server to the
# next: where memory is short, they may be thousands.
FAILURE_PAUSE = 60.0


class Server:
    """Serves the storage and user functions, in the running loop.

    ::

        async with iproto.Server(iproto.Config(bind="127.0.0.1:0")) as server:
            print(server.addresses)
            await server.wait_closed()

    Args:
        config: the settings; the defaults if None.
        app: functions of the user's own. They are taken at the start;
            registering more later has no effect.
        storage: the slots; a fresh, private one if None. One storage may be
            served by several servers of one process.
        inherited: sockets that listen already, in place of ``config.bind``; they are
            closed at the end, but another process that has them goes on.

    Leaving ``async with`` drains the server.
    """

    def __init__(
        self,
        config: Config | None = None,
        app: App | None = None,
        storage: Storage | None = None,
        *,
        inherited: Sequence[socket.socket] | None = None,
    ) -> None:
        self.config = config if config is not None else Config()
        self.storage = storage if storage is not None else Storage()
        self.idle_timeout = self.config.idle_timeout
        self._app = app
        self._inherited = inherited
        # A worker's coming and going is its supervisor's to tell.
        self._level = logging.INFO if inherited is None else logging.DEBUG
        self._functions: dict[int, UserFunction] = {}
        self._budget = CallBudget(self.config.max_calls)
        self._call_tasks: CallTasks | None = None
        self._hangups: Hangups | None = None
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._all_closed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._metrics: MetricsEndpoint | None = None
        self._heartbeat: Heartbeat | None = None
        self._repeats = Repeats(logger)
        self._function_errors = Repeats(logging.getLogger("iproto.app"))
        self._spare = SpareDescriptor()
        self._first_reserved = first_reserved_descriptor()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepting = False
        self._draining = False
        # Connections that failed since the last line of log on it, and when that was.
        self._failures = 0
        self._failures_logged = -FAILURE_PAUSE

    # What a user may ask.

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the server listens, with the ports that the system chose for port 0."""
        return tuple(address_of(listener) for listener in self._listeners)

    @property
    def metrics_address(self) -> Address | None:
        """Where the metrics are; None if they are off."""
        return None if self._metrics is None else self._metrics.address

    @property
    def ready(self) -> bool:
        """Whether connections are accepted: started, and not draining."""
        return self._accepting and not self._draining

    @property
    def silent_seconds(self) -> float:
        """Since the event loop last ran, as /healthz judges it."""
        return 0.0 if self._heartbeat is None else self._heartbeat.silent_seconds

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    # Start.

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.drain()

    async def start(self) -> None:
        """Listens on every address of the configuration.

        Raises:
            ConfigError: an address cannot be listened on; nothing is left open.
            RuntimeError: the server was started before.
        """
        if self._accepting or self._draining:
            raise RuntimeError("this server was started before; make a new one")
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._load_functions()
        self._hangups = Hangups(loop)
        metrics_address = self.config.metrics_address
        make_metrics: Callable[[], MetricsEndpoint] | None = None
        if metrics_address is not None:
            # Not at the top: a third of all imports, and a worker serves no metrics.
            from iproto.metrics.endpoint import MetricsEndpoint

            make_metrics = partial(MetricsEndpoint, metrics_address, self)
        try:
            if self._inherited is not None:
                self._listeners.extend(self._inherited)
            else:
                for address in self.config.addresses:
                    self._listeners += listeners.listen(address, self.config.backlog)
            self._heartbeat = Heartbeat(self.storage, loop)
            self._spare.restore()
            if make_metrics is not None:
                self._metrics = make_metrics()
        except BaseException:
            self._close_listeners()
            self._stop_heartbeat()
            self._spare.close()
            raise
        for listener in self._listeners:
            self._watch_listener(listener)
        self._accepting = True
        forks.register(self)
        logger.log(
            self._level,
            "serving %s (dialect %s, %s)%s",
            ", ".join(map(str, self.addresses)),
            self.config.dialect,
            counted(len(self._functions), "user function"),
            f", metrics on http://{self.metrics_address}/metrics" if self._metrics else "",
        )

    def _load_functions(self) -> None:
        """Gives each of the user functions its counter row, while there are rows."""
        if self._app is None:
            return
        from iproto.server.calls import CallTasks, callee_of  # msgspec is only for these

        self._functions = {
            func_id: callee_of(
                function, self.storage.row_for(function.name), self.config, self._function_errors
            )
            for func_id, function in self._app.functions.items()
        }
        if self._functions:
            self._call_tasks = CallTasks(asyncio.get_running_loop())

    # Connections.

    def accept_at(self, more: Iterable[socket.socket]) -> None:
        """Accepts at further listening sockets, until ``leave``."""
        for listener in more:
            if self.ready and listener not in self._listeners:
                self._listeners.append(listener)
                self._watch_listener(listener)

    def leave(self, listeners_of_others: Iterable[socket.socket]) -> None:
        """Accepts no more at these; the sockets stay open."""
        loop = asyncio.get_running_loop()
        for listener in listeners_of_others:
            if listener in self._listeners:
                self._listeners.remove(listener)
                loop.remove_reader(listener.fileno())

    def _watch_listener(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            loop = asyncio.get_running_loop()
            loop.add_reader(listener.fileno(), self._accept, listener, loop)

    def _accept(self, listener: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Takes in the connections that wait."""
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock = self._spare.accept(listener)
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except (OSError, MemoryError) as error:
                self._spare.restore()
                self._repeats.error(
                    ("accept", type(error)),
                    "cannot accept on %s: %s; trying again in %g s",
                    address_of(listener),
                    error.strerror if isinstance(error, OSError) else "out of memory",
                    ACCEPT_PAUSE,
                )
                loop.remove_reader(listener.fileno())
                loop.call_later(ACCEPT_PAUSE, self._watch_listener, listener)
                return
            try:
                self._open(sock, loop)
            except Exception as error:  # out of memory, most likely
                sock.close()
                self._count_failure("cannot open a connection", error)

    def _refuse(self, sock: socket.socket) -> None:
        """Closes a new connection at once: better than one that waits for what may never come."""
        sock.close()
        self._spare.restore()
        self.storage.count_opened()
        self.storage.count_closed(CloseReason.REFUSED)
        self._repeats.error(
            "refused",
            "refused a connection: file descriptors run out, and the last %d are not for "
            "connections; raise the limit (ulimit -n, LimitNOFILE=)",
            descriptor_limit() - self._first_reserved,
        )

    def _open(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        if self._spare.is_used or sock.fileno() >= self._first_reserved:
            self._refuse(sock)
            return
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):  # it may be reset already, which a read will tell
                tune(sock)
        frames = ServerFrames(
            self.storage,
            mailru=self.config.dialect == "mailru",
            max_body=self.config.max_body,
            max_calls=self.config.max_calls_per_connection,
            functions=self._functions,
            budget=self._budget,
            max_queue=self.config.max_queue,
            queue_timeout=self.config.queue_timeout,
            max_unsent=self.config.max_unsent,
        )
        assert self._hangups is not None
        connection = Connection(self, sock, frames, self._call_tasks, self._hangups, loop)
        self._connections.add(connection)
        self.storage.count_opened()
        logger.debug("connection %d opened", sock.fileno())

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        """A connection says that it is closed."""
        self._connections.discard(connection)
        logger.debug("connection %d closed: %s", connection.fileno, reason.name)
        self.storage.count_closed(reason)
        if not self._connections:
            self._all_closed.set()

    def failed(self, connection: Connection, error: Exception) -> None:
        """A connection says that an error of ours has ended it."""
        self._count_failure(f"connection {connection.fileno} is closed", error)

    def _count_failure(self, what: str, error: Exception) -> None:
        self._failures += 1
        now = monotonic()
        if now < self._failures_logged + FAILURE_PAUSE:
            return
        logger.error(
            "%s, for an error came up within the server: %r (%d since the last such line)",
            what,
            error,
            self._failures,
            exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
        )
        self._failures_logged, self._failures = now, 0

    # Child processes; see forks.Holder.

    def descriptors(self) -> Iterator[int]:
        """All that a child must not have."""
        for listener in self._listeners:
            yield listener.fileno()
        for connection in self._connections:
            yield connection.fileno
        if self._metrics is not None:
            yield self._metrics.fileno()
        if self._hangups is not None:
            yield from self._hangups.descriptors()

    def serves(self, storage: object) -> bool:
        """Whether this server's storage is that one."""
        return self.storage is storage

    def forget(self) -> None:
        """In a child: nothing is served, and no path of a unix socket is removed."""
        for connection in self._connections:
            connection.forget()
        self._listeners.clear()
        self._connections.clear()
        self._metrics = None
        self._accepting = False
        self.storage.detach()
        if self._loop is not None:
            forks.abandon_loop(self._loop)

    # Stop.

    async def wait_closed(self) -> None:
        """Waits until the server has been drained or closed."""
        await self._stopped.wait()

    async def drain(
        self, timeout: float | None = None, *, accept: bool = True, refuse: bool = False
    ) -> bool:
        """Stops accepting, answers every request already received, closes.

        Args:
            timeout: seconds that this may take, then what is open is aborted;
                None for the configuration's ``drain_timeout``.
            accept: whether connections that wait to be accepted are served too;
                False if another process accepts them.
            refuse: whether later ones are refused even where other processes have
                the inherited sockets, too.

        Returns:
            Whether everything was answered in time.
        """
        if self._stopped.is_set():
            return True
        if not self._draining:
            self._draining = True
            logger.log(self._level, "draining %s", counted(len(self._connections), "connection"))
            if accept:
                self._accept_the_rest()
            if refuse:
                for listener in self._listeners:
                    listeners.refuse(listener)
            self._close_listeners()
            for connection in list(self._connections):
                connection.drain()
        clean = await self._connections_closed(
            self.config.drain_timeout if timeout is None else timeout
        )
        if not clean:
            unflushed = sum(not connection.is_flushed for connection in self._connections)
            clean = unflushed == 0
            if unflushed:
                logger.warning("aborting %s not done in time", counted(unflushed, "connection"))
        await self.close()
        return clean

    async def close(self) -> None:
        """Closes everything at once; replies that were not sent yet are lost."""
        self._draining = True
        self._close_listeners()
        for connection in list(self._connections):
            connection.abort()
        await self._connections_closed(None)
        self._stop_heartbeat()
        self._repeats.close()
        self._function_errors.close()
        self._spare.close()
        if self._metrics is not None:
            metrics, self._metrics = self._metrics, None
            await metrics.close()
        if not self._stopped.is_set():
            self._stopped.set()
            logger.log(self._level, "stopped")

    def _accept_the_rest(self) -> None:
        """Takes in the connections that the system has accepted and we have not.

        Closing the listener would reset them, with the requests that they may
        have sent already.
        """
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # EAGAIN: none is left. Else: none can be had.
                while True:
                    self._open(self._spare.accept(listener), loop)

    async def _connections_closed(self, timeout: float | None) -> bool:
        if not self._connections:
            return True
        self._all_closed.clear()
        try:
            await asyncio.wait_for(self._all_closed.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    def _close_listeners(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener.fileno())
            if self._inherited is None:
                listeners.close(listener)
            else:
                listener.close()  # another process has it too, and goes on with it
        self._listeners.clear()

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
