"""What a load is to send, and the account of what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iproto.bench.latency import Latency

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from iproto.client.url import Target

KINDS = ("read", "write", "ping", "call")

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
    """What became of the requests: each was answered or lost.

    Args:
        sent: requests, each once, however often it was sent again.
        answered: with whatever return code.
        in_time: of these, within the duration.
        refused: return code, but 0 → replies.
        lost: not answered when the connection ended, or in time at the end.
        resent: requests sent again, for the server had announced its end, and so that
            it would not execute them.
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
    resent: int = 0
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
        self.resent += other.resent
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
            # It may hold a text of the server: one line, whatever that is.
            shown = "".join(c if c.isprintable() else " " for c in problem)
            if shown not in self.problems:
                self.problems.append(shown)
