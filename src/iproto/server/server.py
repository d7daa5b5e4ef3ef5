"""The server: listeners, connections, limits, start and drain, in a loop that runs already."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from iproto import forks
from iproto._fastframe import Storage
from iproto.server import listeners
from iproto.server.acceptor import Acceptor
from iproto.server.config import Config
from iproto.server.connections import Connections
from iproto.server.gates import Gate
from iproto.server.heartbeat import Heartbeat
from iproto.server.lifespan import Lifespan
from iproto.server.listeners import Listener
from iproto.server.repeats import Repeats
from iproto.wire import DESCRIBE_FUNCTIONS
from iproto.words import counted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from iproto._fastframe import UserFunction
    from iproto.address import Address
    from iproto.app import App
    from iproto.metrics.collectors import WatchedFile
    from iproto.metrics.endpoint import MetricsEndpoint
    from iproto.server.limits import SharedClients

logger = logging.getLogger("iproto.server")

# Seconds that the app's lifespan has to end, after the last call.
LIFESPAN_WAIT = 10.0


class Server:
    """Serves the storage and user functions, in the running loop.

    ::

        async with iproto.Server(iproto.Config(bind="127.0.0.1:0")) as server:
            print(server.addresses)
            await server.wait_closed()

    Args:
        config: the settings; the defaults if None.
        app: the user functions. They are taken at the start;
            registering more later has no effect.
        storage: the slots; a fresh, private one if None. One storage may be
            served by several servers of one process.
        inherited: sockets that listen already, in place of ``config.bind``; they are
            closed at the end, but another process that has them goes on.
        clients: what all workers count of each client; for workers.

    Leaving ``async with`` drains the server.
    """

    def __init__(
        self,
        config: Config | None = None,
        app: App | None = None,
        storage: Storage | None = None,
        *,
        inherited: Sequence[socket.socket | Listener] | None = None,
        clients: SharedClients | None = None,
    ) -> None:
        self.config = config if config is not None else Config()
        self.storage = storage if storage is not None else Storage()
        self._app = app
        self._inherited = inherited
        # The supervisor logs the start and the end of a worker.
        self._level = logging.INFO if inherited is None else logging.DEBUG
        self._stopped = asyncio.Event()
        self._metrics: MetricsEndpoint | None = None
        self.file_watch: WatchedFile | None = None
        self._heartbeat: Heartbeat | None = None
        self._repeats = Repeats(logger)
        self._function_errors = Repeats(logging.getLogger("iproto.app"))
        self._connections = Connections(self.config, self.storage, self._repeats, clients)
        self._acceptor = Acceptor(
            self._connections.open,
            self._connections.make_room,
            self._connections.__len__,
            self.storage,
            self._repeats,
        )
        self._lifespan = Lifespan()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepting = False
        self._draining = False

    # What a user may ask.

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the server listens, with the ports that the system chose for port 0."""
        return self._acceptor.addresses

    @property
    def metrics_address(self) -> Address | None:
        """Where the metrics are; None if they are off."""
        return None if self._metrics is None else self._metrics.address

    @property
    def ready(self) -> bool:
        """Whether connections are accepted: started, not draining, the app's lifespan open."""
        return self._accepting and not self._draining and not self._lifespan.is_broken

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
        """Enters the app's lifespan, and listens on every address of the configuration.

        Raises:
            ConfigError: the lifespan failed, or an address cannot be listened on;
                nothing is left open.
            RuntimeError: the server was started before.
        """
        if self._accepting or self._draining:
            raise RuntimeError("this server was started before; make a new one")
        loop = asyncio.get_running_loop()
        self._loop = loop
        functions = self._load_functions()
        self._connections.start(functions, self._gates(loop), loop)
        metrics_address = self.config.metrics_address
        make_metrics: Callable[[], MetricsEndpoint] | None = None
        if metrics_address is not None:
            # Not at the top: a third of all imports, and a worker serves no metrics.
            from iproto.metrics.endpoint import MetricsEndpoint

            make_metrics = partial(MetricsEndpoint, metrics_address, self)
        if self._app is not None:
            await self._lifespan.open(self._app)
        try:
            if self._inherited is not None:
                self._acceptor.inherit(self._inherited_listeners())
            else:
                self._acceptor.listen(self.config)
            self._heartbeat = Heartbeat(self.storage, loop)
            if make_metrics is not None:
                self._metrics = make_metrics()
        except BaseException:
            self._acceptor.close()
            self._acceptor.release()
            self._stop_heartbeat()
            await self._lifespan.close(LIFESPAN_WAIT)
            raise
        listeners.warn_of_strangers(self._acceptor.listeners, self.config, self._level)
        self._acceptor.watch()
        self._accepting = True
        forks.register(self)
        logger.log(
            self._level,
            "serving %s (dialect %s%s, %s)%s",
            ", ".join(map(str, self.addresses)),
            self.config.dialect,
            ", TLS" if self.config.tls_cert else "",
            counted(len(functions.keys() - {DESCRIBE_FUNCTIONS}), "user function"),
            f", metrics on http://{self.metrics_address}/metrics" if self._metrics else "",
        )

    def _inherited_listeners(self) -> list[Listener]:
        """Those that are inherited: their maker has said how each is set, or its address does."""
        return [
            one if isinstance(one, Listener) else listeners.by_address([one], self.config)[0]
            for one in self._inherited or ()
        ]

    def _load_functions(self) -> dict[int, UserFunction]:
        """Gives each of the user functions its counter row, while there are rows."""
        if self._app is None:
            return {}
        from iproto.server.calls import callee_of  # msgspec is only for these
        from iproto.server.introspection import describing_function

        functions = list(self._app.functions.values())
        if functions and self.config.describe_functions == "on":
            functions.append(describing_function(functions))
        return {
            function.func_id: callee_of(
                function, self.storage.row_for(function.name), self.config, self._function_errors
            )
            for function in functions
        }

    def _gates(self, loop: asyncio.AbstractEventLoop) -> dict[int, Gate]:
        """A gate for each function that limits how many of its calls run at once."""
        functions = {} if self._app is None else self._app.functions
        return {
            func_id: Gate(function.concurrency, function.queue_timeout, loop)
            for func_id, function in functions.items()
            if function.concurrency is not None
        }

    def reload_certificates(self) -> bool:
        """Loads the TLS certificate anew, for new connections; one that is wrong is not used.

        Returns:
            Whether the server has one.
        """
        return self._connections.reload_certificates()

    # Sharing connections with other workers.

    def accept_at(self, inherited: Iterable[Listener], most: int | None = None) -> None:
        """Accepts at these listeners and no others, which stay open.

        Args:
            inherited: they listen, and are not this process's alone.
            most: none is accepted while this many connections are open; None for no limit.
        """
        if self._accepting and not self._draining:
            self._acceptor.accept_at(inherited, most)

    def shed(self, target: int) -> None:
        """Announces the end to all connections but ``target``; see ``Connections.shed``."""
        self._connections.shed(target)

    # Child processes; see forks.Holder.

    def descriptors(self) -> Iterator[int]:
        """All that a child must not have."""
        for listener in self._acceptor.listeners:
            yield listener.sock.fileno()
        yield from self._connections.descriptors()
        if self._metrics is not None:
            yield self._metrics.fileno()

    def serves(self, storage: object) -> bool:
        """Whether this server's storage is that one."""
        return self.storage is storage

    def forget(self) -> None:
        """In a child: nothing is served, and no path of a unix socket is removed."""
        self._acceptor.listeners.clear()
        self._connections.forget()
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
                self._acceptor.accept_the_rest()
            if refuse:
                self._acceptor.refuse()
            self._acceptor.close()
            self._connections.drain()
        clean = await self._connections.wait_closed(
            self.config.drain_timeout if timeout is None else timeout
        )
        if not clean:
            unflushed = self._connections.count_unflushed()
            clean = unflushed == 0
            if unflushed:
                logger.warning("aborting %s not done in time", counted(unflushed, "connection"))
        await self.close()
        return clean

    async def close(self) -> None:
        """Closes everything at once; replies that were not sent yet are lost."""
        self._draining = True
        self._acceptor.close()
        await self._connections.close()
        await self._lifespan.close(LIFESPAN_WAIT)
        self._stop_heartbeat()
        self._repeats.close()
        self._function_errors.close()
        self._acceptor.release()
        if self._metrics is not None:
            metrics, self._metrics = self._metrics, None
            await metrics.close()
        if not self._stopped.is_set():
            self._stopped.set()
            logger.log(self._level, "stopped")

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
