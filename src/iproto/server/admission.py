"""Whether a new connection is taken in, and which other one makes room for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from iproto.server.limits import ClientLimits, Refusal
from iproto.server.peer import client_of, host_and_port
from iproto.server.permissions import Permissions
from iproto.server.places import Places
from iproto.server.refusals import Refusals
from iproto.wire import CloseReason, ReturnCode

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Iterator

    from iproto._fastframe import Account, Storage
    from iproto.server.config import Config
    from iproto.server.connection import Connection
    from iproto.server.limits import SharedClients
    from iproto.server.listener_config import ListenerConfig
    from iproto.server.peer import Peer
    from iproto.server.repeats import Repeats

# Connections at the listeners of --admin-bind: others never take these places.
ADMIN_CONNECTIONS = 16


class Arrival(NamedTuple):
    """A connection that is taken in.

    Args:
        peer: who has come.
        listener: settings of the listener.
        account: the client's place in the table of clients; None if nothing of it is limited.
    """

    peer: Peer
    listener: ListenerConfig
    account: Account | None


class Admission:
    """Decides on newcomers.

    Args:
        config: the limits.
        storage: counts those that are not taken in.
        repeats: writes of them to the log.
        clients: what workers count of each client; None without workers.
    """

    def __init__(
        self, config: Config, storage: Storage, repeats: Repeats, clients: SharedClients | None
    ) -> None:
        self._config = config
        self._storage = storage
        self._repeats = repeats
        self._limits = ClientLimits(config, clients)
        self.permissions = Permissions(config, self._limits)
        self._places = Places()
        self._admin_places = Places()
        self._accounts: dict[Connection, Account] = {}
        self._refusals: Refusals | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on connections may come."""
        self._refusals = Refusals(loop)

    def take_in(
        self, sock: socket.socket, address: Any, listener: ListenerConfig, *, is_secure: bool
    ) -> Arrival | None:
        """Who has come; None if the connection is refused, which closes the socket.

        Args:
            sock: the accepted socket.
            address: the peer's, as the system has it.
            listener: settings of the listener.
            is_secure: whether it begins with a TLS handshake, so that no answer can be sent.
        """
        peer = self.permissions.peer_of(sock, address, listener)
        if not self.permissions.may_connect(peer):
            self._deny(sock, peer)
            return None
        account = self._limits.admit(peer)
        if not isinstance(account, Refusal) and not self._find_room(peer, listener):
            if account is not None:
                account.release()
            account = Refusal(
                CloseReason.TOO_MANY,
                ReturnCode.OVERLOADED,
                "all places for connections are taken; try again",
            )
        if isinstance(account, Refusal):
            self._refuse(sock, peer, "" if is_secure else str(listener.dialect), account)
            return None
        return Arrival(peer, listener, account)

    def opened(self, connection: Connection, arrival: Arrival) -> None:
        """A connection is served."""
        self._places_of(arrival.listener).add(connection)
        if arrival.account is not None:
            self._accounts[connection] = arrival.account

    def closed(self, connection: Connection) -> None:
        """It is closed."""
        self._places.remove(connection)
        self._admin_places.remove(connection)
        account = self._accounts.pop(connection, None)
        if account is not None:
            account.release()

    def make_room(self, address: Any, listener: ListenerConfig) -> bool:
        """File descriptors run out: closes a connection for a newcomer; False: it must go.

        Args:
            address: the newcomer's, as the system has it.
            listener: where it came; those of clients that may switch have descriptors of their own.
        """
        if self.permissions.is_for_admin(listener):
            return len(self._admin_places) < ADMIN_CONNECTIONS
        host, _ = host_and_port(address)
        return self._evict(self._places, client_of(host))

    # Room.

    def _find_room(self, peer: Peer, listener: ListenerConfig) -> bool:
        if self._has_room(listener):
            return True
        return self._evict(self._places_of(listener), peer.client)

    def _has_room(self, listener: ListenerConfig) -> bool:
        """Whether one more connection is within the limits."""
        if self.permissions.is_for_admin(listener):
            return len(self._admin_places) < ADMIN_CONNECTIONS
        most = self._config.max_connections
        if not isinstance(most, int):
            return True  # file descriptors are the limit: see make_room
        everywhere = self._limits.total
        # The newcomer is among those already.
        return len(self._places) < most if everywhere is None else everywhere <= most

    def _evict(self, places: Places, newcomer: str) -> bool:
        victim = places.victim(newcomer)
        if victim is None:
            return False
        self._repeats.error(
            ("evicted", victim.peer.client),
            "closed a connection of %s, whose client has most, for one of another client: all "
            "places are taken",
            victim.peer,
            level=logging.WARNING,
        )
        victim.abort(CloseReason.EVICTED)
        return True

    def _places_of(self, listener: ListenerConfig) -> Places:
        """Those of clients that may switch are apart, where there is a listener for them."""
        return self._admin_places if self.permissions.is_for_admin(listener) else self._places

    # Refusals.

    def _deny(self, sock: socket.socket, peer: Peer) -> None:
        sock.close()
        self._count(CloseReason.DENIED)
        self._repeats.error(
            ("denied", peer.client),
            "closed a connection from %s: its address may not connect (--allow, --deny)",
            peer,
            level=logging.WARNING,
        )

    def _refuse(self, sock: socket.socket, peer: Peer, dialect: str, why: Refusal) -> None:
        assert self._refusals is not None, "start() comes first"
        self._count(why.reason)
        self._repeats.error(
            ("refused", why.code, peer.client),
            "refused a connection from %s: %s",
            peer,
            why.text,
            level=logging.WARNING,
        )
        self._refusals.refuse(sock, dialect, why.code, why.text)

    def _count(self, reason: CloseReason) -> None:
        self._storage.count_opened()
        self._storage.count_closed(reason)

    # The end, and child processes; see forks.Holder.

    def close(self) -> None:
        """Closes those that wait for a refusal."""
        if self._refusals is not None:
            self._refusals.close()

    def descriptors(self) -> Iterator[int]:
        """Those that a child must not have."""
        if self._refusals is not None:
            yield from self._refusals.descriptors()

    def forget(self) -> None:
        """In a child: all of it is the parent's, and what it counts stays as it is."""
        self._limits.detach()
        if self._refusals is not None:
            self._refusals.forget()
