"""What a load is to send, and the account of what became of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iproto.bench.latency import Latency

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from iproto.client.url import Target

KINDS = ("read", "write", "ping", "call")

# Slots are drawn before the load begins, and used in this order again and again.
_DRAWN = 1 << 16
_PROBLEMS_KEPT = 5


@dataclass(frozen=True)
class Plan:
    """What one process is to do.

    Args:
        target: the server; its ``timeout`` bounds the wait for connections and for
            the last replies.
        family: of the sockets.
        address: the server's, of that family.
        connections: 1 or more.
        depth: requests on their way on each connection, 1 or more; in an open
            loop, at most.
        rate: requests a second of this process, due on a fixed schedule; None
            for a closed loop.
        duration: seconds.
        mix: kind (see ``KINDS``) → its share; shares sum to 1.
        contents: slot → what a read of it must bring, for the slots in use.
            Writes write the same.
        call: func_id and body of the kind ``call``.
    """

    target: Target
    family: socket.AddressFamily
    address: tuple[str, int] | str
    connections: int
    depth: int
    rate: float | None
    duration: float
    mix: Mapping[str, float]
    contents: Mapping[int, bytes]
    call: tuple[int, bytes] | None = None


@dataclass
class Outcome:
    """What became of the requests: each was answered, lost, or handed back.

    Args:
        sent: requests.
        answered: with whatever return code.
        in_time: of these, within the duration.
        refused: return code, but 0 → replies.
        lost: not answered when the connection broke, or in time at the end.
        handed_back: not answered when the server ended the connection in good
            order: it had not begun with them.
        wrong: replies with another content than the slot's, or against the protocol.
        doubled: replies to requests that had one already.
        unsent: due in an open loop, but never sent: the connections had no room.
        late: due in an open loop, sent or not, but over a millisecond ago when this
            process came to look: it was not the server that could not keep up.
        reconnects: connections that ended and were made again.
        seconds: how long requests were sent.
        cpu_seconds: what this process took for it.
        latency: of all replies.
        problems: the first few, in words.
    """

    sent: int = 0
    answered: int = 0
    in_time: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    handed_back: int = 0
    wrong: int = 0
    doubled: int = 0
    unsent: int = 0
    late: int = 0
    reconnects: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latency: Latency = field(default_factory=Latency)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Adds another process's."""
        self.sent += other.sent
        self.answered += other.answered
        self.in_time += other.in_time
        self.lost += other.lost
        self.handed_back += other.handed_back
        self.wrong += other.wrong
        self.doubled += other.doubled
        self.unsent += other.unsent
        self.late += other.late
        self.reconnects += other.reconnects
        self.seconds = max(self.seconds, other.seconds)
        self.cpu_seconds += other.cpu_seconds
        self.latency.add(other.latency)
        self.add_refused(other.refused)
        for problem in other.problems:
            self.note(problem)

    def add_refused(self, refused: Mapping[int, int]) -> None:
        """Adds replies by return code."""
        for code, count in refused.items():
            self.refused[code] = self.refused.get(code, 0) + count

    def note(self, problem: str) -> None:
        """Keeps a problem in words, if it is new and among the first."""
        if len(self.problems) < _PROBLEMS_KEPT:
            # The server's own words may be in it: one line, whatever they are.
            shown = "".join(c if c.isprintable() else " " for c in problem)
            if shown not in self.problems:
                self.problems.append(shown)


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that the codec gives back together when all are answered.

    Args:
        count: requests.
        since: times from which latencies count: one for each, or one for all.
        expected: what the replies must bring; None where nothing is compared.
    """

    count: int
    since: tuple[float, ...]
    expected: list[bytes] | None = None


class Dealer:
    """Deals out requests by the mix, and the slots that they are for.

    Args:
        mix: see :class:`Plan`.
        contents: see :class:`Plan`.
    """

    def __init__(self, mix: Mapping[str, float], contents: Mapping[int, bytes]) -> None:
        self._mix = dict(mix)
        self._last = next(reversed(self._mix))
        self._owed = dict.fromkeys(self._mix, 0.0)
        slots = list(contents)
        self._indexes = random.choices(slots, k=_DRAWN) if slots else []
        self._contents = [contents[index] for index in self._indexes]
        self._items: list[tuple[int, str | bytes]] = list(
            zip(self._indexes, self._contents, strict=True)
        )
        self._at = 0

    def kinds(self, count: int) -> list[tuple[str, int]]:
        """How many of each kind the next so many requests are; true to the mix in the long run."""
        dealt = []
        left = count
        for kind, share in self._mix.items():
            owed = self._owed[kind] + count * share
            number = left if kind == self._last else min(left, max(0, int(owed)))
            self._owed[kind] = owed - number
            left -= number
            if number:
                dealt.append((kind, number))
        return dealt

    def reads(self, count: int) -> tuple[list[int], list[bytes]]:
        """Slots to read, and what they hold; at most 65536 at once."""
        at = self._advance(count)
        return self._indexes[at : at + count], self._contents[at : at + count]

    def writes(self, count: int) -> list[tuple[int, str | bytes]]:
        """Slots to write, and what; at most 65536 at once."""
        at = self._advance(count)
        return self._items[at : at + count]

    def _advance(self, count: int) -> int:
        at = self._at if self._at + count <= _DRAWN else 0
        self._at = at + count
        return at
