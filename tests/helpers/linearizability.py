"""Whether a recorded history of slots is linearizable.

That is: whether each operation can be given one moment between its request and
its reply, so that in the order of those moments every read returns what was
written last. Slots are registers of their own, so each is judged alone.

All written values of a slot must differ, which makes the question easy (Gibbons
and Korach, "Testing shared memories", 1997). A write and the reads that return
its value form a *cluster*. In the order sought, a cluster stands together, its
write first. So cluster A cannot come before B if some operation of B ended
before some operation of A began: if B's earliest end is before A's latest
beginning. A history is linearizable exactly when

- no read ends before the write of its value begins, and
- no two clusters each forbid the other to come first.

(Pairs are enough. "The earliest end of X is before the latest beginning of Y"
compares one number of X with one of Y, and a cycle of such relations always
contains a cycle of two.)

A cluster whose earliest end is before its latest beginning takes up the time
between the two, its *zone*. Two such clusters conflict when their zones
overlap; any other conflicts with one whose zone it is within, from its own
latest beginning to its earliest end. Two of the others never conflict.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable


class Operation(NamedTuple):
    """One read or write of a slot.

    Refused operations, which certainly changed nothing, are left out.

    Args:
        slot: which slot.
        is_write: a write, or a read.
        value: what was written or read; of a read without a reply, anything.
        begun: when the request was about to be sent.
        ended: when its reply had come; None if none came. Such a write may have
            taken effect, at any time from ``begun`` on, or never.
        name: for messages: who asked.
    """

    slot: int
    is_write: bool
    value: Hashable
    begun: float
    ended: float | None
    name: str = ""

    def __str__(self) -> str:
        ended = "…" if self.ended is None else f"{self.ended:.9g}"
        return (
            f"{'write' if self.is_write else 'read'} {self.value!r}"
            f" [{self.begun:.9g}, {ended}]{self.name and ' by ' + self.name}"
        )


@dataclass(slots=True)
class _Cluster:
    """A write and the reads of its value, with those that bound it."""

    value: Hashable
    write_begun: float
    first_end: float
    last_begun: float
    ends_first: str
    begins_last: str

    @property
    def has_zone(self) -> bool:
        return self.first_end < self.last_begun

    def __str__(self) -> str:
        return (
            f"value {self.value!r} (first to end: {self.ends_first}; "
            f"last to begin: {self.begins_last})"
        )


def violations(history: Iterable[Operation], initial: Hashable = b"") -> dict[int, str]:
    """What is wrong, by slot; empty if the history is linearizable.

    Args:
        history: operations in any order. Times that are equal count as
            overlapping.
        initial: what the slots held before; nobody may write it.

    Raises:
        ValueError: a value was written twice to a slot, or an operation ends
            before it begins.
    """
    slots: dict[int, list[Operation]] = {}
    for operation in history:
        slots.setdefault(operation.slot, []).append(operation)
    found = {slot: violation(operations, initial) for slot, operations in slots.items()}
    return {slot: text for slot, text in sorted(found.items()) if text is not None}


def violation(operations: Iterable[Operation], initial: Hashable = b"") -> str | None:
    """As :func:`violations`, of one slot: what is wrong, or None."""
    before = "what was there at first"
    clusters = {
        initial: _Cluster(initial, -math.inf, -math.inf, -math.inf, before, before),
    }
    reads: list[Operation] = []
    unknown: set[Hashable] = set()  # writes without a reply that nobody has read yet
    for operation in operations:
        begun, ended = operation.begun, operation.ended
        if ended is not None and ended < begun:
            raise ValueError(f"it ends before it begins: {operation}")
        if operation.is_write:
            if operation.value in clusters:
                raise ValueError(f"its value is not unique: {operation}")
            if ended is None:
                unknown.add(operation.value)
                ended = math.inf
            said = str(operation)
            clusters[operation.value] = _Cluster(operation.value, begun, ended, begun, said, said)
        elif ended is not None:
            reads.append(operation)
    for read in reads:
        cluster = clusters.get(read.value)
        if cluster is None:
            return f"nobody wrote what was read: {read}"
        assert read.ended is not None
        if read.ended < cluster.write_begun:
            return f"read before it was written: {read}; {cluster}"
        unknown.discard(read.value)
        if read.ended < cluster.first_end:
            cluster.first_end, cluster.ends_first = read.ended, str(read)
        if read.begun > cluster.last_begun:
            cluster.last_begun, cluster.begins_last = read.begun, str(read)
    # A write without a reply that nobody read may be taken not to have happened.
    return _conflict([c for value, c in clusters.items() if value not in unknown])


def _conflict(clusters: list[_Cluster]) -> str | None:
    zones = sorted((c for c in clusters if c.has_zone), key=lambda c: c.first_end)
    for earlier, later in itertools.pairwise(zones):
        if later.first_end < earlier.last_begun:
            return f"neither can be first: {earlier} and {later}"
    # The zones do not overlap, so only the last that begins before it can
    # reach around another cluster.
    ends = [zone.first_end for zone in zones]
    for cluster in clusters:
        if not cluster.has_zone:
            at = bisect.bisect_left(ends, cluster.last_begun) - 1
            if at >= 0 and cluster.first_end < zones[at].last_begun:
                return f"neither can be first: {zones[at]} and {cluster}"
    return None
