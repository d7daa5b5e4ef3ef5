"""The schedule of an open loop: when each request is due, and on which connection."""

from __future__ import annotations

SPIN = 0.001
"""Seconds: selectors round a wait up to whole milliseconds, so less is not slept but spun."""

# Requests that one look at the schedule hands out, so that after a pause the
# replies that have come meanwhile are not left lying.
_HANDED_OUT_AT_ONCE = 10_000


class Schedule:
    """Hands out requests as they become due.

    Request n, from 0 on, is due (n + 1) / rate seconds after the start, on connection
    n % connections.

    Args:
        rate: requests a second.
        connections: how many share them.
    """

    def __init__(self, rate: float, connections: int) -> None:
        self.started = 0.0
        """When the load began, as ``monotonic`` has it."""
        self.handed_out = 0
        """Requests that connections were given so far."""
        self.late = 0
        """Of these, those handed out over a millisecond after they were due."""
        self._rate = rate
        self._connections = connections

    def due(self, seconds: float) -> int:
        """How many requests are due this long after the start."""
        return int(seconds * self._rate + 1e-6)  # 0.29 * 100 is a hair less than 29

    def hand_out(self, seconds: float) -> list[int]:
        """Hands out what is due this long after the start; returns the connections that get any."""
        first = self.handed_out
        due = min(self.due(seconds), first + _HANDED_OUT_AT_ONCE)
        self.late += max(0, min(self.due(seconds - SPIN), due) - first)
        self.handed_out = due
        last = min(due, first + self._connections)
        return [number % self._connections for number in range(first, last)]

    def until_next(self, seconds: float) -> float:
        """Seconds until the next request is due, this long after the start; below 0: it is."""
        return (self.handed_out + 1) / self._rate - seconds

    def handed_to(self, connection: int) -> int:
        """How many requests a connection was given so far."""
        return (self.handed_out - connection - 1) // self._connections + 1

    def due_times(self, connection: int, first: int, count: int) -> tuple[float, ...]:
        """When requests of a connection are due, from its ``first`` on."""
        start = self.started + (connection + 1) / self._rate
        step = self._connections / self._rate
        return tuple(start + place * step for place in range(first, first + count))
