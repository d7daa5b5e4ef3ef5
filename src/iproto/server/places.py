"""Places for connections: which one goes when all are taken."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iproto.server.connection import Connection

# Connections of a client that are looked at for the idlest, those open for longest: so many
# take some 50 us.
LOOKED_AT = 64


class Places:
    """The open connections of one process, by client."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Connection, None]] = {}  # in the order of their opening
        self._by_count: dict[int, dict[str, None]] = {}  # clients with so many
        self._total = 0
        self._most = 0  # the highest count that there is

    def __len__(self) -> int:
        return self._total

    def add(self, connection: Connection) -> None:
        """A connection is open."""
        client = connection.peer.client
        held = self._of.setdefault(client, {})
        held[connection] = None
        self._total += 1
        self._move(client, len(held) - 1, len(held))

    def remove(self, connection: Connection) -> None:
        """It is closed."""
        client = connection.peer.client
        held = self._of.get(client, {})
        if connection in held:
            del held[connection]
            self._total -= 1
            if not held:
                del self._of[client]
            self._move(client, len(held) + 1, len(held))

    def victim(self, newcomer: str) -> Connection | None:
        """The connection that goes for one more of a client; None: the newcomer does.

        It is one of the client that has most, and more than the newcomer's would be; of
        those the one without a request for longest. A PING is none.
        """
        if self._most <= len(self._of.get(newcomer, ())) + 1:
            return None
        client = next(iter(self._by_count[self._most]))
        oldest = islice(self._of[client], LOOKED_AT)
        return max(oldest, key=lambda connection: connection.seconds_without_request())

    def _move(self, client: str, before: int, now: int) -> None:
        """A client's count has changed by one."""
        if before:
            del self._by_count[before][client]
            if not self._by_count[before]:
                del self._by_count[before]
        if now:
            self._by_count.setdefault(now, {})[client] = None
        self._most = max(self._most, now)
        while self._most and self._most not in self._by_count:
            self._most -= 1
