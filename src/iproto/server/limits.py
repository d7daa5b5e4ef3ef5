"""What one client may have: connections, calls and requests, over all workers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from iproto._fastframe import Account, Clients, RateLimit
from iproto.server.rates import parse_rate
from iproto.wire import CloseReason, ReturnCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iproto.server.config import Config
    from iproto.server.peer import Peer

# Tries to be the one worker that claims a place in the table, with the CPU given up in between.
# A claim takes a microsecond; in vain is only a worker that was stopped in the middle of one.
CLAIM_TRIES = 100


class Refusal(NamedTuple):
    """Why a connection is not taken in, and what its first request is answered."""

    reason: CloseReason
    code: ReturnCode
    text: str


class SharedClients(NamedTuple):
    """The table of clients as one worker has it.

    Args:
        table: the table.
        descriptor: of its memory, by whose locks workers claim one at a time; None if there
            is one process only.
    """

    table: Clients
    descriptor: int | None = None

    def claim(self, client: str) -> Account:
        """The place of one more connection of a client."""
        digest = hashlib.blake2b(client.encode(), key=self.table.key, digest_size=8).digest()
        with self._alone():
            return self.table.claim(int.from_bytes(digest, "little") or 1)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other workers from claiming. The system frees the lock of one that dies.

        Nothing waits for long: past CLAIM_TRIES the claim is made all the same, and at
        worst a client has two places for a while.
        """
        if self.descriptor is None:
            yield
            return
        for _ in range(CLAIM_TRIES):
            try:
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0)
            else:
                break
        else:
            yield
            return
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


class ClientLimits:
    """The limits of each client.

    Args:
        config: the settings.
        shared: the table; None for one of this server's own, if the settings need any.
    """

    def __init__(self, config: Config, shared: SharedClients | None) -> None:
        rate = parse_rate("rate_limit", config.rate_limit)
        connect_rate = parse_rate("connect_rate", config.connect_rate)
        self.rate = RateLimit(*rate) if rate else None
        self.max_calls = config.max_calls_per_client
        self._connect_rate = RateLimit(*connect_rate) if connect_rate else None
        self._max_connections = config.max_connections_per_client
        self._total = config.max_connections if isinstance(config.max_connections, int) else 0
        needed = self.rate or self._connect_rate or self.max_calls or self._max_connections
        self._shared = shared
        if shared is None and needed:
            self._shared = SharedClients(Clients())
        if not (needed or (shared is not None and self._total)):
            self._shared = None

    @property
    def has_limits(self) -> bool:
        """Whether requests or calls of a client are limited, not only its connections."""
        return self.rate is not None or self.max_calls > 0

    @property
    def total(self) -> int | None:
        """Connections of all workers; None if they are not counted."""
        return None if self._shared is None else self._shared.table.connections

    def admit(self, peer: Peer) -> Account | Refusal | None:
        """A place for one more connection of a peer; None if nothing of it is limited."""
        if self._shared is None:
            return None
        account = self._shared.claim(peer.client)
        limit = self._max_connections
        if limit and account.connections > limit:
            account.release()
            return Refusal(
                CloseReason.TOO_MANY,
                ReturnCode.OVERLOADED,
                f"{limit} connections of this client are open, its limit; try again",
            )
        if self._connect_rate is not None and not account.take_connect(self._connect_rate):
            wait = math.ceil(account.connect_wait(self._connect_rate) * 1000) / 1000
            account.release()
            return Refusal(
                CloseReason.TOO_MANY,
                ReturnCode.RATE_LIMITED,
                f"this client connects too often; not executed; retry after {wait:.3f} s",
            )
        return account

    def detach(self) -> None:
        """In a child process: what it has of the table is the parent's, and stays as it is."""
        if self._shared is not None:
            self._shared.table.detach()
