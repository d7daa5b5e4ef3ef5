"""The open connections of one server: opening, counting and ending them."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from functools import partial
from typing import TYPE_CHECKING, Any

from iproto._fastframe import CallBudget, ServerFrames
from iproto.errors import ConfigError
from iproto.server.admission import Admission
from iproto.server.connection import Connection
from iproto.server.hangups import Hangups
from iproto.server.listener_config import NET_RPC
from iproto.server.turns import Turns
from iproto.wire import CloseReason

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from iproto._fastframe import Storage, UserFunction
    from iproto.server.admission import Arrival
    from iproto.server.calls import CallTasks
    from iproto.server.certificates import Certificates
    from iproto.server.config import Config
    from iproto.server.gates import Gate
    from iproto.server.handshakes import Handshakes
    from iproto.server.limits import SharedClients
    from iproto.server.listener_config import ListenerConfig
    from iproto.server.peer import Peer
    from iproto.server.repeats import Repeats
    from iproto.server.tls import SecureSocket, SecureStream

logger = logging.getLogger("iproto.server")

# The greatest part by which a connection's age may exceed the setting: those that were opened
# together shall not all come back together.
AGE_JITTER = 0.1


class Connections:
    """The open connections, and what they share.

    Args:
        config: the limits of each.
        storage: what they work on, and where they are counted.
        repeats: writes to the log what goes wrong.
        clients: what workers count of each client; None without workers.
    """

    def __init__(
        self,
        config: Config,
        storage: Storage,
        repeats: Repeats,
        clients: SharedClients | None = None,
    ) -> None:
        self.idle_timeout = config.idle_timeout
        self._config = config
        self._storage = storage
        self._repeats = repeats
        self._budget = CallBudget(config.max_calls)
        self._admission = Admission(config, storage, repeats, clients)
        self._permissions = self._admission.permissions
        self._call_tasks: CallTasks | None = None
        self._hangups: Hangups | None = None
        self._turns: Turns | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handshakes: Handshakes | None = None
        self._certificates: Certificates | None = None
        self._draining = False
        self._open: set[Connection] = set()
        self._all_closed = asyncio.Event()
        self._age_timers: dict[Connection, asyncio.TimerHandle] = {}

    def start(
        self,
        functions: dict[int, UserFunction],
        gates: dict[int, Gate],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """From now on connections may open.

        Args:
            functions: func_id → user function.
            gates: func_id → of functions whose calls at once are limited.
            loop: the running loop.

        Raises:
            ConfigError: the certificate cannot be used.
        """
        if self._config.tls_cert is not None:
            self._start_tls(loop)
        elif self._config.tls_key is not None or self._config.tls_client_ca is not None:
            raise ConfigError("tls_key and tls_client_ca need tls_cert; name the certificate")
        elif any(listener.tls for listener in self._config.listeners):
            raise ConfigError("a listener with tls needs tls_cert; name the certificate")
        self._permissions.functions = functions
        self._loop = loop
        self._admission.start(loop)
        self._hangups = Hangups(loop)
        self._turns = Turns(loop)
        if functions:
            from iproto.server.calls import CallTasks  # msgspec is only for these

            self._call_tasks = CallTasks(loop, gates)

    def _start_tls(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at the top: OpenSSL is for those who use it.
        from iproto.server.certificates import Certificates
        from iproto.server.handshakes import Handshakes

        self._certificates = Certificates(self._config)
        self._certificates.start()
        self._handshakes = Handshakes(
            self._certificates,
            self._config,
            self._open_secure,
            self._note_end,
            self._storage,
            self._repeats,
            loop,
        )

    def reload_certificates(self) -> bool:
        """Loads the certificate anew, for new connections; False if there is none."""
        if self._certificates is None:
            return False
        self._certificates.reload()
        return True

    def __len__(self) -> int:
        return len(self._open) + len(self._handshakes or ())

    def open(self, sock: socket.socket, address: Any, listener: ListenerConfig) -> None:
        """Serves a socket: accepted, non-blocking and tuned.

        Args:
            sock: the socket.
            address: the peer's, as the system has it.
            listener: settings of the listener that accepted it.
        """
        is_secure = self._handshakes is not None and listener.speaks_tls(by_default=True)
        arrival = self._admission.take_in(sock, address, listener, is_secure=is_secure)
        if arrival is None:
            return
        if self._handshakes is not None and is_secure:
            self._handshakes.begin(sock, arrival)
        else:
            self._serve(sock, arrival, None)
            self._storage.count_opened()

    def make_room(self, address: Any, listener: ListenerConfig) -> bool:
        """File descriptors run out; see ``Admission.make_room``."""
        return self._admission.make_room(address, listener)

    def _open_secure(self, secure: SecureSocket, arrival: Arrival) -> None:
        """Serves a socket whose handshake is done."""
        name = secure.session.peer_name
        peer = self._permissions.named(arrival.peer, arrival.listener, name)
        arrival = arrival._replace(peer=peer)
        connection = self._serve(secure.sock, arrival, secure)
        connection.begin()
        if self._draining:
            connection.drain()

    def _serve(
        self, sock: socket.socket, arrival: Arrival, secure: SecureSocket | None
    ) -> Connection:
        assert self._loop is not None, "start() comes first"
        assert self._hangups is not None
        assert self._turns is not None
        peer = arrival.peer
        granted = self._permissions.granted(peer.rights)
        config = self._config
        frames = ServerFrames(
            self._storage,
            mailru=arrival.listener.dialect == "mailru",
            max_body=config.max_body,
            max_calls=config.max_calls_per_connection,
            functions=granted.functions,
            budget=self._budget,
            max_queue=config.max_queue,
            queue_timeout=config.queue_timeout,
            max_unsent=config.max_unsent,
            turn=self._turns.turn,
            guard=granted.guard,
            account=arrival.account,
            peer=peer,
            net_rpc=arrival.listener.dialect == NET_RPC,
        )
        stream: ServerFrames | SecureStream = frames
        if secure is not None:
            from iproto.server.tls import SecureStream

            stream = SecureStream(secure, frames, partial(self._tls_failed, peer))
        connection = Connection(
            self,
            sock,
            peer,
            frames,
            stream,
            self._call_tasks,
            self._hangups,
            self._turns,
            self._loop,
        )
        self._open.add(connection)
        self._admission.opened(connection, arrival)
        logger.debug("connection %d from %s opened", sock.fileno(), peer)
        if config.max_connection_age:
            age = config.max_connection_age * (1.0 + random.uniform(0.0, AGE_JITTER))
            self._age_timers[connection] = self._loop.call_later(
                age, connection.drain, CloseReason.AGED
            )
        return connection

    def _tls_failed(self, peer: Peer, why: str) -> None:
        self._repeats.error(
            ("TLS", why), "TLS with %s failed: %s", peer, why, level=logging.WARNING
        )

    # Events of a connection.

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        """It is closed."""
        self._open.discard(connection)
        self._admission.closed(connection)
        if connection in self._age_timers:
            self._age_timers.pop(connection).cancel()
        logger.debug(
            "connection %d from %s closed: %s", connection.fileno, connection.peer, reason.name
        )
        self._storage.count_closed(reason)
        if connection.frames.looks_like_tls:
            self._repeats.error(
                "TLS at a plain port",
                "%s spoke TLS where the server does not; it must use iproto:// here, or the "
                "server needs --tls-cert",
                connection.peer,
                level=logging.WARNING,
            )
        elif connection.frames.close_text is not None:
            self._repeats.error(
                ("stream", connection.frames.close_text),
                "a connection from %s was ended: %s",
                connection.peer,
                connection.frames.close_text,
                level=logging.WARNING,
            )
        self._note_end()

    def _note_end(self) -> None:
        if not self._open and not self._handshakes:
            self._all_closed.set()

    def failed(self, connection: Connection, error: Exception) -> None:
        """An error of ours has ended it."""
        what = f"connection {connection.fileno} from {connection.peer} is closed"
        self._repeats.failure(what, error)

    def refused(self, connection: Connection) -> None:
        """Its peer has called what it may not."""
        self._repeats.error(
            ("not permitted", connection.peer.client),
            "refused a call by %s: it has the rights %s",
            connection.peer,
            connection.peer.rights,
            level=logging.WARNING,
        )

    def paused(self, connection: Connection) -> None:
        """Its client is so far over its rate that nothing is read for a while."""
        self._repeats.error(
            ("rate", connection.peer.client),
            "%s sends more than its rate: its connection is not read for a while",
            connection.peer,
            level=logging.WARNING,
        )

    def shed(self, target: int) -> None:
        """Announces the end to some connections, so that their clients come back elsewhere.

        Args:
            target: how many shall stay. Those whose clients do not understand it stay in any
                case; the first to go are those without a request, the longest quiet first.
        """
        lasting = [connection for connection in self._open if not connection.is_draining]
        able = (connection for connection in lasting if connection.frames.knows_shutdown)
        excess = max(0, len(lasting) - target)
        for connection in heapq.nlargest(excess, able, key=Connection.quiet_seconds):
            connection.drain(CloseReason.BALANCED)

    # The end of all.

    def drain(self) -> None:
        """Answers every request that has arrived, then closes; see ``Connection.drain``.

        Handshakes that are under way come to their end first.
        """
        self._draining = True
        for connection in list(self._open):
            connection.drain()

    def count_unflushed(self) -> int:
        """Connections with replies that their clients have not taken yet."""
        return sum(not connection.is_flushed for connection in self._open)

    async def wait_closed(self, timeout: float | None) -> bool:
        """Waits until none is open; False if that takes longer.

        Args:
            timeout: seconds; None for no limit.
        """
        if not self._open and not self._handshakes:
            return True
        self._all_closed.clear()
        try:
            await asyncio.wait_for(self._all_closed.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Closes all at once; what was not sent is lost."""
        if self._handshakes is not None:
            self._handshakes.close()
        if self._certificates is not None:
            self._certificates.close()
        for connection in list(self._open):
            connection.abort()
        self._admission.close()
        await self.wait_closed(None)
        if self._hangups is not None:
            self._hangups.close()

    # Child processes; see forks.Holder.

    def descriptors(self) -> Iterator[int]:
        """Those that a child must not have."""
        for connection in self._open:
            yield connection.fileno
        yield from self._admission.descriptors()
        if self._handshakes is not None:
            yield from self._handshakes.descriptors()
        if self._hangups is not None:
            yield from self._hangups.descriptors()

    def forget(self) -> None:
        """In a child: the connections are the parent's."""
        for connection in self._open:
            connection.forget()
        self._open.clear()
        self._admission.forget()
        if self._handshakes is not None:
            self._handshakes.forget()
