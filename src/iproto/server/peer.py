"""Peers: who is at the other end of a connection."""

from __future__ import annotations

import dataclasses
import socket
import struct
from contextvars import Context, ContextVar, copy_context
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

from iproto._fastframe import calling_peer

if TYPE_CHECKING:
    from iproto.server.rights import Rights

# Of a written IPv6 address those of its /64, which one client has as a rule.
NETWORK_DIGITS = len("2001:0db8:0000:0000")

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of Linux


@dataclasses.dataclass(frozen=True)
class Peer:
    """The other end of a connection, from its accept on.

    Args:
        host: IP address; empty for a unix socket.
        port: 0 for a unix socket.
        uid: user of a unix socket's other end; None for TCP, and where the system does
            not tell.
        listener: address that the peer connected to.
        rights: what it may call.
        tls_name: name in a checked certificate; None without one.
    """

    host: str
    port: int
    uid: int | None
    listener: str
    rights: Rights
    tls_name: str | None = None

    @property
    def address(self) -> str:
        """``HOST:PORT``; empty for a unix socket."""
        if not self.host:
            return ""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def client(self) -> str:
        """Who it is: a TLS name, a user, an address or its /64. Limits count the last three."""
        if self.tls_name is not None:
            return f"name {self.tls_name}"
        return client_of(self.host) if self.host else f"uid {self.uid}"

    def __str__(self) -> str:
        name = f" ({self.tls_name})" if self.tls_name else ""
        user = "an unknown user" if self.uid is None else f"uid {self.uid}"
        return f"{self.address or user}{name} at {self.listener}"


def client_of(host: str) -> str:
    """Of an IP address what is taken for one client: it, or its /64."""
    if ":" in host:
        return f"{IPv6Address(host).exploded[:NETWORK_DIGITS]}/64"
    return host


# Of the call that a task runs; plain functions run where the extension knows it.
CALLER: ContextVar[Peer] = ContextVar("iproto-peer")


def current_peer() -> Peer | None:
    """Who has made the call that runs now; None outside of calls of user functions.

    For user functions, and what they call: also behind ``await``, in tasks that they
    create, and in ``asyncio.to_thread``.
    """
    calling: Peer | None = calling_peer()
    return CALLER.get(None) if calling is None else calling


def context_of(peer: Peer) -> Context:
    """The context in which tasks of a peer's calls run."""
    context = copy_context()
    context.run(CALLER.set, peer)
    return context


def user_of(sock: socket.socket) -> int | None:
    """The uid of the process that connected a unix socket; None where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    _, uid, _ = _CREDENTIALS.unpack(found)
    return int(uid)


def host_and_port(address: Any) -> tuple[str, int]:
    """Of an accepted connection's address, as the system says it; ``("", 0)`` for a unix socket."""
    if not isinstance(address, tuple):
        return "", 0
    return str(address[0]).partition("%")[0], int(address[1])
