"""Who a new peer is, whether it may connect, and what it may call."""

from __future__ import annotations

import dataclasses
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from iproto._fastframe import Guard
from iproto.server.networks import Acl, AddressFilter
from iproto.server.peer import Peer, host_and_port, user_of
from iproto.server.rights import ALL, Rights, common

if TYPE_CHECKING:
    from iproto._fastframe import UserFunction
    from iproto.server.config import Config
    from iproto.server.limits import ClientLimits
    from iproto.server.listener_config import ListenerConfig


class Granted(NamedTuple):
    """What goes with certain rights.

    Args:
        functions: the user functions that may be called.
        guard: for the frames; None if all may be done.
    """

    functions: dict[int, UserFunction]
    guard: Guard | None


class Permissions:
    """What the settings say of peers.

    Args:
        config: the settings.
        limits: those of each client.
    """

    def __init__(self, config: Config, limits: ClientLimits) -> None:
        self._limits = limits
        self._has_admin_listeners = bool(config.admin_bind)
        self.functions: dict[int, UserFunction] = {}
        self._addresses = AddressFilter(config.allow, config.deny)
        self._acl = Acl(config.acl)
        self._granted: dict[Rights, Granted] = {}
        # Of each listener; its text and rights are parsed once.
        self._rights: dict[ListenerConfig, Rights] = {}

    def peer_of(self, sock: socket.socket, address: Any, listener: ListenerConfig) -> Peer:
        """Who has connected.

        Args:
            sock: the accepted socket.
            address: the peer's, as the system has it.
            listener: settings of the listener.
        """
        host, port = host_and_port(address)
        uid = user_of(sock) if sock.family == socket.AF_UNIX else None
        return Peer(host, port, uid, listener.address, self._rights_of(listener, host, uid, None))

    def named(self, peer: Peer, listener: ListenerConfig, name: str | None) -> Peer:
        """The same peer, whose checked certificate has this name; None: it has none."""
        if name is None:
            return peer
        rights = self._rights_of(listener, peer.host, peer.uid, name)
        return dataclasses.replace(peer, tls_name=name, rights=rights)

    def _rights_of(
        self, listener: ListenerConfig, host: str, uid: int | None, name: str | None
    ) -> Rights:
        rights = self._rights_at(listener)
        return common(rights, self._acl.rights_of(host, uid, name)) if self._acl else rights

    def _rights_at(self, listener: ListenerConfig) -> Rights:
        rights = self._rights.get(listener)
        if rights is None:
            rights = self._rights[listener] = listener.granted
        return rights

    def is_for_admin(self, listener: ListenerConfig) -> bool:
        """Whether a listener is one of those that alone may switch the storage."""
        return self._has_admin_listeners and "admin" in self._rights_at(listener).names

    def may_connect(self, peer: Peer) -> bool:
        """Whether the peer's address may connect at all."""
        return self._addresses.admits(peer.host)

    def granted(self, rights: Rights) -> Granted:
        """What goes with these rights."""
        known = self._granted.get(rights)
        if known is None:
            known = self._granted[rights] = self._grant(rights)
        return known

    def _grant(self, rights: Rights) -> Granted:
        if rights == ALL and not self._limits.has_limits:
            return Granted(self.functions, None)
        permitted = {
            func_id: function
            for func_id, function in self.functions.items()
            if rights.permits(func_id)
        }
        guard = Guard(rights.permits, self.functions, self._limits.rate, self._limits.max_calls)
        return Granted(permitted, guard)
